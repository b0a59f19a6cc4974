# SPDX-License-Identifier: Apache-2.0
"""Models of the ten annotated classes: recognisable shapes of any size, a few hundred triangles at most.

Every mesh touches all six faces of its true box (see :func:`fitted`) and stays within it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bevnext_core.classes import CLASSES
from bevnext_world.models import people as people_models
from bevnext_world.models import vehicle as vehicle_models
from bevnext_world.models.mesh import Mesh, MeshError, Pattern, fitted, merge
from bevnext_world.models.palette import METAL, draw_paint
from bevnext_world.models.solids import box, cylinder

PHASES = 16
"""Steps of a walking cycle that are built; phases between them take the nearest one."""


@dataclass(frozen=True)
class ObjectModel:
    """An object's shape.

    Attributes:
        class_name: one of the ten nuScenes classes.
        size: length, width, height, metres.
        rider: a person sits on it (motorcycles and bicycles).
        build: the mesh at a phase.
    """

    class_name: str
    size: tuple[float, float, float]
    rider: bool
    build: Callable[[float], Mesh]
    _meshes: dict[int, Mesh] = field(default_factory=dict)

    def mesh(self, phase: float = 0.0) -> Mesh:
        """The mesh at ``phase`` of the walking cycle (any number, its fraction counts).

        Only pedestrians move: they fill their box at phase 0 and stay within it at the others.
        """
        step = round((phase % 1.0) * PHASES) % PHASES if self.class_name == "pedestrian" else 0
        if step not in self._meshes:
            self._meshes[step] = self.build(step / PHASES)
        return self._meshes[step]


def build_object(
    class_name: str,
    size: Sequence[float],
    rng: np.random.Generator,
    *,
    rider: bool | None = None,
) -> ObjectModel:
    """A model of one class; its variant, colours and textures are drawn from ``rng``.

    Args:
        class_name: one of the ten nuScenes classes.
        size: length (x), width (y), height (z) of the true box, metres.
        rng: the same state gives the same model.
        rider: for motorcycles and bicycles: with a person on it; None decides by the height.

    Raises:
        MeshError: no such class, or a size that is not three numbers between 1 cm and 100 m.
    """
    if class_name not in CLASSES:
        raise MeshError(f"there is no class {class_name!r}: one of {', '.join(CLASSES)}")
    values = np.asarray(size, np.float64)
    if values.shape != (3,) or not ((values > 0.01) & (values < 100)).all():
        raise MeshError(f"a {class_name} needs a size of three numbers between 0.01 and 100 m, not {size}")
    length, width, height = (float(value) for value in values)
    if rider is None:
        rider = height > 1.3
    rider = rider and class_name in ("motorcycle", "bicycle")
    if class_name == "pedestrian":
        look = people_models.draw_look(rng)
        build = functools.partial(_walking, look, (length, width, height))
    else:
        if class_name == "motorcycle":
            raw = people_models.motorcycle(length, width, height, rng, rider)
        elif class_name == "bicycle":
            raw = people_models.bicycle(length, width, height, rng, rider)
        elif class_name == "traffic_cone":
            raw = _cone(length, width, height, rng)
        elif class_name == "barrier":
            raw = _barrier(length, width, height, rng)
        else:
            raw = vehicle_models.MAKERS[class_name](length, width, height, rng)
        build = functools.partial(_rigid, fitted(raw, (length, width, height)))
    return ObjectModel(class_name, (length, width, height), rider, build)


def _rigid(mesh: Mesh, phase: float) -> Mesh:
    return mesh


def _walking(look: people_models.Look, size: tuple[float, float, float], phase: float) -> Mesh:
    """Scaled as at phase 0, where the stride is longest, then cut to the box."""
    full = people_models.person(look, 0.0)
    low, high = (bound.astype(np.float64) for bound in full.bounds)
    mesh = people_models.person(look, phase)
    vertices = (mesh.vertices - (low + high) / 2) * (np.array(size) / (high - low))
    half = np.array(size) / 2
    return Mesh(np.clip(vertices, -half, half), mesh.faces, mesh.colors, mesh.pattern, mesh.gloss)


def _cone(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    orange = (float(rng.uniform(0.82, 0.95)), float(rng.uniform(0.25, 0.42)), float(rng.uniform(0.06, 0.14)))
    base = max(0.035, 0.05 * height)
    radius = 0.42 * min(length, width)
    foot = orange if rng.random() < 0.5 else (0.12, 0.12, 0.12)
    tip = radius * (0.55 if rng.random() < 0.2 else 0.16)
    pattern = Pattern.BANDS if rng.random() < 0.85 else Pattern.PLAIN
    place = (0, 0, (height + base) / 2)
    body = cylinder(radius, height - base, place, "z", orange, pattern, segments=10, end_radius=tip)
    return merge([box((length, width, base), (0, 0, base / 2), foot), body])


def _barrier(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    """Built along y and turned where its length is the longer side."""
    thick, long = min(length, width), max(length, width)
    kind = rng.random()
    if kind < 0.45:  # jersey: wide foot, steep upper part
        color = (0.66, 0.65, 0.62) if rng.random() < 0.5 else draw_paint(rng)
        pattern = Pattern.NOISE if rng.random() < 0.7 else Pattern.HAZARD
        parts = []
        for wide, bottom, top, shrink in (
            (1.0, 0.0, 0.12, 1.0),
            (0.62, 0.12, 0.38, 0.4 / 0.62),
            (0.4, 0.38, 1.0, 0.8),
        ):
            size = (thick * wide, long, height * (top - bottom))
            parts.append(box(size, (0, 0, height * (top + bottom) / 2), color, pattern, top=(shrink, 1.0)))
    else:  # boards on two feet
        color = draw_paint(rng) if rng.random() < 0.3 else (0.80, 0.14, 0.10)
        board = 0.2 * height
        levels = [0.86] if kind < 0.6 else [0.87, 0.52]
        parts = [box((0.16 * thick, long, board), (0, 0, height * z), color, Pattern.HAZARD) for z in levels]
        parts[0] = parts[0].moved(z=height - height * levels[0] - board / 2)
        for y in (-0.38 * long, 0.38 * long):
            parts.append(box((thick, 0.06 * long, 0.07 * height), (0, y, 0.035 * height), (0.2, 0.2, 0.2)))
            parts.append(box((0.12 * thick, 0.03 * long, 0.95 * height), (0, y, 0.475 * height), METAL))
        if rng.random() < 0.4:
            light = (0.1, 0.14, 0.16), (0, 0.38 * long, height - 0.08)
            parts.append(box(*light, (0.95, 0.6, 0.1), Pattern.LAMP))
    mesh = merge(parts)
    return mesh.turned(np.pi / 2) if length > width else mesh
