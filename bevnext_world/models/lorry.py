"""Models of trucks and trailers. Built standing on z = 0, centred in x and y."""

from __future__ import annotations

import numpy as np

from bevnext_world.models.mesh import (
    Color,
    Mesh,
    Pattern,
    box,
    cylinder,
    merge,
    panel,
    prism,
)
from bevnext_world.models.palette import (
    DARK,
    GLASS,
    HEADLAMP,
    METAL,
    TAILLAMP,
    Palette,
)
from bevnext_world.models.vehicle_parts import (
    PAINT_SHINE,
    SHINE,
    STAND_OFF,
    pair,
    wheels,
)


def _cab(
    front: float, depth: float, width: float, height: float, floor: float, color: Color, pattern: int
) -> list[Mesh]:
    """A lorry's cab whose front is at x = ``front``."""
    back, half = front - depth, width / 2 - 0.03
    slant = 0.10 * depth
    outline = [
        (back, floor),
        (front, floor),
        (front, floor + 0.45 * (height - floor)),
        (front - slant, height - 0.05),
        (front - 2 * slant, height),
        (back, height),
    ]
    parts = [prism(outline, half, color, pattern, PAINT_SHINE)]
    low, high, e = floor + 0.50 * (height - floor), floor + 0.86 * (height - floor), STAND_OFF
    lean = slant / (0.55 * (height - floor) - 0.05)
    x0 = front - lean * (0.05 * (height - floor)) + 2 * e
    x1 = front - lean * (0.41 * (height - floor)) + 2 * e
    parts.append(
        panel(
            [
                (x0, -0.9 * half, low),
                (x0, 0.9 * half, low),
                (x1, 0.86 * half, high),
                (x1, -0.86 * half, high),
            ],
            (1, 0, 0.2),
            GLASS,
            gloss=SHINE,
        )
    )
    side = [
        (front - 0.14 * depth - slant * 0.2, half + e, low),
        (front - 0.62 * depth, half + e, low),
        (front - 0.62 * depth, half + e, high),
        (front - 0.14 * depth - slant, half + e, high),
    ]
    parts += pair(side, (0, 1, 0), GLASS, gloss=SHINE)
    grille = [
        (front + 0.006, s * 0.55 * half, z)
        for s, z in ((-1, floor + 0.25), (1, floor + 0.25), (1, low - 0.2), (-1, low - 0.2))
    ]
    parts.append(panel(grille, (1, 0, 0), DARK))
    parts.append(box((0.16, 2 * half, 0.28), (front - 0.06, 0, floor + 0.06), DARK))
    lamp = [
        (front + 0.03, half - 0.42, floor + 0.02),
        (front + 0.03, half - 0.08, floor + 0.02),
        (front + 0.03, half - 0.08, floor + 0.17),
        (front + 0.03, half - 0.42, floor + 0.17),
    ]
    parts += pair(lamp, (1, 0, 0), HEADLAMP, pattern=Pattern.LAMP)
    mirror = box((0.08, 0.12, 0.42), (front - 0.08 * depth, half - 0.03, low + 0.25), DARK)
    return parts + [mirror, mirror.mirrored("y")]


def _rear_lamps(x: float, half: float, z: float) -> list[Mesh]:
    lamp = [
        (x - 0.01, half - 0.40, z),
        (x - 0.01, half - 0.06, z),
        (x - 0.01, half - 0.06, z + 0.15),
        (x - 0.01, half - 0.40, z + 0.15),
    ]
    return pair(lamp, (-1, 0, 0), TAILLAMP, pattern=Pattern.LAMP)


def _tank(
    rear: float, front: float, radius: tuple[float, float], z: float, color: Color, pattern: int
) -> Mesh:
    """A lying tank; ``radius`` sideways and upwards."""
    tube = cylinder(1.0, front - rear, (0, 0, 0), "x", color, pattern, 0.5, segments=12)
    matrix = np.diag([1.0, radius[0], radius[1], 1.0])
    matrix[0, 3], matrix[2, 3] = (front + rear) / 2, z
    return tube.transformed(matrix)


