"""Models of buses and construction vehicles, and all vehicle classes in one table. Built standing on z = 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bevnext_world.models.car import car
from bevnext_world.models.lorry import trailer, truck
from bevnext_world.models.mesh import (
    Color,
    Mesh,
    Pattern,
    box,
    cylinder,
    merge,
    panel,
    prism,
    strut,
)
from bevnext_world.models.palette import (
    AMBER,
    DARK,
    GLASS,
    HEADLAMP,
    METAL,
    TYRE,
    Palette,
)
from bevnext_world.models.vehicle_parts import (
    SHINE,
    STAND_OFF,
    lamps,
    pair,
    wheels,
)


def bus(length: float, width: float, height: float, rng: np.random.Generator, palette: Palette) -> Mesh:
    """A bus or coach: rows of windows, doors on the right."""
    a, b, half = length / 2, -length / 2, width / 2 - 0.025
    color, pattern = palette.surface(rng)
    trim = palette.paint(rng)
    floor, top = 0.11 * height, 0.96 * height
    outline = [
        (b + 0.02, floor),
        (a - 0.05, floor),
        (a, 0.35 * height),
        (a - 0.12, 0.90 * height),
        (a - 0.35, top),
        (b + 0.15, top),
        (b, 0.9 * height),
    ]
    parts = [prism(outline, half, color, pattern, 0.25)]
    parts.append(
        box(
            (0.45 * length, 0.65 * width, height - top + 0.02),
            (float(rng.uniform(-0.2, 0.1)) * length, 0, (height + top) / 2),
            color,
            Pattern.PLAIN,
        )
    )
    low, high, e = 0.44 * height, 0.80 * height, STAND_OFF
    band = rng.random() < 0.5
    if band:
        stripe = [
            (b + 0.1, half + e / 2, 0.20 * height),
            (a - 0.12, half + e / 2, 0.20 * height),
            (a - 0.12, half + e / 2, 0.36 * height),
            (b + 0.1, half + e / 2, 0.36 * height),
        ]
        parts += pair(stripe, (0, 1, 0), trim)
    count = max(4, round(length / 1.55))
    edges = np.linspace(b + 0.035 * length, a - 0.05 * length, count + 1)
    doors = {count - 1, count // 2} if rng.random() < 0.7 else {count - 1}
    for k in range(count):
        x0, x1 = edges[k] + 0.05, edges[k + 1] - 0.05
        pane = [(x0, half + e, low), (x1, half + e, low), (x1, half + e, high), (x0, half + e, high)]
        parts.append(panel(pane, (0, 1, 0), GLASS, gloss=SHINE))
        bottom = 0.15 * height if k in doors else low
        right = [(x, -y, z if z != low else bottom) for x, y, z in pane]
        parts.append(panel(right, (0, -1, 0), GLASS, gloss=SHINE))
    shield = [
        (a - 0.01, -0.92 * half, 0.38 * height),
        (a - 0.01, 0.92 * half, 0.38 * height),
        (a - 0.10, 0.92 * half, 0.86 * height),
        (a - 0.10, -0.92 * half, 0.86 * height),
    ]
    parts.append(panel([(x + 3 * e, y, z) for x, y, z in shield], (1, 0, 0.1), GLASS, gloss=SHINE))
    sign = [
        (a - 0.085, y, z * height)
        for y, z in ((-0.6 * half, 0.88), (0.6 * half, 0.88), (0.6 * half, 0.935), (-0.6 * half, 0.935))
    ]
    parts.append(panel(sign, (1, 0, 0), AMBER, pattern=Pattern.LAMP))
    back = [
        (b - e, -0.8 * half, 0.55 * height),
        (b - e, 0.8 * half, 0.55 * height),
        (b - e, 0.8 * half, 0.82 * height),
        (b - e, -0.8 * half, 0.82 * height),
    ]
    parts.append(panel(back, (-1, 0, 0), GLASS, gloss=SHINE))
    vent = [
        (b - e, y, z * height)
        for y, z in ((-0.5 * half, 0.2), (0.5 * half, 0.2), (0.5 * half, 0.4), (-0.5 * half, 0.4))
    ]
    parts.append(panel(vent, (-1, 0, 0), DARK))
    parts += lamps(a - 0.01, b - e, half - 0.08, 0.20 * height, 0.3, 0.07 * height)
    wheel = min(0.155 * height, 0.5)
    parts += wheels((a - 0.22 * length, b + 0.25 * length), width / 2, wheel, 0.3)
    mirror = box((0.12, 0.15, 0.4), (a - 0.08, half - 0.06, 0.7 * height), DARK)
    return merge(parts + [mirror, mirror.mirrored("y")])


def construction_vehicle(
    length: float, width: float, height: float, rng: np.random.Generator, palette: Palette
) -> Mesh:
    """An excavator on tracks or a wheel loader."""
    color, pattern = palette.surface(rng)
    if rng.random() < 0.55:
        return _excavator(length, width, height, rng, color, pattern)
    return _loader(length, width, height, color, pattern)


def _operator_cab(
    center: tuple[float, float], size: tuple[float, float], bottom: float, top: float, color: Color
) -> list[Mesh]:
    (x, y), (dx, dy), e = center, size, STAND_OFF
    parts = [box((dx, dy, top - bottom), (x, y, (top + bottom) / 2), color, gloss=0.2, top=0.92)]
    low, high = bottom + 0.30 * (top - bottom), bottom + 0.90 * (top - bottom)

    def inset(z: float) -> float:
        return 1 - 0.08 * (z - bottom) / (top - bottom)

    for sx, sy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        corners = []
        for z, s in ((low, -1), (low, 1), (high, 1), (high, -1)):
            k = inset(z)
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
    parts = []
    for side in (-1, 1):
        y = side * (width / 2 - 0.11 * width)
        wide = 0.11 * width
        outline = [
            (x_house - 0.42 * house, 0.4 * track),
            (x_house - 0.36 * house, 0.0),
            (x_house + 0.42 * house, 0.0),
            (x_house + 0.5 * house, 0.4 * track),
            (x_house + 0.44 * house, track),
            (x_house - 0.38 * house, track),
        ]
        parts.append(prism(outline, wide, TYRE, Pattern.RIBS).moved(y=y))
        roll = [(x_house + s * 0.3 * house, y + side * (wide + 0.01), 0.5 * track) for s in (-1, 1)]
        for px, py, pz in roll:
            parts.append(
                panel(
                    [
                        (px + 0.3 * track * math.cos(t), py, pz + 0.3 * track * math.sin(t))
                        for t in np.linspace(0, 5.2, 6)
                    ],
                    (0, side, 0),
                    METAL,
                )
            )
    parts.append(box((0.4 * house, 0.45 * width, 0.12 * height), (x_house, 0, track + 0.02 * height), DARK))
    deck = track + 0.06 * height
    parts.append(
        box(
            (0.55 * house, 0.92 * width, 0.30 * height),
            (x_house - 0.22 * house, 0, deck + 0.15 * height),
            color,
            pattern,
            0.2,
            top=0.93,
        )
    )
    parts.append(
        box(
            (0.5 * house, 0.40 * width, 0.16 * height),
            (x_house + 0.25 * house, -0.2 * width, deck + 0.08 * height),
            color,
            pattern,
            0.2,
        )
    )
    parts += _operator_cab(
        (x_house + 0.22 * house, 0.24 * width), (0.42 * house, 0.40 * width), deck, 0.93 * height, color
    )
    elbow = (x_house + 0.52 * length * float(rng.uniform(0.5, 0.62)), -0.12 * width, height * 0.95)
    wrist = (length / 2 - 0.10 * length, -0.12 * width, 0.30 * height)
    shoulder = (x_house + 0.3 * house, -0.12 * width, deck + 0.12 * height)
    thick = 0.10 * height
    parts.append(strut(shoulder, elbow, (0.8 * thick, 1.3 * thick), color, pattern))
    parts.append(strut(elbow, wrist, (0.8 * thick, 1.1 * thick), color, pattern, taper=0.7))
    parts.append(
        strut(
            (shoulder[0] + 0.1 * house, shoulder[1], shoulder[2] - 0.05 * height),
            ((shoulder[0] + elbow[0]) / 2, elbow[1], (shoulder[2] + elbow[2]) / 2 - 0.02 * height),
            0.4 * thick,
            METAL,
        )
    )
    bucket = [
        (length / 2 - 0.16 * length, 0.32 * height),
        (length / 2 - 0.04 * length, 0.36 * height),
        (length / 2, 0.20 * height),
        (length / 2 - 0.05 * length, 0.04 * height),
        (length / 2 - 0.17 * length, 0.07 * height),
    ]
    parts.append(prism(bucket, 0.16 * width, DARK).moved(y=-0.12 * width))
    return merge(parts)


def _loader(length: float, width: float, height: float, color: Color, pattern: int) -> Mesh:
    a, b = length / 2, -length / 2
    wheel = 0.23 * height
    parts = wheels((0.14 * length, -0.30 * length), 0.46 * width, wheel, 0.24 * width, segments=10)
    engine = [
        (b, 0.22 * height),
        (0.05 * length, 0.22 * height),
        (0.05 * length, 0.55 * height),
        (b + 0.10 * length, 0.60 * height),
        (b, 0.50 * height),
    ]
    parts.append(prism(engine, 0.30 * width, color, pattern, 0.2))
    parts.append(
        box((0.22 * length, 0.40 * width, 0.22 * height), (0.15 * length, 0, 0.33 * height), color, pattern)
    )
    parts += _operator_cab((-0.06 * length, 0), (0.22 * length, 0.52 * width), 0.5 * height, height, color)
    bucket = [
        (a - 0.17 * length, 0.06 * height),
        (a, 0.03 * height),
        (a - 0.04 * length, 0.16 * height),
        (a - 0.11 * length, 0.36 * height),
        (a - 0.17 * length, 0.34 * height),
    ]
    parts.append(prism(bucket, width / 2, DARK, Pattern.NOISE))
    for y in (-0.2 * width, 0.2 * width):
        parts.append(
            strut(
                (0.06 * length, y, 0.52 * height),
                (0.24 * length, y, 0.50 * height),
                (0.06 * width, 0.09 * height),
                color,
            )
        )
        parts.append(
            strut(
                (0.23 * length, y, 0.52 * height),
                (a - 0.14 * length, y, 0.2 * height),
                (0.06 * width, 0.09 * height),
                color,
            )
        )
        lamp = box((0.06, 0.14, 0.1), (0.045 * length, 1.1 * y, 0.62 * height), HEADLAMP, Pattern.LAMP)
        parts.append(lamp)
    parts.append(
        cylinder(0.05, 0.2 * height, (b + 0.2 * length, 0.12 * width, 0.65 * height), color=DARK, segments=6)
    )
    return merge(parts)


MAKERS: dict[str, Callable[[float, float, float, np.random.Generator, Palette], Mesh]] = {
    "car": car,
    "truck": truck,
    "bus": bus,
    "trailer": trailer,
    "construction_vehicle": construction_vehicle,
}
"""Length, width, height, random state and palette to a mesh, by class."""
