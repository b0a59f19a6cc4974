"""What vehicles have in common: wheels, panes, lamps, number plates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bevnext_world.models.mesh import (
    Color,
    Mesh,
    Pattern,
    cylinder,
    panel,
)
from bevnext_world.models.palette import (
    HEADLAMP,
    METAL,
    TAILLAMP,
    TYRE,
)

SHINE = 0.9
"""Gloss of panes."""
PAINT_SHINE = 0.35
STAND_OFF = 0.012
"""Metres that panes and lamps lie before the surface that carries them."""


def wheels(
    stations: Sequence[float], half_track: float, radius: float, width: float, segments: int = 8
) -> list[Mesh]:
    parts = []
    for x in stations:
        for side in (-1.0, 1.0):
            y = side * (half_track - width / 2)
            parts.append(cylinder(radius, width, (x, y, radius), "y", TYRE, segments=segments))
            hub = [
                (
                    x + 0.55 * radius * math.cos(2 * math.pi * i / 6),
                    side * (half_track + 0.004),
                    radius + 0.55 * radius * math.sin(2 * math.pi * i / 6),
                )
                for i in range(6)
            ]
            parts.append(panel(hub, (0, side, 0), METAL, gloss=0.3))
    return parts


def pair(
    corners: Sequence[tuple[float, float, float]], outward: Sequence[float], color: Color, **look
) -> list[Mesh]:
    """A pane or lamp on the left side and its mirror image on the right."""
    one = panel(corners, outward, color, **look)
    return [one, one.mirrored("y")]


def lamps(x_front: float, x_rear: float, y: float, z: float, width: float, height: float) -> list[Mesh]:
    parts = []
    for x, outward, color in ((x_front, 1.0, HEADLAMP), (x_rear, -1.0, TAILLAMP)):
        corners = [
            (x, y - width, z),
            (x, y, z),
            (x, y, z + height),
            (x, y - width, z + height),
        ]
        parts += pair(corners, (outward, 0, 0), color, pattern=Pattern.LAMP, gloss=0.3)
    return parts


def plate(x: float, z: float, outward: float) -> Mesh:
    return panel(
        [(x, -0.26, z), (x, 0.26, z), (x, 0.26, z + 0.11), (x, -0.26, z + 0.11)],
        (outward, 0, 0),
        (0.88, 0.88, 0.82),
    )
