"""Triangle meshes with a colour, a procedural pattern and a gloss per face, and the solids to build them from.

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
        if (
            vertices.ndim != 2
            or vertices.shape[1] != 3
            or faces.ndim != 2
            or faces.shape[1] != 3
            or not count
        ):
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
        return _unchecked(vertices, faces, self.colors, self.pattern, self.gloss)

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """The mesh shifted."""
        vertices = self.vertices + np.float32([x, y, z])
        return _unchecked(vertices, self.faces, self.colors, self.pattern, self.gloss)

    def rotated(self, axis: str, angle: float) -> Mesh:
        """The mesh turned about ``"x"``, ``"y"`` or ``"z"`` through the origin by ``angle`` rad."""
        first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        matrix = np.eye(4)
        c, s = math.cos(angle), math.sin(angle)
        matrix[first, first], matrix[first, second] = c, -s
        matrix[second, first], matrix[second, second] = s, c
        return self.transformed(matrix)

    def mirrored(self, axis: str = "y") -> Mesh:
        """The mesh seen in a mirror through the origin."""
        matrix = np.eye(4)
        index = "xyz".index(axis)
        matrix[index, index] = -1.0
        return self.transformed(matrix)


def _unchecked(
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


def solid(
    vertices: np.ndarray, faces: np.ndarray, color: Color, pattern: int = Pattern.PLAIN, gloss: float = 0.0
) -> Mesh:
    """A mesh of one colour, pattern and gloss."""
    count = len(faces)
    return _unchecked(
        vertices,
        faces,
        np.full((count, 3), color, np.float32),
        np.full(count, int(pattern), np.uint8),
        np.full(count, gloss, np.float32),
    )


_BOX_FACES = np.int32(
    [
        *([0, 2, 1], [1, 2, 3], [4, 5, 6], [5, 7, 6]),  # below, above (corner bits: x 1, y 2, z 4)
        *([0, 1, 4], [1, 5, 4], [2, 6, 3], [3, 6, 7]),  # right, left
        *([0, 4, 2], [2, 4, 6], [1, 3, 5], [3, 7, 5]),  # back, front
    ]
)
_BOX_CORNERS = np.float64([[(i & 1) - 0.5, (i >> 1 & 1) - 0.5, (i >> 2) - 0.5] for i in range(8)])


def box(
    size: Sequence[float],
    center: Sequence[float] = (0.0, 0.0, 0.0),
    color: Color = (0.5, 0.5, 0.5),
    pattern: int = Pattern.PLAIN,
    gloss: float = 0.0,
    top: float | Sequence[float] = 1.0,
) -> Mesh:
    """A box, 12 triangles; ``top`` shrinks its upper face (along x and y)."""
    corners = _BOX_CORNERS * np.asarray(size, np.float64)
    corners[4:, :2] *= top
    return solid(corners + np.asarray(center, np.float64), _BOX_FACES, color, pattern, gloss)


def strut(
    start: Sequence[float],
    end: Sequence[float],
    thickness: float | tuple[float, float],
    color: Color,
    pattern: int = Pattern.PLAIN,
    gloss: float = 0.0,
    taper: float = 1.0,
) -> Mesh:
    """A beam from one point to another; ``thickness`` sideways and across, ``taper`` shrinks its end."""
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    length = float(np.linalg.norm(b - a))
    along = (b - a) / length
    helper = np.array([0.0, 1.0, 0.0]) if abs(along[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    across = np.cross(along, helper)
    across /= np.linalg.norm(across)
    side = np.cross(along, across)
    wide, deep = thickness if isinstance(thickness, tuple) else (thickness, thickness)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = across, side, along, (a + b) / 2
    return box((deep, wide, length), color=color, pattern=pattern, gloss=gloss, top=taper).transformed(matrix)


def cylinder(
    radius: float,
    length: float,
    center: Sequence[float] = (0.0, 0.0, 0.0),
    axis: str = "z",
    color: Color = (0.5, 0.5, 0.5),
    pattern: int = Pattern.PLAIN,
    gloss: float = 0.0,
    segments: int = 8,
    end_radius: float | None = None,
    caps: bool = True,
) -> Mesh:
    """A cylinder, or a cone's trunk: ``end_radius`` is the radius at the high end of ``axis``."""
    end_radius = radius if end_radius is None else end_radius
    angles = [2 * math.pi * (i + 0.5) / segments for i in range(segments)]
    ring = np.array([[math.cos(angle), math.sin(angle)] for angle in angles])
    low = np.c_[ring * radius, np.full(segments, -length / 2)]
    high = np.c_[ring * end_radius, np.full(segments, length / 2)]
    faces = []
    for i in range(segments):
        j = (i + 1) % segments
        faces += [[i, j, segments + i], [j, segments + j, segments + i]]
    if caps:
        faces += [[0, i + 1, i] for i in range(1, segments - 1)]
        faces += [[segments, segments + i, segments + i + 1] for i in range(1, segments - 1)]
    vertices = np.r_[low, high]
    order = {"z": (0, 1, 2), "x": (2, 0, 1), "y": (1, 2, 0)}[axis]
    return solid(vertices[:, order] + np.asarray(center), np.int32(faces), color, pattern, gloss)


