# SPDX-License-Identifier: Apache-2.0
"""What stands in the streets: construction zones, vehicles at the kerb, street furniture, people."""

from __future__ import annotations

import numpy as np

from bevnext_world.streets.actors import draw_size
from bevnext_world.streets.ground_paint import LANE, STRIP, TAKEN
from bevnext_world.streets.placing import Placer, Side

PARKED = {
    "car": 0.36,
    "truck": 0.13,
    "bus": 0.20,
    "trailer": 0.30,
    "motorcycle": 0.12,
    "bicycle": 0.05,
    "construction_vehicle": 0.03,
}
"""Shares of the classes at the kerb."""


def add_construction(placer: Placer) -> None:
    """Zones on strip and sidewalk: barriers along the lane, cones, vehicles, heaps of material."""
    rng = placer.rng
    places = []
    for side in placer.sides():
        s = side.low + rng.uniform(0, 25)
        while s < side.high - 14:
            length = min(rng.uniform(16, 36), side.high - s)
            if placer.ego_distance(side.at(s + length / 2, 0.0)[0]) < 45:
                places.append(Side(side.road, side.side, s, s + length))
            s += length + rng.uniform(8, 20)
    rng.shuffle(places)  # type: ignore[arg-type]
    main = [place for place in places if place.road is placer.network.main]
    count = int(rng.integers(3, 5))
    chosen = main[: count - 1] + [place for place in places if place not in main[: count - 1]][:1]
    for zone in chosen:
        placer.zones.append(zone)
        _fill_zone(placer, zone)


def _fill_zone(placer: Placer, zone: Side) -> None:
    rng, low, high = placer.rng, zone.low, zone.high
    inner, outer = zone.road.carriageway + 0.55, zone.road.edge - 0.3
    style = rng.choice(["barriers", "cones", "both"], p=[0.3, 0.25, 0.45])
    size = draw_size("barrier", rng)
    if style != "cones":
        pitch = size[1] + rng.uniform(0.45, 1.2)
        for s in np.arange(low + 1.5, high - 1.5, pitch):
            if rng.random() < 0.88:
                placer.stand(zone, s, inner, "barrier", np.pi / 2, size)
    if style != "barriers":
        d = inner if style == "cones" else outer - 0.4
        for s in np.arange(low + 1.0, high - 0.5, rng.uniform(3.0, 6.0)):
            if rng.random() < 0.9:
                placer.stand(zone, s, d + rng.normal(0, 0.08), "traffic_cone", rng.uniform(-3, 3))
    # The ends are closed across the strip.
    for s in (low, high):
        if rng.random() < 0.5:
            placer.stand(zone, s, (inner + outer) / 2, "barrier", 0.0)
        else:
            for d in np.arange(inner, outer, 1.9):
                placer.stand(zone, s, d, "traffic_cone", rng.uniform(-3, 3))
    middle = (inner + outer) / 2 + 0.3
    s = low + rng.uniform(5, 7)
    while s < high - 5:
        choice = rng.random()
        if choice < 0.75:
            class_name, spread = ("construction_vehicle", 0.12) if choice < 0.6 else ("truck", 0.05)
            placer.stand(zone, s, middle, class_name, zone.driving + rng.normal(0, spread))
            s += rng.uniform(8, 11)
        else:
            d = middle + rng.uniform(-1, 1)
            heap = (rng.uniform(0.6, 2.2), rng.uniform(0.6, 1.4), rng.uniform(0.4, 1.4))
            placer.put_beside("box", zone, s, d, heap, rng.normal(0, 0.3), LANE | TAKEN)
            s += rng.uniform(2, 5)
        if rng.random() < 0.5:
            placer.stand(zone, s - 3, outer - rng.uniform(0, 1), "pedestrian", rng.uniform(-3, 3))


