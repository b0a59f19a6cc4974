# SPDX-License-Identifier: Apache-2.0
"""Models of cars. Built standing on z = 0, centred in x and y."""

from __future__ import annotations

import math

import numpy as np

from bevnext_world.models.mesh import Mesh, Pattern, merge
from bevnext_world.models.palette import DARK, GLASS, draw_surface
from bevnext_world.models.parts import PAINT_SHINE, SHINE, STAND_OFF, both, lamps, pair, plate, wheels
from bevnext_world.models.solids import arc, box, prism, sheet

# (hood height, roof start, roof end, windscreen foot, rear window foot, boot height): shares of height and length
_CAR_SHAPES = {
    "sedan": (0.60, 0.05, -0.24, 0.22, -0.40, 0.64),
    "hatchback": (0.60, 0.08, -0.36, 0.25, -0.47, 0.62),
    "wagon": (0.60, 0.06, -0.40, 0.22, -0.475, 0.62),
    "suv": (0.62, 0.09, -0.40, 0.22, -0.475, 0.62),
    "van": (0.56, 0.22, -0.45, 0.37, -0.485, 0.60),
    "pickup": (0.60, 0.11, -0.08, 0.22, -0.12, 0.58),
}


def car(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    """Sedan, hatchback, wagon, SUV, van or pickup."""
    if height > 1.8:
        names = ["suv", "van", "pickup"]
    elif height > 1.62:
        names = ["suv", "wagon", "hatchback", "van"]
    else:
        names = ["sedan", "hatchback", "wagon", "sedan"]
    hood, roof_front, roof_rear, screen, rear, boot = _CAR_SHAPES[names[int(rng.integers(len(names)))]]
    screen += float(rng.uniform(-0.02, 0.02))
    color, pattern = draw_surface(rng)
    if rng.random() < 0.6:
        pattern = Pattern.PLAIN
    half, wheel = width / 2, min(0.5 * float(rng.uniform(0.40, 0.46)) * height, 0.085 * length)
    clear, belt = 0.13 * height, max(hood, boot) * height
    a, b = length / 2, -length / 2
    skin = half - 0.025
    outline = [
        *((b + 0.05, clear), (a - 0.06, clear), (a, 0.30 * height), (a - 0.02 * length, 0.47 * height)),
        *((screen * length, hood * height), (rear * length, boot * height)),
        *((b + 0.015 * length, (boot - 0.02) * height), (b, 0.36 * height)),
    ]
    widths = [skin - 0.05, skin - 0.05, skin - 0.06, skin - 0.05, skin, skin, skin - 0.03, skin - 0.03]
    parts = [prism(outline, widths, color, pattern, PAINT_SHINE)]
    # Cabin: narrower towards the roof; panes lie on its faces.
    foot, top = skin - 0.02, skin * 0.80
    cabin = [
        ((screen + 0.01) * length, belt - 0.06 * height),
        (roof_front * length, 0.975 * height),
        ((roof_front + roof_rear) / 2 * length, height),
        (roof_rear * length, 0.97 * height),
        (rear * length, belt - 0.06 * height),
    ]
    parts.append(prism(cabin, [foot, top, top, top, foot], color, pattern, PAINT_SHINE))

    low, high = belt / height + 0.015, 0.925

    def at(share: float, front: bool) -> tuple[float, float]:
        """x on the front or rear slope of the cabin and half its width, at a share of the height."""
        z0 = belt / height - 0.06
        t = (share - z0) / ((0.975 if front else 0.97) - z0)
        ends = (screen + 0.01, roof_front) if front else (rear, roof_rear)
        return (ends[0] + (ends[1] - ends[0]) * t) * length, foot + (top - foot) * t

    e = STAND_OFF
    for facing in (1.0, -1.0):
        (x0, y0), (x1, y1) = at(low, facing > 0), at(high, facing > 0)
        bottom, edge = (
            (x0 + facing * e, y0 - 0.07, low * height + e),
            (x1 + facing * e, y1 - 0.06, high * height + e),
        )
        parts.append(sheet(bottom, edge, facing, GLASS, gloss=SHINE))
    (f0, y0), (f1, y1), (r0, _), (r1, _) = at(low, True), at(high, True), at(low, False), at(high, False)
    panes = 3 if r1 < -0.36 * length and length > 4.3 else 2
    edges = np.linspace(0.06, 0.94, panes + 1)
    for k in range(panes):
        s, t = edges[k] + 0.012, edges[k + 1] - 0.012
        corners = [(f0 + (r0 - f0) * share, y0 + e, low * height) for share in (s, t)]
        corners += [(f1 + (r1 - f1) * share, y1 + e, high * height) for share in (t, s)]
        parts += pair(corners, (0, 1, 0), GLASS, gloss=SHINE)
    stations = ((0.5 - 0.185) * length, -(0.5 - 0.185) * length + 0.01 * length)
    parts += wheels(stations, half, wheel, 0.20)
    for x in stations:  # dark arches
        parts += pair(arc((x, skin - 0.012, wheel), 1.18 * wheel, -0.2, math.pi + 0.2, 7), (0, 1, 0), DARK)
    parts += lamps(a + 0.002, b - 0.002, skin - 0.07, 0.38 * height, 0.22 * width, 0.075 * height)
    grille = (a + 0.004, 0.5 * half, 0.25 * height), (a + 0.004, 0.45 * half, 0.37 * height)
    parts += [
        sheet(*grille, 1, DARK),
        plate(a + 0.008, 0.22 * height, 1),
        plate(b - 0.006, 0.40 * height, -1),
    ]
    mirror = box((0.10, 0.14, 0.10), (f0 - 0.05 * length, half - 0.05, belt + 0.05), color)
    return merge(parts + both(mirror))
