# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes with a colour, a procedural pattern and a gloss per face; :mod:`.solids` builds them.

Axes as everywhere: x forward, y left, z up, metres. Faces are wound counter-clockwise seen from outside: the
renderer draws outer sides only. Colours are display values (what an image shows under full light, 0..1); the
renderer makes them linear.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bevnext_core.errors import BevnextError

Color = tuple[float, float, float]


class MeshError(BevnextError):
    """A mesh, or the size of a model, is impossible: wrong shapes, NaN, indices out of range."""


class Pattern(enum.IntEnum):
    """What the renderer paints onto a face, per pixel, in the object's frame. Same numbers as in the C++."""

    PLAIN = 0
    NOISE = 1  # fine mottling: dirt, plaster, asphalt
    BRICK = 2
    WINDOWS = 3  # a facade's grid of windows
    FOLIAGE = 4
    BARK = 5  # streaks along z
    RIBS = 6  # vertical ribs: containers, corrugated sheet
    PANELS = 7  # sheets with seams
    HAZARD = 8  # diagonal stripes, colour and white
    BANDS = 9  # horizontal bands, colour and white
    CLOTH = 10
    BLOTCH = 11  # large two-colour shapes: advertisement, graffiti, livery
    LAMP = 12  # shines by itself
    PLANKS = 13  # horizontal boards


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles.

    Attributes:
        vertices: [V, 3] float32, metres.
        faces: [F, 3] int32, indices into ``vertices``, counter-clockwise seen from outside.
        colors: [F, 3] float32, display values in 0..1.
        pattern: [F] uint8, a :class:`Pattern`; None means plain.
        gloss: [F] float32, 0 matt to 1 glass; None means matt.

    Raises:
        MeshError: shapes do not fit, a value is not finite or out of range.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    pattern: np.ndarray = None  # type: ignore[assignment]
    gloss: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        def put(name: str, value: object, dtype: type) -> np.ndarray:
            array = np.ascontiguousarray(value, dtype)
            object.__setattr__(self, name, array)
            return array

        vertices = put("vertices", self.vertices, np.float32)
        faces = put("faces", self.faces, np.int32)
        colors = put("colors", self.colors, np.float32)
        count = len(faces)
        pattern = put("pattern", np.zeros(count) if self.pattern is None else self.pattern, np.uint8)
        gloss = put("gloss", np.zeros(count) if self.gloss is None else self.gloss, np.float32)
        if vertices.shape[1:] != (3,) or faces.shape[1:] != (3,) or not count:
            raise MeshError(
                f"a mesh needs vertices [V, 3] and at least one face [F, 3], not {vertices.shape}, {faces.shape}"
            )
        if colors.shape != (count, 3) or pattern.shape != (count,) or gloss.shape != (count,):
            raise MeshError(
                f"{count} faces need colors [F, 3], pattern [F] and gloss [F], not {colors.shape}, "
                f"{pattern.shape}, {gloss.shape}"
            )
        if not (np.isfinite(vertices).all() and np.isfinite(colors).all() and np.isfinite(gloss).all()):
            raise MeshError("a mesh's vertices, colors and gloss must be finite")
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise MeshError(f"faces index vertices {faces.min()}..{faces.max()} of {len(vertices)}")
        if colors.min() < 0 or colors.max() > 1 or gloss.min() < 0 or gloss.max() > 1:
            raise MeshError("a mesh's colors and gloss must be in 0..1")
        if pattern.max() >= len(Pattern):
            raise MeshError(f"there is no pattern {pattern.max()}: 0..{len(Pattern) - 1}")

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner, each [3]."""
        return self.vertices.min(0), self.vertices.max(0)

    def transformed(self, matrix: np.ndarray) -> Mesh:
        """The mesh moved by an affine matrix [3, 4] or [4, 4]; mirrored ones keep their outer sides outside."""
        matrix = np.asarray(matrix, np.float64)
        vertices = self.vertices @ matrix[:3, :3].T + matrix[:3, 3]
        faces = self.faces if np.linalg.det(matrix[:3, :3]) > 0 else self.faces[:, ::-1]
        return unchecked(vertices, faces, self.colors, self.pattern, self.gloss)

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """The mesh shifted."""
        vertices = self.vertices + np.float32([x, y, z])
        return unchecked(vertices, self.faces, self.colors, self.pattern, self.gloss)

    def turned(self, angle: float) -> Mesh:
        """The mesh turned about the z axis through the origin by ``angle`` rad."""
        c, s = math.cos(angle), math.sin(angle)
        return self.transformed(np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0]]))

    def mirrored(self) -> Mesh:
        """The mesh with left and right exchanged."""
        return self.transformed(np.diag([1.0, -1.0, 1.0, 1.0]))


def unchecked(
    vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray, pattern: np.ndarray, gloss: np.ndarray
) -> Mesh:
    """A part of a model: an object has dozens, and :func:`merge` checks them all at once."""
    mesh = object.__new__(Mesh)
    for name, value, dtype in (
        ("vertices", vertices, np.float32),
        ("faces", faces, np.int32),
        ("colors", colors, np.float32),
        ("pattern", pattern, np.uint8),
        ("gloss", gloss, np.float32),
    ):
        object.__setattr__(mesh, name, np.ascontiguousarray(value, dtype))
    return mesh


def merge(meshes: Iterable[Mesh]) -> Mesh:
    """One mesh of several."""
    parts = list(meshes)
    starts = np.cumsum([0] + [len(part.vertices) for part in parts])
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, starts[:-1])]),
        np.concatenate([part.colors for part in parts]),
        np.concatenate([part.pattern for part in parts]),
        np.concatenate([part.gloss for part in parts]),
    )


def fitted(mesh: Mesh, size: Sequence[float]) -> Mesh:
    """The mesh stretched and centred so that it touches all six faces of a box of ``size`` (x, y, z)."""
    low, high = (bound.astype(np.float64) for bound in mesh.bounds)
    scale = np.asarray(size, np.float64) / (high - low)
    vertices = (mesh.vertices - (low + high) / 2) * scale
    return Mesh(vertices, mesh.faces, mesh.colors, mesh.pattern, mesh.gloss)
