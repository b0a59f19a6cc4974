# SPDX-License-Identifier: Apache-2.0
"""Colours and textures of the synthetic world.

Vehicles of every class and the background (buildings, walls, boxes) draw from the same distribution, so that a
colour or a texture says nothing about what a thing is.
"""

from __future__ import annotations

import numpy as np

from bevnext_world.models.mesh import Color, Pattern

GLASS: Color = (0.13, 0.15, 0.17)
TYRE: Color = (0.11, 0.11, 0.12)
METAL: Color = (0.52, 0.53, 0.55)
DARK: Color = (0.17, 0.17, 0.18)
HEADLAMP: Color = (0.95, 0.94, 0.88)
TAILLAMP: Color = (0.75, 0.07, 0.06)
AMBER: Color = (0.95, 0.55, 0.08)

SPREAD = 0.05
"""How far a drawn colour strays from its family, display values."""
FREE = 0.15
"""Share of colours drawn from the whole range instead of from a family."""
_PAINTS: tuple[tuple[float, Color], ...] = (
    (0.19, (0.90, 0.90, 0.89)),
    (0.14, (0.64, 0.65, 0.67)),
    (0.13, (0.38, 0.39, 0.41)),
    (0.12, (0.16, 0.16, 0.18)),
    (0.09, (0.62, 0.13, 0.11)),
    (0.09, (0.16, 0.28, 0.55)),
    (0.06, (0.86, 0.70, 0.16)),
    (0.05, (0.85, 0.43, 0.11)),
    (0.05, (0.20, 0.42, 0.25)),
    (0.05, (0.76, 0.70, 0.58)),
    (0.03, (0.43, 0.30, 0.22)),
)
_SURFACES = (
    (0.40, Pattern.PLAIN),
    (0.22, Pattern.NOISE),
    (0.14, Pattern.PANELS),
    (0.10, Pattern.RIBS),
    (0.08, Pattern.BLOTCH),
    (0.06, Pattern.PLANKS),
)
_SKINS: tuple[Color, ...] = ((0.93, 0.76, 0.66), (0.83, 0.62, 0.49), (0.62, 0.43, 0.32), (0.38, 0.26, 0.20))


def draw_paint(rng: np.random.Generator) -> Color:
    """A colour: of a vehicle's body, a house's wall, a box."""
    if rng.random() < FREE:
        return _color(rng.uniform(0.1, 0.92, 3))
    weights = np.array([weight for weight, _ in _PAINTS])
    base = _PAINTS[int(rng.choice(len(_PAINTS), p=weights / weights.sum()))][1]
    shade = rng.normal(0.0, SPREAD)
    return _color(np.array(base) + shade + rng.normal(0.0, SPREAD / 3, 3))


def draw_surface(rng: np.random.Generator) -> tuple[Color, Pattern]:
    """A colour and a texture."""
    weights = np.array([weight for weight, _ in _SURFACES])
    index = int(rng.choice(len(_SURFACES), p=weights / weights.sum()))
    return draw_paint(rng), _SURFACES[index][1]


def draw_skin(rng: np.random.Generator) -> Color:
    """A colour of faces and hands."""
    base = np.array(_SKINS[int(rng.integers(len(_SKINS)))])
    return _color(base + rng.normal(0.0, 0.03))


def draw_leaves(rng: np.random.Generator) -> Color:
    """A colour of crowns and bushes."""
    base = np.array([0.30, 0.42, 0.18]) if rng.random() < 0.8 else np.array([0.55, 0.42, 0.16])
    return _color(base * rng.uniform(0.75, 1.25) + rng.normal(0.0, 0.02, 3))


def _color(values: np.ndarray) -> Color:
    r, g, b = np.clip(values, 0.04, 0.96)
    return float(r), float(g), float(b)