def add_parked(placer: Placer) -> None:
    """Vehicles parked along the roads."""
    rng = placer.rng
    for side in placer.sides():
        road = side.road
        share = float(np.clip(rng.beta(2, 2), 0.1, 0.9)) * 0.8 * placer.density
        s = side.low + rng.uniform(0, 3)
        while s < side.high:
            class_name = placer.draw_class(PARKED)
            size = draw_size(class_name, rng)
            # Away from where the ego drives the streets are emptier.
            near = placer.ego_distance(side.at(s, 0.0)[0]) < 28
            if rng.random() > share * (1.0 if near else 0.6):
                s += rng.uniform(4, 9)
                continue
            if class_name in ("motorcycle", "bicycle"):
                for _ in range(int(rng.integers(1, 4))):
                    size = draw_size(class_name, rng)
                    s += size[0] * 0.5 + 0.3
                    turn = rng.choice([0.0, np.pi / 2, np.pi / 3]) + rng.normal(0, 0.1)
                    d = road.carriageway + road.parking - 0.2 - size[0] * 0.35
                    if s < side.high and not _in_zone(placer, side, s, s):
                        placer.stand(side, s, d, class_name, turn + side.driving, size)
                    s += size[0] * 0.5 + 0.3
                continue
            if s + size[0] < side.high and not _in_zone(placer, side, s, s + size[0]):
                d = road.carriageway + 0.3 + size[1] / 2 + abs(rng.normal(0, 0.08))
                turn = side.driving + rng.normal(0, 0.025)
                placer.stand(side, s + size[0] / 2, d, class_name, turn, size)
            s += size[0] + rng.uniform(0.9, 3.5)


def _in_zone(placer: Placer, side: Side, low: float, high: float) -> bool:
    zones = [zone for zone in placer.zones if zone.road is side.road and zone.side == side.side]
    return any(low < zone.high + 1.5 and high > zone.low - 1.5 for zone in zones)


def add_furniture(placer: Placer) -> None:
    """Lamps, signs, trees, bins and boxes, standing people and parked bicycles on the sidewalks."""
    rng, forbidden = placer.rng, LANE | STRIP | TAKEN
    for side in placer.sides():
        road = side.road
        for s in np.arange(side.low + rng.uniform(0, 12), side.high, rng.uniform(9, 20)):
            if rng.random() < 0.55:
                height = float(rng.choice([rng.uniform(2.2, 3.2), rng.uniform(5, 8)]))
                inwards = -side.side * np.pi / 2
                placer.put_beside("pole", side, s, road.curb + 0.55, (0.35, 0.35, height), inwards, forbidden)
            else:
                placer.tree(side.at(s, road.curb + 0.55)[0], forbidden)
        for s in np.arange(side.low + rng.uniform(0, 9), side.high, rng.uniform(6, 14)):
            d = road.edge - rng.uniform(0.4, 1.0)
            choice = rng.random()
            if choice < 0.35:
                size = (rng.uniform(0.4, 1.6), rng.uniform(0.4, 0.9), rng.uniform(0.5, 1.7))
                placer.put_beside("box", side, s, d, size, rng.normal(0, 0.2), forbidden)
            elif choice < 0.5:
                placer.bush(*side.at(s, d), forbidden)
            elif choice < 0.58:
                _add_people(placer, side, s)
            elif choice < 0.74:
                placer.stand(side, s, road.edge - 0.7, "bicycle", rng.uniform(-0.6, 0.6))


def _add_people(placer: Placer, side: Side, s: float) -> None:
    """A group that stands and talks."""
    rng, road = placer.rng, side.road
    d = rng.uniform(road.curb + 0.8, road.edge - 0.8)
    for _ in range(int(rng.integers(1, 4))):
        placer.stand(side, s, d, "pedestrian", rng.uniform(-np.pi, np.pi))
        s += rng.uniform(0.9, 1.4)
        d = float(np.clip(d + rng.normal(0, 0.5), road.curb + 0.5, road.edge - 0.5))
