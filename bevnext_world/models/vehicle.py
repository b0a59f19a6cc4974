# SPDX-License-Identifier: Apache-2.0
"""Models of buses and construction vehicles, and all vehicle classes in one table. Built standing on z = 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bevnext_world.models.car import car
from bevnext_world.models.lorry import trailer, truck
from bevnext_world.models.mesh import Color, Mesh, Pattern, merge
from bevnext_world.models.palette import AMBER, DARK, GLASS, HEADLAMP, METAL, TYRE, draw_paint, draw_surface
from bevnext_world.models.parts import SHINE, STAND_OFF, both, flank, lamps, pair, wheels
from bevnext_world.models.solids import arc, box, cylinder, panel, prism, sheet, strut


def bus(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    """A bus or coach: rows of windows, doors on the right."""
    a, b, half = length / 2, -length / 2, width / 2 - 0.025
    color, pattern = draw_surface(rng)
    trim = draw_paint(rng)
    floor, top = 0.11 * height, 0.96 * height
    outline = [
        *((b + 0.02, floor), (a - 0.05, floor), (a, 0.35 * height), (a - 0.12, 0.90 * height)),
        *((a - 0.35, top), (b + 0.15, top), (b, 0.9 * height)),
    ]
    parts = [prism(outline, half, color, pattern, 0.25)]
    size = (0.45 * length, 0.65 * width, height - top + 0.02)
    parts.append(box(size, (float(rng.uniform(-0.2, 0.1)) * length, 0, (height + top) / 2), color))
    low, high, e = 0.44 * height, 0.80 * height, STAND_OFF
    if rng.random() < 0.5:
        stripe = flank(half + e / 2, (b + 0.1, a - 0.12), (0.20 * height, 0.36 * height))
        parts += pair(stripe, (0, 1, 0), trim)
    count = max(4, round(length / 1.55))
    edges = np.linspace(b + 0.035 * length, a - 0.05 * length, count + 1)
    doors = {count - 1, count // 2} if rng.random() < 0.7 else {count - 1}
    for k in range(count):
        span = (edges[k] + 0.05, edges[k + 1] - 0.05)
        parts.append(panel(flank(half + e, span, (low, high)), (0, 1, 0), GLASS, gloss=SHINE))
        right = flank(-(half + e), span, (0.15 * height if k in doors else low, high))
        parts.append(panel(right, (0, -1, 0), GLASS, gloss=SHINE))
    shield = (a - 0.01 + 3 * e, 0.92 * half, 0.38 * height), (a - 0.10 + 3 * e, 0.92 * half, 0.86 * height)
    parts.append(sheet(*shield, 1, GLASS, gloss=SHINE))
    for x, y, bottom, edge, facing, look in (
        (a - 0.085, 0.6 * half, 0.88, 0.935, 1, (AMBER, Pattern.LAMP)),  # sign
        (b - e, 0.8 * half, 0.55, 0.82, -1, (GLASS, Pattern.PLAIN, SHINE)),
        (b - e, 0.5 * half, 0.2, 0.4, -1, (DARK,)),  # vent
    ):
        parts.append(sheet((x, y, bottom * height), (x, y, edge * height), facing, *look))
    parts += lamps(a - 0.01, b - e, half - 0.08, 0.20 * height, 0.3, 0.07 * height)
    parts += wheels((a - 0.22 * length, b + 0.25 * length), width / 2, min(0.155 * height, 0.5), 0.3)
    return merge(parts + both(box((0.12, 0.15, 0.4), (a - 0.08, half - 0.06, 0.7 * height), DARK)))


def construction_vehicle(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    """An excavator on tracks or a wheel loader."""
    color, pattern = draw_surface(rng)
    if rng.random() < 0.55:
        return _excavator(length, width, height, rng, color, pattern)
    return _loader(length, width, height, color, pattern)


def _operator_cab(
    center: tuple[float, float], size: tuple[float, float], bottom: float, top: float, color: Color
) -> list[Mesh]:
    (x, y), (dx, dy), e = center, size, STAND_OFF
    parts = [box((dx, dy, top - bottom), (x, y, (top + bottom) / 2), color, gloss=0.2, top=0.92)]
    low, high = bottom + 0.30 * (top - bottom), bottom + 0.90 * (top - bottom)
    for sx, sy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        corners = []
        for z, s in ((low, -1), (low, 1), (high, 1), (high, -1)):
            k = 1 - 0.08 * (z - bottom) / (top - bottom)  # narrower towards the roof
            px = x + k * (dx / 2 if sx else 0.42 * dx * s) * (sx or 1) + e * sx
            py = y + k * (dy / 2 if sy else 0.42 * dy * s) * (sy or 1) + e * sy
            corners.append((px, py, z))
        parts.append(panel(corners, (sx, sy, 0), GLASS, gloss=SHINE))
    return parts


def _excavator(
    length: float, width: float, height: float, rng: np.random.Generator, color: Color, pattern: int
) -> Mesh:
    track, house = 0.24 * height, 0.55 * length
    x_house = -length / 2 + house / 2
    deck, wide, boom = track + 0.06 * height, 0.11 * width, -0.12 * width
    outline = [(-0.42, 0.4), (-0.36, 0.0), (0.42, 0.0), (0.5, 0.4), (0.44, 1.0), (-0.38, 1.0)]
    parts = []
    for side in (-1, 1):
        y = side * (width / 2 - wide)
        belt = [(x_house + x * house, z * track) for x, z in outline]
        parts.append(prism(belt, wide, TYRE, Pattern.RIBS).moved(y=y))
        for s in (-1, 1):
            roller = (x_house + s * 0.3 * house, y + side * (wide + 0.01), 0.5 * track)
            parts.append(panel(arc(roller, 0.3 * track, 0, 5.2, 6), (0, side, 0), METAL))
    parts.append(box((0.4 * house, 0.45 * width, 0.12 * height), (x_house, 0, track + 0.02 * height), DARK))
    body = (0.55 * house, 0.92 * width, 0.30 * height), (x_house - 0.22 * house, 0, deck + 0.15 * height)
    parts.append(box(*body, color, pattern, 0.2, top=0.93))
    place = (x_house + 0.25 * house, -0.2 * width, deck + 0.08 * height)
    parts.append(box((0.5 * house, 0.40 * width, 0.16 * height), place, color, pattern, 0.2))
    cab = (x_house + 0.22 * house, 0.24 * width), (0.42 * house, 0.40 * width)
    parts += _operator_cab(*cab, deck, 0.93 * height, color)
    elbow = (x_house + 0.52 * length * float(rng.uniform(0.5, 0.62)), boom, height * 0.95)
    wrist = (length / 2 - 0.10 * length, boom, 0.30 * height)
    shoulder = (x_house + 0.3 * house, boom, deck + 0.12 * height)
    thick = 0.10 * height
    parts.append(strut(shoulder, elbow, (0.8 * thick, 1.3 * thick), color, pattern))
    parts.append(strut(elbow, wrist, (0.8 * thick, 1.1 * thick), color, pattern, taper=0.7))
    piston = (shoulder[0] + 0.1 * house, boom, shoulder[2] - 0.05 * height)
    grip = ((shoulder[0] + elbow[0]) / 2, boom, (shoulder[2] + elbow[2]) / 2 - 0.02 * height)
    parts.append(strut(piston, grip, 0.4 * thick, METAL))
    shape = [(0.16, 0.32), (0.04, 0.36), (0.0, 0.20), (0.05, 0.04), (0.17, 0.07)]
    bucket = [(length / 2 - x * length, z * height) for x, z in shape]
    return merge([*parts, prism(bucket, 0.16 * width, DARK).moved(y=boom)])


def _loader(length: float, width: float, height: float, color: Color, pattern: int) -> Mesh:
    a, b = length / 2, -length / 2
    parts = wheels((0.14 * length, -0.30 * length), 0.46 * width, 0.23 * height, 0.24 * width, segments=10)
    engine = [
        *((b, 0.22 * height), (0.05 * length, 0.22 * height), (0.05 * length, 0.55 * height)),
        *((b + 0.10 * length, 0.60 * height), (b, 0.50 * height)),
    ]
    parts.append(prism(engine, 0.30 * width, color, pattern, 0.2))
    front = (0.22 * length, 0.40 * width, 0.22 * height), (0.15 * length, 0, 0.33 * height)
    parts.append(box(*front, color, pattern))
    parts += _operator_cab((-0.06 * length, 0), (0.22 * length, 0.52 * width), 0.5 * height, height, color)
    shape = [(0.17, 0.06), (0.0, 0.03), (0.04, 0.16), (0.11, 0.36), (0.17, 0.34)]
    parts.append(prism([(a - x * length, z * height) for x, z in shape], width / 2, DARK, Pattern.NOISE))
    beam = (0.06 * width, 0.09 * height)
    for y in (-0.2 * width, 0.2 * width):
        lower = (0.06 * length, y, 0.52 * height), (0.24 * length, y, 0.50 * height)
        upper = (0.23 * length, y, 0.52 * height), (a - 0.14 * length, y, 0.2 * height)
        parts += [strut(*lower, beam, color), strut(*upper, beam, color)]
        lamp = (0.045 * length, 1.1 * y, 0.62 * height)
        parts.append(box((0.06, 0.14, 0.1), lamp, HEADLAMP, Pattern.LAMP))
    exhaust = (b + 0.2 * length, 0.12 * width, 0.65 * height)
    return merge([*parts, cylinder(0.05, 0.2 * height, exhaust, color=DARK, segments=6)])


MAKERS: dict[str, Callable[[float, float, float, np.random.Generator], Mesh]] = {
    "car": car,
    "truck": truck,
    "bus": bus,
    "trailer": trailer,
    "construction_vehicle": construction_vehicle,
}
"""Length, width, height, random state to a mesh, by class."""
