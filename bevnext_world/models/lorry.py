# SPDX-License-Identifier: Apache-2.0
"""Models of trucks and trailers. Built standing on z = 0, centred in x and y."""

from __future__ import annotations

import numpy as np

from bevnext_world.models.mesh import Color, Mesh, Pattern, merge
from bevnext_world.models.palette import DARK, GLASS, METAL, TAILLAMP, draw_surface
from bevnext_world.models.parts import PAINT_SHINE, SHINE, STAND_OFF, both, lamp, pair, wheels
from bevnext_world.models.solids import box, cylinder, prism, sheet


def _cab(
    front: float, depth: float, width: float, height: float, floor: float, color: Color, pattern: int
) -> list[Mesh]:
    """A lorry's cab whose front is at x = ``front``."""
    back, half, tall = front - depth, width / 2 - 0.03, height - floor
    slant = 0.10 * depth
    outline = [
        *((back, floor), (front, floor), (front, floor + 0.45 * tall)),
        *((front - slant, height - 0.05), (front - 2 * slant, height), (back, height)),
    ]
    parts = [prism(outline, half, color, pattern, PAINT_SHINE)]
    low, high, e = floor + 0.50 * tall, floor + 0.86 * tall, STAND_OFF
    lean = slant / (0.55 * tall - 0.05)
    x0, x1 = front - lean * (0.05 * tall) + 2 * e, front - lean * (0.41 * tall) + 2 * e
    parts.append(sheet((x0, 0.9 * half, low), (x1, 0.86 * half, high), 1, GLASS, gloss=SHINE))
    rear = front - 0.62 * depth
    side = [(front - 0.14 * depth - slant * 0.2, half + e, low), (rear, half + e, low)]
    side += [(rear, half + e, high), (front - 0.14 * depth - slant, half + e, high)]
    parts += pair(side, (0, 1, 0), GLASS, gloss=SHINE)
    x, y = front + 0.006, 0.55 * half
    parts.append(sheet((x, y, floor + 0.25), (x, y, low - 0.2), 1, DARK))
    parts.append(box((0.16, 2 * half, 0.28), (front - 0.06, 0, floor + 0.06), DARK))
    parts += lamp(front + 0.03, (half - 0.42, half - 0.08), (floor + 0.02, floor + 0.17), 1)
    return parts + both(box((0.08, 0.12, 0.42), (front - 0.08 * depth, half - 0.03, low + 0.25), DARK))


def _rear_lamps(x: float, half: float, z: float) -> list[Mesh]:
    return lamp(x - 0.01, (half - 0.40, half - 0.06), (z, z + 0.15), -1)


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
) -> list[Mesh]:
    """What lies on a chassis from ``rear`` to ``front``, from ``floor`` up to ``height``."""
    color, pattern = draw_surface(rng)
    length, middle, tall, centre = front - rear, (front + rear) / 2, height - floor, (height + floor) / 2
    if kind == "box":
        seam = sheet((rear - 0.01, 0.02, floor + 0.05), (rear - 0.01, 0.02, height - 0.08), -1, DARK)
        parts = [box((length, width, tall), (middle, 0, centre), color, pattern), seam]
        for y in (-0.25 * width, 0.25 * width):
            parts.append(box((0.03, 0.04, 0.9 * tall), (rear - 0.005, y, centre), METAL))
        return parts
    if kind == "tank":
        rise = tall / 2
        parts = [_tank(rear, front, (0.5 * width, rise), floor + rise, color, pattern)]
        for share in (0.25, 0.5, 0.75):
            low, high = rear + share * length - 0.04, rear + share * length + 0.04
            parts.append(_tank(low, high, (0.505 * width, 1.01 * rise), floor + rise, METAL, 0))
        return [*parts, box((0.5, 0.4, 0.1), (middle, 0, height - 0.03), METAL)]
    if kind == "dump":  # open box with a bulkhead
        wall = 0.62 * tall
        outline = [
            *((rear, floor + 0.25 * wall), (rear + 0.10 * length, floor), (front, floor)),
            *((front, floor + wall), (rear, floor + wall)),
        ]
        size, place = (0.92 * length, 0.88 * width, 0.2), (middle, 0, floor + wall + 0.02)
        return [
            prism(outline, width / 2, color, pattern),
            box(size, place, (0.45, 0.38, 0.29), Pattern.FOLIAGE, top=0.6),
            box((0.12, width, tall), (front - 0.06, 0, centre), color, pattern),
        ]
    # Flatbed with a load.
    parts = [box((length, width, 0.16), (middle, 0, floor + 0.08), (0.38, 0.33, 0.27), Pattern.PLANKS)]
    parts.append(box((0.10, width, tall), (front - 0.05, 0, centre), METAL, Pattern.RIBS))
    x = rear + 0.05 * length
    while x < front - 0.2 * length:
        long = min(float(rng.uniform(0.15, 0.32)) * length, front - 0.15 - x)
        high = float(rng.uniform(0.25, 0.85)) * (tall - 0.2)
        load, texture = draw_surface(rng)
        size = (0.92 * long, float(rng.uniform(0.6, 0.92)) * width, high)
        parts.append(box(size, (x + long / 2, 0, floor + 0.16 + high / 2), load, texture))
        x += long
    return parts


