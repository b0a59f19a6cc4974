# SPDX-License-Identifier: Apache-2.0
"""What lies behind the sidewalks: houses, car parks, yards, parks, and the background."""

from __future__ import annotations

import numpy as np

from bevnext_world.streets.placing import OFF_STREET, Placer, Side

YARD = {
    "car": 0.22,
    "truck": 0.20,
    "bus": 0.30,
    "trailer": 0.32,
    "motorcycle": 0.06,
    "construction_vehicle": 0.06,
}
"""Shares of the classes in yards."""


def add_lots(placer: Placer) -> None:
    """Car parks and yards, houses, parks behind the sidewalks."""
    rng = placer.rng
    fill = {"houses": _houses, "parking": _parking, "park": _park, "yard": _yard}
    surfaces = {"houses": "paving", "park": "soil"}
    for side in placer.sides():
        s = side.low - 4
        while s < side.high - 6:
            length = min(rng.uniform(18, 48), side.high + 4 - s)
            kind = str(rng.choice(list(fill), p=[0.56, 0.09, 0.22, 0.13]))
            if length > 9:
                depth, edge = rng.uniform(22, 34), side.road.edge
                outline = side.road.strip((s, s + length), (side.side * edge, side.side * (edge + depth)))
                placer.lots.append((outline, surfaces.get(kind, "asphalt")))
                fill[kind](placer, Side(side.road, side.side, s, s + length), depth)
            s += length + rng.uniform(0.5, 3)


def _houses(placer: Placer, lot: Side, depth: float) -> None:
    rng = placer.rng
    s = lot.low + 0.5
    while s < lot.high - 5:
        length = min(rng.uniform(8, 22), lot.high - s)
        width, height = rng.uniform(8, 14), float(np.clip(rng.lognormal(2.0, 0.5), 3.5, 24))
        xy, heading = lot.at(s + length / 2, lot.road.edge + rng.uniform(0.3, 5.0) + width / 2)
        placer.put("building", (length - 0.6, width, height), xy, heading, OFF_STREET, margin=0.0)
        s += length + (rng.uniform(2, 7) if rng.random() < 0.4 else 0.3)


def _parking(placer: Placer, lot: Side, depth: float) -> None:
    """Rows of bays across the lot."""
    rng, edge = placer.rng, lot.road.edge
    share = rng.uniform(0.2, 0.5) * placer.density
    for d in np.arange(edge + 3.6, edge + min(depth, 16.0) - 2.5, 9.5):
        for s in np.arange(lot.low + 1, lot.high - 1, 3.0):
            placer.bays.append(np.stack([lot.at(s, d - 2.5)[0], lot.at(s, d + 2.5)[0]]))
        for s in np.arange(lot.low + 2.5, lot.high - 2.5, 3.0):
            if rng.random() > share:
                continue
            class_name = "motorcycle" if rng.random() < 0.07 else "car"
            turn = float(rng.choice([1, -1])) * np.pi / 2 + rng.normal(0, 0.04)
            placer.in_lot(lot, s, d, class_name, turn)


def _yard(placer: Placer, lot: Side, depth: float) -> None:
    """Large vehicles and boxes."""
    rng = placer.rng
    d = lot.road.edge + rng.uniform(7, 9)
    while d < lot.road.edge + depth:
        s = lot.low + rng.uniform(2, 4)
        while s < lot.high - 2:
            class_name = placer.draw_class(YARD)
            if rng.random() < 0.42 * placer.density:
                turn = float(rng.choice([1, -1])) * np.pi / 2 + rng.normal(0, 0.1)
                placer.in_lot(lot, s, d, class_name, turn)
            elif rng.random() < 0.35:
                size = (rng.uniform(1, 6), rng.uniform(1, 2.4), rng.uniform(0.8, 2.6))
                placer.put_beside("box", lot, s, d, size, rng.normal(0, 0.5), OFF_STREET)
            s += rng.uniform(3.6, 5.5)
        d += 13.5


def _park(placer: Placer, lot: Side, depth: float) -> None:
    rng = placer.rng
    for _ in range(int((lot.high - lot.low) * depth / 45)):
        xy, heading = lot.at(rng.uniform(lot.low, lot.high), lot.road.edge + rng.uniform(1, depth))
        if rng.random() < 0.55:
            placer.tree(xy, OFF_STREET)
        else:
            placer.bush(xy, heading, OFF_STREET)


def add_background(placer: Placer) -> None:
    """Houses, trees and fences wherever there is still room."""
    rng = placer.rng
    low, size = placer.site.origin, placer.site.size
    for _ in range(int(size[0] * size[1] / 260)):
        xy = low + rng.random(2) * size
        choice = rng.random()
        if placer.ego_distance(xy) < 22 + 30 * rng.random():
            continue
        if choice < 0.45:
            extent = (rng.uniform(8, 18), rng.uniform(8, 14), rng.uniform(3.5, 15))
            placer.put("building", extent, xy, rng.uniform(-np.pi, np.pi), OFF_STREET, margin=0.5)
        elif choice < 0.85:
            placer.tree(xy, OFF_STREET)
        elif choice < 0.93:
            extent = (rng.uniform(5, 12), 0.15, rng.uniform(1, 2))
            placer.put("fence", extent, xy, rng.uniform(-3, 3), OFF_STREET)
        else:
            extent = (rng.uniform(4, 10), 0.3, rng.uniform(1, 2.4))
            placer.put("wall", extent, xy, rng.uniform(-3, 3), OFF_STREET)
