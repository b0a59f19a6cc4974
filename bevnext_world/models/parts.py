# SPDX-License-Identifier: Apache-2.0
"""What vehicles have in common: wheels, panes, lamps, number plates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bevnext_world.models.mesh import Color, Mesh, Pattern
from bevnext_world.models.palette import HEADLAMP, METAL, TAILLAMP, TYRE
from bevnext_world.models.solids import arc, cylinder, panel, sheet

SHINE = 0.9
"""Gloss of panes."""
PAINT_SHINE = 0.35
STAND_OFF = 0.012
"""Metres that panes and lamps lie before the surface that carries them."""


def both(left: Mesh) -> list[Mesh]:
    """A part on the left side and its mirror image on the right."""
    return [left, left.mirrored()]


def pair(
    corners: Sequence[tuple[float, float, float]], outward: Sequence[float], color: Color, **look
) -> list[Mesh]:
    """A pane or lamp on the left side and its mirror image on the right."""
    return both(panel(corners, outward, color, **look))


def flank(y: float, x: tuple[float, float], z: tuple[float, float]) -> list[tuple[float, float, float]]:
    """Corners of an upright rectangle along the vehicle."""
    return [(x[0], y, z[0]), (x[1], y, z[0]), (x[1], y, z[1]), (x[0], y, z[1])]


def wheels(
    stations: Sequence[float], half_track: float, radius: float, width: float, segments: int = 8
) -> list[Mesh]:
    """Wheels with hubs on both sides at each of the ``stations`` (x)."""
    parts = []
    for x in stations:
        for side in (-1.0, 1.0):
            y = side * (half_track - width / 2)
            parts.append(cylinder(radius, width, (x, y, radius), "y", TYRE, segments=segments))
            hub = arc((x, side * (half_track + 0.004), radius), 0.55 * radius, 0, 5 * math.pi / 3, 6)
            parts.append(panel(hub, (0, side, 0), METAL, gloss=0.3))
    return parts


def lamp(
    x: float, y: tuple[float, float], z: tuple[float, float], facing: float, gloss: float = 0.0
) -> list[Mesh]:
    """Lamps on both sides, white where they face forward (1), red where they face backward (-1)."""
    corners = [(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])]
    color = HEADLAMP if facing > 0 else TAILLAMP
    return pair(corners, (facing, 0, 0), color, pattern=Pattern.LAMP, gloss=gloss)


def lamps(x_front: float, x_rear: float, y: float, z: float, width: float, height: float) -> list[Mesh]:
    """Head and tail lamps whose outer lower corners are at ``y``, ``z``."""
    span, rise = (y - width, y), (z, z + height)
    return lamp(x_front, span, rise, 1, 0.3) + lamp(x_rear, span, rise, -1, 0.3)


def plate(x: float, z: float, facing: float) -> Mesh:
    """A number plate."""
    return sheet((x, 0.26, z), (x, 0.26, z + 0.11), facing, (0.88, 0.88, 0.82))