def truck(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    """Cab and cargo: box, flatbed, tank or dump body; below 2.4 m height a delivery van or pickup."""
    a, b = length / 2, -length / 2
    color, pattern = draw_surface(rng)
    wheel = min(0.17 * height, 0.52)
    floor = 1.9 * wheel
    depth = min(max(0.26 * length, 1.6), 2.3)
    tall = height if rng.random() < 0.4 else float(rng.uniform(0.78, 0.95)) * height
    if height < 2.4:
        tall = 0.97 * height
    kind = str(rng.choice(["box", "box", "box", "flatbed", "dump", "tank"]))
    parts = _cab(a, depth, width, tall, 0.75 * wheel + 0.1, color, pattern)
    parts.append(box((length - 0.3, 0.5 * width, 0.28), (-0.1, 0, floor - 0.16), DARK))
    parts += _cargo(b + 0.03, a - depth - 0.12, width - 0.03, floor, height, kind, rng)
    stations = [a - 0.55 * depth - 0.15, b + 0.20 * length]
    if length > 7.5:
        stations.append(b + 0.20 * length - 2.3 * wheel)
    parts += wheels(stations, width / 2, wheel, 0.32)
    parts.append(box((0.22 * length, 0.9 * width, 0.35), (0.02 * length, 0, floor - 0.3), DARK))
    parts += _rear_lamps(b + 0.02, width / 2 - 0.04, floor - 0.28)
    return merge([*parts, box((0.08, 0.94 * width, 0.16), (b + 0.05, 0, floor - 0.35), DARK)])


def trailer(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    """A semitrailer without its tractor: box, tank, flatbed or dump body on rear axles and landing gear."""
    a, b = length / 2, -length / 2
    wheel = min(0.13 * height, 0.5)
    floor = 2.3 * wheel
    kind = str(rng.choice(["box", "box", "box", "tank", "flatbed", "dump"]))
    parts = _cargo(b + 0.02, a, width, floor, height, kind, rng)
    parts.append(box((length - 0.2, 0.35 * width, 0.25), (0, 0, floor - 0.13), DARK))
    axles = 3 if length > 10 else (2 if length > 5 else 1)
    parts += wheels([b + 0.12 * length + 2.25 * wheel * k for k in range(axles)], width / 2, wheel, 0.34)
    for y in (-0.3 * width, 0.3 * width):
        parts.append(box((0.16, 0.14, floor - 0.1), (a - 0.22 * length, y, (floor - 0.1) / 2), METAL))
    parts.append(box((0.08, 0.92 * width, 0.14), (b + 0.06, 0, 0.55 * floor), TAILLAMP, Pattern.HAZARD))
    parts.append(box((0.1, 0.1, 0.4), (b + 0.1, 0, 0.75 * floor), DARK))
    return merge(parts + _rear_lamps(b + 0.01, width / 2 - 0.03, 0.8 * floor))
