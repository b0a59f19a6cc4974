# SPDX-License-Identifier: Apache-2.0
"""Scenery: buildings, trees, bushes, poles, boxes, walls. Built with the origin on the ground: z from 0 upwards.

The colours and textures of what people built come from the palette that paints the vehicles too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bevnext_world.models.mesh import Color, Mesh, MeshError, Pattern, merge
from bevnext_world.models.palette import DARK, GLASS, METAL, draw_leaves, draw_paint, draw_surface
from bevnext_world.models.parts import flank
from bevnext_world.models.solids import arc, box, cylinder, ellipsoid, panel, prism, strut

_BARK: Color = (0.33, 0.27, 0.21)


def _sides(name: str, size: Sequence[float]) -> tuple[float, float, float]:
    """Length, width and height. Raises MeshError: one of them is not above 0."""
    if not all(np.isfinite(value) and value > 0 for value in size):
        raise MeshError(f"a {name} needs sizes above 0, not {tuple(size)}")
    length, width, height = (float(value) for value in size)
    return length, width, height


def building(size: Sequence[float], rng: np.random.Generator) -> Mesh:
    """A house of length, width, height (x, y, z): windows, a roof, sometimes a set-back upper part."""
    length, width, height = _sides("building", size)
    color, surface = draw_surface(rng)
    if rng.random() < 0.4:
        color = tuple(np.clip(0.35 + 0.5 * np.array(color), 0, 1).tolist())  # type: ignore[assignment]
    pattern = Pattern.WINDOWS if rng.random() < 0.75 else (Pattern.BRICK if rng.random() < 0.6 else surface)
    roof = draw_paint(rng)
    kind = rng.random()
    if kind < 0.35 and height < 14 and min(length, width) < 25:  # gabled
        eaves = 0.72 * height
        parts = [box((length, width, eaves), (0, 0, eaves / 2), color, pattern)]
        outline = [(-width / 2, eaves), (width / 2, eaves), (0, height)]
        gable = prism(outline, length / 2, roof, Pattern.PLANKS)
        if length >= width:
            parts.append(gable.turned(np.pi / 2))
        else:
            parts.append(gable.transformed(np.diag([length / width, width / length, 1, 1])))
    elif kind < 0.65 and height > 12:  # two blocks
        split = float(rng.uniform(0.5, 0.8)) * height
        upper = (0.75 * length, 0.75 * width, height - split)
        parts = [box((length, width, split), (0, 0, split / 2), color, pattern)]
        parts.append(box(upper, (0, 0, (height + split) / 2), color, pattern))
    else:
        parts = [box((length, width, height - 0.5), (0, 0, (height - 0.5) / 2), color, pattern)]
        parts.append(box((length, width, 0.5), (0, 0, height - 0.25), roof, Pattern.NOISE))
        if min(length, width) > 6:
            deep = 0.01 + (0.01 + min(2.0, 0.2 * height)) / 2
            hatch = (2.5, 2.5, deep), (0.2 * length, 0.2 * width, height - deep / 2)
            parts.append(box(*hatch, METAL, Pattern.RIBS))
    if rng.random() < 0.6 and height > 5:  # shop fronts on the ground floor, on all sides
        for axis, extent, other in ((0, length, width), (1, width, length)):
            for side in (-1.0, 1.0):
                shop = draw_paint(rng)
                at = side * (other / 2 + 0.03)
                band = flank(at, (-extent / 2, extent / 2), (2.9, 3.6))
                pieces = [panel(band, (0, side, 0), shop, Pattern.BLOTCH)]
                count = max(1, int(extent / 4.5))
                for k in range(count):
                    x, half = -extent / 2 + extent * (k + 0.5) / count, 0.36 * extent / count
                    pane = flank(at, (x - half, x + half), (0.5, 2.7))
                    pieces.append(panel(pane, (0, side, 0), GLASS, gloss=0.8))
                parts += pieces if axis == 0 else [piece.turned(-np.pi / 2) for piece in pieces]
    return merge(parts)


def _blob(
    radii: Sequence[float],
    center: Sequence[float],
    color: Color,
    rng: np.random.Generator,
    segments: int = 7,
    rings: int = 5,
) -> Mesh:
    jitter = rng.uniform(0.82, 1.15, (rings - 1) * segments + 2)
    return ellipsoid(radii, center, color, Pattern.FOLIAGE, segments=segments, rings=rings, jitter=jitter)


def tree(height: float, rng: np.random.Generator) -> Mesh:
    """A broad-leaved tree, a conifer or (rarely) a bare one."""
    _sides("tree", (1.0, 1.0, height))
    leaves = draw_leaves(rng)
    radius = max(0.06, 0.022 * height)
    kind = rng.random()
    if kind < 0.2:  # conifer
        foot = radius, 0.25 * height, (0, 0, 0.125 * height)
        parts = [cylinder(*foot, color=_BARK, pattern=Pattern.BARK, segments=6, caps=False)]
        dark = (0.75 * leaves[0], 0.75 * leaves[1], 0.75 * leaves[2])
        for k in range(3):
            low, high = (0.15 + 0.25 * k) * height, (0.55 + 0.225 * k) * height
            wide = (0.22 - 0.055 * k) * height
            cone = cylinder(
                *(wide, high - low, (0, 0, (low + high) / 2), "z", dark, Pattern.FOLIAGE),
                segments=9,
                end_radius=0.05 * wide,
            )
            parts.append(cone)
        return merge(parts)
    crown = float(rng.uniform(0.35, 0.48)) * height
    trunk = height - crown
    stem = radius, trunk + 0.3 * crown, (0, 0, (trunk + 0.3 * crown) / 2), "z", _BARK, Pattern.BARK
    parts = [cylinder(*stem, segments=7, end_radius=0.7 * radius, caps=False)]
    if kind > 0.93:
        for k in range(6):
            angle = 2 * np.pi * (k + rng.random()) / 6
            start = (0.0, 0.0, trunk * float(rng.uniform(0.8, 1.2)))
            out, top = 0.3 * crown, height * float(rng.uniform(0.85, 1.0))
            end = (out * np.cos(angle), out * np.sin(angle), top)
            parts.append(strut(start, end, 1.0 * radius, _BARK, Pattern.BARK, taper=0.3))
        return merge(parts)
    wide = float(rng.uniform(0.24, 0.34)) * height
    parts.append(_blob((0.8 * wide, 0.8 * wide, 0.5 * crown), (0, 0, height - 0.55 * crown), leaves, rng))
    for k in range(int(rng.integers(2, 5))):
        angle = 2 * np.pi * (k + rng.random()) / 4
        out = 0.45 * wide
        center = (out * np.cos(angle), out * np.sin(angle), trunk + crown * float(rng.uniform(0.25, 0.6)))
        parts.append(_blob((0.55 * wide, 0.55 * wide, 0.32 * crown), center, leaves, rng, 6, 4))
    return merge(parts)


def bush(size: Sequence[float], rng: np.random.Generator) -> Mesh:
    """A bush or, where one side is much longer, a hedge of length, width, height."""
    length, width, height = _sides("bush", size)
    leaves = draw_leaves(rng)
    if max(length, width) > 2.5 * min(length, width):
        return box((length, width, height), (0, 0, height / 2), leaves, Pattern.FOLIAGE, top=0.95)
    parts = []
    for x, y, scale in ((0.0, 0.0, 0.5), (0.2, 0.15, 0.32), (-0.2, -0.12, 0.34)):
        radii, center = (scale * length, scale * width, 0.5 * height), (x * length, y * width, 0.42 * height)
        parts.append(_blob(radii, center, leaves, rng, 6, 4))
    return merge(parts)


def pole(height: float, rng: np.random.Generator, kind: str | None = None) -> Mesh:
    """A street lamp (``"lamp"``, its arm along +x), a road sign (``"sign"``, facing +x) or traffic lights.

    Args:
        height: metres.
        rng: draws colours and, where ``kind`` is None, the kind.
        kind: ``"lamp"``, ``"sign"`` or ``"signal"``.
    """
    _sides("pole", (1.0, 1.0, height))
    kind = kind or ("lamp" if height > 4.5 else str(rng.choice(["sign", "sign", "signal"])))
    shade = float(rng.uniform(0.25, 0.65))
    grey = (shade, shade, shade)
    radius = 0.02 * height if kind == "lamp" else 0.045
    mast = max(0.04, min(radius, 0.14)), height, (0, 0, height / 2)
    parts = [cylinder(*mast, color=grey, segments=7, end_radius=max(0.035, 0.5 * radius))]
    if kind == "lamp":
        reach = float(rng.uniform(0.8, 2.0))
        parts.append(strut((0, 0, height - 0.1), (reach, 0, height + 0.15), 0.07, grey))
        parts.append(box((0.6, 0.25, 0.12), (reach, 0, height + 0.13), DARK))
    elif kind == "signal":
        parts.append(box((0.22, 0.30, 0.9), (0.12, 0, height - 0.45), DARK))
        for k, color in enumerate(((0.15, 0.75, 0.35), (0.45, 0.33, 0.08), (0.45, 0.07, 0.06))):
            disc = arc((0.235, 0, height - 0.73 + 0.28 * k), 0.1, 0, 5.2, 6, "x")
            parts.append(panel(disc, (1, 0, 0), color, Pattern.LAMP))
    else:
        color = draw_paint(rng)
        z, x = height - 0.38, 0.06
        sides = int(rng.choice([3, 4, 8, 12]))
        turn = np.pi / 4 if sides == 4 else np.pi / 2
        for scale, paint, gap in ((0.38, color, 0.0), (0.29, (0.88, 0.88, 0.86), 0.01)):
            front = arc((x + gap, 0, z), scale, turn, turn + 2 * np.pi * (1 - 1 / sides), sides, "x")
            parts.append(panel(front, (1, 0, 0), paint))
        parts.append(panel([(x - 0.005, p, q) for _, p, q in front], (-1, 0, 0), METAL))
    return merge(parts)


def box_clutter(size: Sequence[float], rng: np.random.Generator) -> Mesh:
    """Something that nobody annotates: a crate, a bin, a container, a bollard, a stack of pallets."""
    length, width, height = _sides("box", size)
    color, pattern = draw_surface(rng)
    kind = rng.random()
    if kind < 0.3:  # bin with a lid
        body = box((0.9 * length, 0.9 * width, 0.85 * height), (0, 0, 0.425 * height), color, pattern)
        lid = box((length, width, 0.15 * height), (0, 0, 0.925 * height), draw_paint(rng), top=0.9)
        return merge([body, lid])
    if kind < 0.45:
        banded = Pattern.BANDS if rng.random() < 0.5 else pattern
        drum = cylinder(0.5, height, (0, 0, height / 2), color=color, pattern=banded, segments=10)
        return drum.transformed(np.diag([length, width, 1.0, 1.0]))
    if kind < 0.6:  # stack
        parts, step = [], height / 3
        for k in range(3):
            wide = float(rng.uniform(0.75, 1.0)) if k else 1.0
            size, place = (wide * length, wide * width, 0.95 * step), (0, 0, k * step + 0.475 * step)
            parts.append(box(size, place, draw_paint(rng), Pattern.PLANKS))
        return merge(parts)
    if kind < 0.7:
        pattern = Pattern.HAZARD
    return box((length, width, height), (0, 0, height / 2), color, pattern)


def wall(size: Sequence[float], rng: np.random.Generator) -> Mesh:
    """A wall of length, width (thickness), height."""
    length, width, height = _sides("wall", size)
    color, pattern = draw_surface(rng)
    pattern = Pattern.BRICK if rng.random() < 0.4 else pattern
    body = box((length, width, 0.92 * height), (0, 0, 0.46 * height), color, pattern)
    coping = (length, 1.2 * width, 0.08 * height), (0, 0, 0.96 * height)
    return merge([body, box(*coping, (0.6, 0.59, 0.57), Pattern.NOISE)])


def fence(size: Sequence[float], rng: np.random.Generator) -> Mesh:
    """A fence of length, width (thickness), height: posts and rails that one sees through."""
    length, width, height = _sides("fence", size)
    color = draw_paint(rng)
    count = max(2, round(length / 2.0) + 1)
    parts = [
        box((0.08, max(width, 0.06), height), (x, 0, height / 2), color)
        for x in np.linspace(-length / 2 + 0.04, length / 2 - 0.04, count)
    ]
    for share in (0.3, 0.6, 0.88):
        parts.append(box((length, 0.6 * max(width, 0.06), 0.12 * height), (0, 0, share * height), color))
    return merge(parts)