def _cargo(
    rear: float,
    front: float,
    width: float,
    floor: float,
    height: float,
    kind: str,
    rng: np.random.Generator,
    palette: Palette,
) -> list[Mesh]:
    """What lies on a chassis from ``rear`` to ``front``, from ``floor`` up to ``height``."""
    color, pattern = palette.surface(rng)
    length, middle = front - rear, (front + rear) / 2
    if kind == "box":
        parts = [box((length, width, height - floor), (middle, 0, (height + floor) / 2), color, pattern)]
        seam = [
            (rear - 0.01, y, z)
            for y, z in (
                (-0.02, floor + 0.05),
                (0.02, floor + 0.05),
                (0.02, height - 0.08),
                (-0.02, height - 0.08),
            )
        ]
        parts.append(panel(seam, (-1, 0, 0), DARK))
        for y in (-0.25 * width, 0.25 * width):
            parts.append(
                box((0.03, 0.04, 0.9 * (height - floor)), (rear - 0.005, y, (height + floor) / 2), METAL)
            )
        return parts
    if kind == "tank":
        rise = (height - floor) / 2
        parts = [_tank(rear, front, (0.5 * width, rise), floor + rise, color, pattern)]
        for share in (0.25, 0.5, 0.75):
            parts.append(
                _tank(
                    rear + share * length - 0.04,
                    rear + share * length + 0.04,
                    (0.505 * width, 1.01 * rise),
                    floor + rise,
                    METAL,
                    0,
                )
            )
        parts.append(box((0.5, 0.4, 0.1), (middle, 0, height - 0.03), METAL))
        return parts
    if kind == "dump":  # open box with a bulkhead
        wall = 0.62 * (height - floor)
        outline = [
            (rear, floor + 0.25 * wall),
            (rear + 0.10 * length, floor),
            (front, floor),
            (front, floor + wall),
            (rear, floor + wall),
        ]
        parts = [prism(outline, width / 2, color, pattern)]
        parts.append(
            box(
                (0.92 * length, 0.88 * width, 0.2),
                (middle, 0, floor + wall + 0.02),
                (0.45, 0.38, 0.29),
                Pattern.FOLIAGE,
                top=0.6,
            )
        )
        parts.append(
            box((0.12, width, height - floor), (front - 0.06, 0, (height + floor) / 2), color, pattern)
        )
        return parts
    # Flatbed with a load.
    parts = [box((length, width, 0.16), (middle, 0, floor + 0.08), (0.38, 0.33, 0.27), Pattern.PLANKS)]
    parts.append(
        box((0.10, width, height - floor), (front - 0.05, 0, (height + floor) / 2), METAL, Pattern.RIBS)
    )
    x = rear + 0.05 * length
    while x < front - 0.2 * length:
        size = min(float(rng.uniform(0.15, 0.32)) * length, front - 0.15 - x)
        tall = float(rng.uniform(0.25, 0.85)) * (height - floor - 0.2)
        load, texture = palette.surface(rng)
        parts.append(
            box(
                (0.92 * size, float(rng.uniform(0.6, 0.92)) * width, tall),
                (x + size / 2, 0, floor + 0.16 + tall / 2),
                load,
                texture,
            )
        )
        x += size
    return parts


def truck(length: float, width: float, height: float, rng: np.random.Generator, palette: Palette) -> Mesh:
    """Cab and cargo: box, flatbed, tank or dump body; below 2.4 m height a delivery van or pickup."""
    a, b = length / 2, -length / 2
    color, pattern = palette.surface(rng)
    wheel = min(0.17 * height, 0.52)
    floor = 1.9 * wheel
    depth = min(max(0.26 * length, 1.6), 2.3)
    tall = height if rng.random() < 0.4 else float(rng.uniform(0.78, 0.95)) * height
    if height < 2.4:
        tall = 0.97 * height
    kind = str(rng.choice(["box", "box", "box", "flatbed", "dump", "tank"]))
    parts = _cab(a, depth, width, tall, 0.75 * wheel + 0.1, color, pattern)
    rear_half = width / 2 - 0.04
    parts.append(box((length - 0.3, 0.5 * width, 0.28), (-0.1, 0, floor - 0.16), DARK))
    parts += _cargo(b + 0.03, a - depth - 0.12, width - 0.03, floor, height, kind, rng, palette)
    stations = [a - 0.55 * depth - 0.15, b + 0.20 * length]
    if length > 7.5:
        stations.append(b + 0.20 * length - 2.3 * wheel)
    parts += wheels(stations, width / 2, wheel, 0.32)
    skirt = box((0.22 * length, 0.9 * width, 0.35), (0.02 * length, 0, floor - 0.3), DARK)
    parts.append(skirt)
    parts += _rear_lamps(b + 0.02, rear_half, floor - 0.28)
    parts.append(box((0.08, 0.94 * width, 0.16), (b + 0.05, 0, floor - 0.35), DARK))
    return merge(parts)


def trailer(length: float, width: float, height: float, rng: np.random.Generator, palette: Palette) -> Mesh:
    """A semitrailer without its tractor: box, tank, flatbed or dump body on rear axles and landing gear."""
    a, b = length / 2, -length / 2
    wheel = min(0.13 * height, 0.5)
    floor = 2.3 * wheel
    kind = str(rng.choice(["box", "box", "box", "tank", "flatbed", "dump"]))
    parts = _cargo(b + 0.02, a, width, floor, height, kind, rng, palette)
    parts.append(box((length - 0.2, 0.35 * width, 0.25), (0, 0, floor - 0.13), DARK))
    axles = 3 if length > 10 else (2 if length > 5 else 1)
    stations = [b + 0.12 * length + 2.25 * wheel * k for k in range(axles)]
    parts += wheels(stations, width / 2, wheel, 0.34)
    for y in (-0.3 * width, 0.3 * width):
        parts.append(box((0.16, 0.14, floor - 0.1), (a - 0.22 * length, y, (floor - 0.1) / 2), METAL))
    parts.append(box((0.08, 0.92 * width, 0.14), (b + 0.06, 0, 0.55 * floor), TAILLAMP, Pattern.HAZARD))
    parts.append(box((0.1, 0.1, 0.4), (b + 0.1, 0, 0.75 * floor), DARK))
    parts += _rear_lamps(b + 0.01, width / 2 - 0.03, 0.8 * floor)
    return merge(parts)