def ring(
    radius: float,
    inner: float,
    width: float,
    center: Sequence[float],
    color: Color,
    gloss: float = 0.0,
    segments: int = 12,
) -> Mesh:
    """A flat ring about the y axis (a tyre without its wheel): two sides, the rim and its inside."""
    points = []
    for y, r in ((-width / 2, radius), (-width / 2, inner), (width / 2, radius), (width / 2, inner)):
        for i in range(segments):
            angle = 2 * math.pi * i / segments
            points.append((r * math.cos(angle), y, r * math.sin(angle)))
    faces = []
    n = segments
    for i in range(n):
        j = (i + 1) % n
        faces += [[i, j, n + i], [j, n + j, n + i]]  # right side
        faces += [[2 * n + i, 3 * n + i, 2 * n + j], [2 * n + j, 3 * n + i, 3 * n + j]]  # left side
        faces += [[i, 2 * n + i, j], [j, 2 * n + i, 2 * n + j]]  # rim
        faces += [[n + i, n + j, 3 * n + i], [n + j, 3 * n + j, 3 * n + i]]  # and its inside
    return solid(np.array(points) + np.asarray(center), np.int32(faces), color, Pattern.PLAIN, gloss)


def prism(
    outline: Sequence[tuple[float, float]],
    half_width: float | Sequence[float],
    color: Color,
    pattern: int = Pattern.PLAIN,
    gloss: float = 0.0,
) -> Mesh:
    """A convex outline in the x-z plane (any direction of turn), extruded along y.

    Args:
        outline: N points (x, z).
        half_width: half the width along y: one number, or one per point (a body that narrows upwards).
    """
    points = np.asarray(outline, np.float64)
    half = np.broadcast_to(np.asarray(half_width, np.float64), len(points))
    following = np.roll(points, -1, 0)
    if (points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum() < 0:
        points, half = points[::-1], half[::-1]
    n = len(points)
    right = np.c_[points[:, 0], -half, points[:, 1]]
    left = np.c_[points[:, 0], half, points[:, 1]]
    faces = [[0, i, i + 1] for i in range(1, n - 1)]
    faces += [[n, n + i + 1, n + i] for i in range(1, n - 1)]
    for i in range(n):
        j = (i + 1) % n
        faces += [[i, n + i, j], [j, n + i, n + j]]
    return solid(np.r_[right, left], np.int32(faces), color, pattern, gloss)


def panel(
    corners: Sequence[Sequence[float]],
    outward: Sequence[float],
    color: Color,
    pattern: int = Pattern.PLAIN,
    gloss: float = 0.0,
) -> Mesh:
    """A flat convex polygon (N points in order), turned so that it is seen from ``outward``: panes, lamps."""
    points = np.asarray(corners, np.float64)
    normal = np.cross(points[1] - points[0], points[2] - points[0])
    if normal @ np.asarray(outward, np.float64) < 0:
        points = points[::-1]
    faces = [[0, i, i + 1] for i in range(1, len(points) - 1)]
    return solid(points, np.int32(faces), color, pattern, gloss)


def ellipsoid(
    radii: Sequence[float],
    center: Sequence[float] = (0.0, 0.0, 0.0),
    color: Color = (0.5, 0.5, 0.5),
    pattern: int = Pattern.PLAIN,
    gloss: float = 0.0,
    segments: int = 6,
    rings: int = 4,
    jitter: np.ndarray | None = None,
) -> Mesh:
    """An ellipsoid; ``jitter`` [(rings - 1) * segments + 2] scales each vertex (bushes, crowns)."""
    points = [(0.0, 0.0, -1.0)]
    for k in range(1, rings):
        polar = math.pi * k / rings
        for i in range(segments):
            angle = 2 * math.pi * (i + 0.5 * (k % 2)) / segments
            points.append(
                (math.sin(polar) * math.cos(angle), math.sin(polar) * math.sin(angle), -math.cos(polar))
            )
    points.append((0.0, 0.0, 1.0))
    faces = []
    for i in range(segments):
        j = (i + 1) % segments
        faces.append([0, 1 + j, 1 + i])
        for k in range(rings - 2):
            a, b = 1 + k * segments, 1 + (k + 1) * segments
            faces += [[a + i, a + j, b + i], [a + j, b + j, b + i]]
        last = 1 + (rings - 2) * segments
        faces.append([last + i, last + j, len(points) - 1])
    vertices = np.array(points)
    if jitter is not None:
        vertices = vertices * np.asarray(jitter, np.float64)[:, None]
    return solid(vertices * np.asarray(radii) + np.asarray(center), np.int32(faces), color, pattern, gloss)
