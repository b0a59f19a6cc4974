# SPDX-License-Identifier: Apache-2.0
"""The solids that models are built from: boxes, beams, cylinders, prisms, panels, ellipsoids, each of one look."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bevnext_world.models.mesh import Color, Mesh, Pattern, unchecked


def solid(
    vertices: np.ndarray, faces: np.ndarray, color: Color, pattern: int = Pattern.PLAIN, gloss: float = 0.0
) -> Mesh:
    """A mesh of one colour, pattern and gloss."""
    count = len(faces)
    return unchecked(
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


def sheet(
    bottom: tuple[float, float, float],
    top: tuple[float, float, float],
    facing: float,
    color: Color,
    pattern: int = Pattern.PLAIN,
    gloss: float = 0.0,
) -> Mesh:
    """A panel across a vehicle, from -y to y at its edges (x, y, z), seen from the front (1) or the back (-1)."""
    (x0, y0, z0), (x1, y1, z1) = bottom, top
    corners = [(x0, -y0, z0), (x0, y0, z0), (x1, y1, z1), (x1, -y1, z1)]
    return panel(corners, (facing, 0, 0), color, pattern, gloss)


def arc(
    center: Sequence[float], radius: float, start: float, end: float, count: int, axis: str = "y"
) -> list[tuple[float, float, float]]:
    """``count`` points on a circle about ``axis``, ``"x"`` or ``"y"``, between two angles (rad)."""
    x, y, z = center
    circle = [(radius * math.cos(t), z + radius * math.sin(t)) for t in np.linspace(start, end, count)]
    return [(x + across, y, up) if axis == "y" else (x, y + across, up) for across, up in circle]


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
