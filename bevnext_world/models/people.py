# SPDX-License-Identifier: Apache-2.0
"""Pedestrians, and motorcycles and bicycles with or without a rider. Built standing on z = 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bevnext_world.models.mesh import Color, Mesh, Pattern, merge
from bevnext_world.models.palette import DARK, GLASS, HEADLAMP, METAL, TAILLAMP, TYRE, draw_paint, draw_skin
from bevnext_world.models.solids import arc, box, cylinder, ellipsoid, panel, ring, sheet, strut

Spot = tuple[float, float]
"""x, z."""


@dataclass(frozen=True)
class Look:
    """What a person wears and carries. ``stride`` in rad: how far the legs swing."""

    skin: Color
    hair: Color
    top: Color
    legs: Color
    shoes: Color
    skirt: bool
    coat: bool
    bag: Color | None
    stride: float
    build: float


def draw_look(rng: np.random.Generator) -> Look:
    """A person drawn from ``rng``."""
    return Look(
        skin=draw_skin(rng),
        hair=(0.12, 0.09, 0.07) if rng.random() < 0.6 else draw_paint(rng),
        top=draw_paint(rng),
        legs=draw_paint(rng) if rng.random() < 0.4 else (0.15, 0.17, 0.25) if rng.random() < 0.6 else DARK,
        shoes=DARK if rng.random() < 0.7 else (0.85, 0.85, 0.85),
        skirt=bool(rng.random() < 0.15),
        coat=bool(rng.random() < 0.3),
        bag=draw_paint(rng) if rng.random() < 0.35 else None,
        stride=float(rng.uniform(0.38, 0.55)),
        build=float(rng.uniform(0.88, 1.15)),
    )


def _head(look: Look, x: float, z: float, helmet: Color | None = None) -> list[Mesh]:
    face = ellipsoid((0.095, 0.08, 0.125), (x, 0, z), look.skin, segments=6, rings=4)
    if not helmet:
        return [
            face,
            ellipsoid((0.105, 0.092, 0.105), (x - 0.015, 0, z + 0.035), look.hair, segments=6, rings=4),
        ]
    cap = ellipsoid((0.14, 0.12, 0.14), (x - 0.005, 0, z + 0.02), helmet, gloss=0.5, segments=6, rings=4)
    visor = sheet((x + 0.132, 0.07, z - 0.03), (x + 0.125, 0.07, z + 0.05), 1, GLASS, gloss=0.9)
    return [face, cap, visor]


def _limb(start, middle, end, thick: float, color: Color, pattern: int = Pattern.CLOTH) -> list[Mesh]:
    return [
        strut(start, middle, thick, color, pattern, taper=0.85),
        strut(middle, end, 0.82 * thick, color, pattern, taper=0.75),
    ]


def person(look: Look, phase: float) -> Mesh:
    """A walking person of about 1.75 m; at phase 0 the stride is longest."""
    swing = look.stride * math.cos(2 * math.pi * phase)
    lift = math.sin(2 * math.pi * phase)
    wide = 0.5 * 0.40 * look.build
    hip, shoulder = 0.90, 1.42
    parts: list[Mesh] = []
    for side in (-1.0, 1.0):
        angle = side * swing
        y = side * 0.095
        bend = 0.20 + 0.45 * max(0.0, -side * lift)  # the leg that swings forward bends
        knee = (0.45 * math.sin(angle + 0.5 * bend), y, hip - 0.45 * math.cos(angle + 0.5 * bend))
        shin = angle - 0.5 * bend
        foot = (knee[0] + 0.42 * math.sin(shin), y, max(0.06, knee[2] - 0.42 * math.cos(shin)))
        parts += _limb((0, y, hip), knee, foot, 0.155 * look.build, look.skin if look.skirt else look.legs)
        parts.append(box((0.26, 0.10, 0.09), (foot[0] + 0.05, y, foot[2] - 0.015), look.shoes))
        arm = -0.8 * angle
        elbow = (0.29 * math.sin(arm), side * (wide + 0.06), shoulder - 0.29 * math.cos(arm))
        x, z = elbow[0] + 0.26 * math.sin(arm + 0.4), elbow[2] - 0.26 * math.cos(arm + 0.4)
        hand = (x, side * (wide + 0.07), z)
        parts += _limb((0, side * (wide + 0.02), shoulder), elbow, hand, 0.105 * look.build, look.top)
        parts.append(box((0.08, 0.06, 0.10), (hand[0], hand[1], hand[2] - 0.03), look.skin))
    parts.append(box((0.20 * look.build, 2.0 * wide, 0.58), (0, 0, 1.18), look.top, Pattern.CLOTH))
    parts.append(box((0.2 * look.build, 1.7 * wide, 0.07), (0, 0, 1.49), look.top, Pattern.CLOTH, top=0.45))
    parts.append(cylinder(0.05, 0.1, (0.01, 0, 1.54), color=look.skin, segments=5, caps=False))
    if look.skirt or look.coat:
        color = look.legs if look.skirt else look.top
        parts.append(box((0.34, 2.2 * wide, 0.42), (0, 0, 0.74), color, Pattern.CLOTH, top=(0.62, 0.85)))
    if look.bag is not None:
        parts.append(box((0.16, 0.28, 0.40), (-0.17, 0, 1.25), look.bag, Pattern.CLOTH))
    return merge(parts + _head(look, 0.02, 1.67))


def _seated(look: Look, seat: Spot, bar: Spot, pedal: Spot, top: float, helmet: Color | None) -> list[Mesh]:
    """A rider: hips at ``seat``, hands at ``bar``, feet at ``pedal`` (x, z), head up to ``top``."""
    hip_x, hip_z = seat
    head_z = top - 0.16
    lean = 0.28 * (bar[0] - hip_x)
    neck = (hip_x + lean, 0.0, head_z - 0.22)
    parts = [strut((hip_x, 0, hip_z), neck, (0.36 * look.build, 0.22), look.top, Pattern.CLOTH, taper=0.95)]
    for side in (-1.0, 1.0):
        knee = (hip_x + 0.62 * (pedal[0] - hip_x) + 0.28, side * 0.15, hip_z + 0.35 * (pedal[1] - hip_z))
        foot = (pedal[0] + 0.03 * side, side * 0.13, pedal[1] + (0.06 if side > 0 else 0.0))
        parts += _limb((hip_x, side * 0.10, hip_z), knee, foot, 0.15, look.legs)
        parts.append(box((0.25, 0.09, 0.09), (foot[0] + 0.05, foot[1], foot[2]), look.shoes))
        shoulder = (neck[0], side * 0.21, neck[2] - 0.03)
        elbow = ((neck[0] + bar[0]) / 2 - 0.05, side * 0.28, (neck[2] + bar[1]) / 2 - 0.08)
        parts += _limb(shoulder, elbow, (bar[0], side * 0.25, bar[1]), 0.10, look.top)
    return parts + _head(look, neck[0] + 0.06, head_z, helmet)


def motorcycle(length: float, width: float, height: float, rng: np.random.Generator, rider: bool) -> Mesh:
    """A motorcycle or scooter."""
    color = draw_paint(rng)
    base = min(height, 1.15) if not rider else min(0.68 * height, 1.15)
    wheel = 0.27 * base + 0.02
    front, rear = length / 2 - wheel, -length / 2 + wheel
    seat, bar = 0.68 * base, 0.93 * base
    parts = [cylinder(wheel, 0.14, (x, 0, wheel), "y", TYRE, segments=12) for x in (front, rear)]
    for x in (front, rear):
        for side in (-1, 1):
            hub = arc((x, side * 0.073, wheel), 0.6 * wheel, 0, 5.5, 8)
            parts.append(panel(hub, (0, side, 0), METAL, gloss=0.3))
    middle = (front + rear) / 2
    if rng.random() < 0.35:  # scooter: leg shield and a closed tail
        shield = (0.08, 0.40, 0.45 * base), (front - 0.85 * wheel, 0, 0.62 * base)
        tail = (0.36 * length, 0.30, 0.36 * base), (rear + 0.25 * wheel, 0, 0.48 * base)
        parts.append(box((0.45 * length, 0.32, 0.10), (middle, 0, wheel), color, gloss=0.4))
        parts += [box(*shield, color, gloss=0.4, top=0.8), box(*tail, color, gloss=0.4, top=0.85)]
    else:
        engine = (0.30 * length, 0.28, 0.32 * base), (middle, 0, 0.38 * base)
        tank = (0.17 * length, 0.15, 0.16 * base), (middle + 0.07 * length, 0, 0.70 * base)
        tail = (0.26 * length, 0.20, 0.10 * base), (rear + 0.3 * wheel, 0, 0.66 * base)
        exhaust = (rear + 0.45 * wheel, -0.14, 0.26 * base)
        parts.append(box(*engine, DARK, Pattern.PANELS, 0.3))
        parts += [ellipsoid(*tank, color, gloss=0.6, segments=8), box(*tail, color, gloss=0.5)]
        parts.append(cylinder(0.05, 0.4 * length, exhaust, "x", METAL, gloss=0.6, segments=6))
    parts.append(box((0.34 * length, 0.24, 0.07), (middle - 0.16 * length, 0, seat), DARK))
    for side in (-1, 1):
        fork = (front, side * 0.09, wheel), (front - 0.16 * length, side * 0.09, bar - 0.04)
        parts.append(strut(*fork, 0.05, METAL, gloss=0.5))
    handle = front - 0.17 * length
    parts.append(strut((handle, -width / 2, bar), (handle, width / 2, bar), 0.045, DARK))
    parts.append(ellipsoid((0.08, 0.10, 0.09), (handle + 0.12, 0, 0.82 * base), color, segments=6))
    lamp = arc((handle + 0.205, 0, 0.82 * base), 0.08, 0, 5.2, 6, "x")
    parts.append(panel(lamp, (1, 0, 0), HEADLAMP, pattern=Pattern.LAMP))
    parts.append(box((0.05, 0.14, 0.07), (rear - 0.35 * wheel, 0, 0.62 * base), TAILLAMP, Pattern.LAMP))
    for side in (-1, 1):
        x, y = handle - 0.03, side * 0.40 * width
        parts.append(strut((handle, side * 0.3 * width, bar), (x, y, base), 0.02, DARK))
        parts.append(box((0.03, 0.12, 0.08), (x, y, base - 0.04), DARK))
    if rider:
        look, hips = draw_look(rng), (middle - 0.15 * length, seat + 0.08)
        hands, feet = (handle, bar + 0.02), (middle, 0.28 * base)
        parts += _seated(look, hips, hands, feet, height, draw_paint(rng))
    return merge(parts)


def bicycle(length: float, width: float, height: float, rng: np.random.Generator, rider: bool) -> Mesh:
    """A bicycle: open wheels, a frame of tubes."""
    color = draw_paint(rng)
    base = min(height, 1.1) if not rider else min(0.62 * height, 1.1)
    wheel = min(0.21 * length, 0.34 * base)
    front, rear = length / 2 - wheel, -length / 2 + wheel
    seat_z, bar_z = 0.86 * base, 0.97 * base
    crank = ((front + rear) / 2 - 0.03 * length, 0.30 * base)
    saddle = (crank[0] - 0.11 * length, seat_z)
    head = (front - 0.13 * length, bar_z)
    joint = (head[0] + 0.012 * length, 0.80 * base)
    stay = (crank[0] - 0.085 * length, 0.72 * base)
    parts: list[Mesh] = []
    for x in (front, rear):
        parts.append(ring(wheel, 0.84 * wheel, 0.05, (x, 0, wheel), TYRE))
        for k in range(3):
            angle = math.pi * k / 3 + 0.3
            dx, dz = 0.9 * wheel * math.cos(angle), 0.9 * wheel * math.sin(angle)
            parts.append(strut((x - dx, 0, wheel - dz), (x + dx, 0, wheel + dz), 0.012, METAL))
    tube, axle = 0.045, (rear, wheel)
    for (x0, z0), (x1, z1), thick in (
        *((crank, saddle, tube), (crank, joint, 1.2 * tube), (stay, joint, tube)),
        *((crank, axle, tube), (stay, axle, 0.8 * tube), ((front, wheel), head, tube)),
    ):
        parts.append(strut((x0, 0, z0), (x1, 0, z1), thick, color, gloss=0.4))
    parts.append(strut((head[0], -width / 2, bar_z), (head[0], width / 2, bar_z), 0.04, DARK))
    parts.append(box((0.26, 0.14, 0.05), (saddle[0], 0, base - 0.025 if not rider else seat_z + 0.02), DARK))
    parts.append(cylinder(0.10, 0.03, (crank[0], 0, crank[1]), "y", METAL, segments=8))
    if rng.random() < 0.35:
        basket = (0.30, 0.34, 0.22), (head[0] + 0.17, 0, bar_z - 0.16)
        parts.append(box(*basket, draw_paint(rng), Pattern.PLANKS))
    if rng.random() < 0.5:
        parts.append(box((0.34, 0.12, 0.03), (rear - 0.02, 0, 2 * wheel + 0.05), DARK))
    if rider:
        look = draw_look(rng)
        helmet = draw_paint(rng) if rng.random() < 0.5 else None
        hips, hands, feet = (
            (saddle[0], seat_z + 0.08),
            (head[0], bar_z + 0.03),
            (crank[0] + 0.02, 0.16 * base),
        )
        parts += _seated(look, hips, hands, feet, height, helmet)
    return merge(parts)
