"""What stands still in a synthetic scene: parked vehicles, construction zones, street furniture, houses, trees.

Everything is put where the :class:`Site` has room for it, so that no two things stand in one another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bevnext_world.streets.actors import Actor, draw_size, footprints, standing
from bevnext_world.streets.ground_paint import LANE, SIDEWALK, STRIP, TAKEN, Site
from bevnext_world.streets.roads import Road, RoadNetwork

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
YARD = {
    "car": 0.22,
    "truck": 0.20,
    "bus": 0.30,
    "trailer": 0.32,
    "motorcycle": 0.06,
    "construction_vehicle": 0.06,
}
"""Shares on the lots beside the road."""


@dataclass(frozen=True)
class SceneryItem:
    """Something unannotated.

    Attributes:
        kind: ``building``, ``tree``, ``bush``, ``pole``, ``box``, ``wall`` or ``fence``.
        size: length, width, height; a tree's and a pole's height is the third.
        pose: x, y, heading; seed: of its look.
    """

    kind: str
    size: tuple[float, float, float]
    pose: tuple[float, float, float]
    seed: int


@dataclass
class Layout:
    """Everything that stands still.

    Attributes:
        actors: annotated; scenery: not annotated.
        lots: (outline, surface) for the ground; bays: painted lines of parking lots.
    """

    actors: list[Actor] = field(default_factory=list)
    scenery: list[SceneryItem] = field(default_factory=list)
    lots: list[tuple[np.ndarray, str]] = field(default_factory=list)
    bays: list[np.ndarray] = field(default_factory=list)


class _Builder:
    def __init__(
        self, network: RoadNetwork, site: Site, ego: np.ndarray, density: float, rng: np.random.Generator
    ) -> None:
        self.network, self.site, self.ego, self.density, self.rng = network, site, ego, density, rng
        self.layout = Layout()
        self.zones: dict[tuple[str, int], list[tuple[float, float]]] = {}

    # --- placing -------------------------------------------------------------------------------------------

    def actor(self, actor: Actor, forbidden: int, margin: float = 0.2) -> bool:
        outline = footprints(actor.track[0], actor.size, margin)
        if not self.site.take(outline, forbidden):
            return False
        self.layout.actors.append(actor)
        return True

    def item(
        self,
        kind: str,
        size: tuple[float, float, float],
        xy: np.ndarray,
        heading: float,
        forbidden: int,
        margin: float = 0.15,
    ) -> bool:
        pose = np.array([xy[0], xy[1], heading])
        if not self.site.take(footprints(pose, size, margin), forbidden):
            return False
        seed = int(self.rng.integers(2**31))
        self.layout.scenery.append(
            SceneryItem(kind, size, (float(xy[0]), float(xy[1]), float(heading)), seed)
        )
        return True

    def ego_distance(self, points: np.ndarray) -> float:
        return float(np.hypot(*(self.ego - points).T).min())

    def draw_class(self, shares: dict[str, float]) -> str:
        values = np.array(list(shares.values()))
        return str(self.rng.choice(list(shares), p=values / values.sum()))

    def sides(self) -> list[tuple[Road, int, float, float]]:
        """(road, side, from, to): side 1 is left of the centre line, -1 right."""
        return [
            (road, side, low, high)
            for road in self.network.roads
            for low, high in self.network.clear_intervals(road)
            for side in (1, -1)
        ]

    # --- construction zones --------------------------------------------------------------------------------

    def construction(self) -> None:
        """Zones on strip and sidewalk: barriers along the lane, cones, vehicles, heaps of material."""
        rng = self.rng
        places = []
        for road, side, low, high in self.sides():
            s = low + rng.uniform(0, 25)
            while s < high - 14:
                length = min(rng.uniform(16, 36), high - s)
                if self.ego_distance(road.at(s + length / 2, 0.0)[0]) < 45:
                    places.append((road, side, s, s + length))
                s += length + rng.uniform(8, 20)
        rng.shuffle(places)  # type: ignore[arg-type]
        main = [place for place in places if place[0] is self.network.main]
        count = int(rng.integers(3, 5))
        chosen = main[: count - 1] + [place for place in places if place not in main[: count - 1]][:1]
        for road, side, low, high in chosen:
            self.zones.setdefault((road.name, side), []).append((low, high))
            self.zone(road, side, low, high)

    def zone(self, road: Road, side: int, low: float, high: float) -> None:
        rng = self.rng
        inner, outer = road.carriageway + 0.55, road.edge - 0.3
        style = rng.choice(["barriers", "cones", "both"], p=[0.3, 0.25, 0.45])
        size = draw_size("barrier", rng)
        s = low + 1.0
        if style != "cones":
            pitch = size[1] + rng.uniform(0.45, 1.2)
            for s in np.arange(low + 1.5, high - 1.5, pitch):
                if rng.random() < 0.88:
                    self.along(road, side, s, inner, "barrier", np.pi / 2, size)
        if style != "barriers":
            d = inner if style == "cones" else outer - 0.4
            for s in np.arange(low + 1.0, high - 0.5, rng.uniform(3.0, 6.0)):
                if rng.random() < 0.9:
                    self.along(road, side, s, d + rng.normal(0, 0.08), "traffic_cone", rng.uniform(-3, 3))
        # The ends are closed across the strip.
        for s in (low, high):
            if rng.random() < 0.5:
                self.along(road, side, s, (inner + outer) / 2, "barrier", 0.0)
            else:
                for d in np.arange(inner, outer, 1.9):
                    self.along(road, side, s, d, "traffic_cone", rng.uniform(-3, 3))
        middle = (inner + outer) / 2 + 0.3
        s = low + rng.uniform(5, 7)
        while s < high - 5:
            choice = rng.random()
            if choice < 0.6:
                self.along(
                    road, side, s, middle, "construction_vehicle", self.heading(side) + rng.normal(0, 0.12)
                )
                s += rng.uniform(8, 11)
            elif choice < 0.75:
                self.along(road, side, s, middle, "truck", self.heading(side) + rng.normal(0, 0.05))
                s += rng.uniform(8, 11)
            else:
                xy, heading = road.at(s, side * (middle + rng.uniform(-1, 1)))
                size = (rng.uniform(0.6, 2.2), rng.uniform(0.6, 1.4), rng.uniform(0.4, 1.4))
                self.item("box", size, xy, float(heading) + rng.normal(0, 0.3), LANE | TAKEN)
                s += rng.uniform(2, 5)
            if rng.random() < 0.5:
                self.along(road, side, s - 3, outer - rng.uniform(0, 1), "pedestrian", rng.uniform(-3, 3))

    def heading(self, side: int) -> float:
        return np.pi if side > 0 else 0.0

    def along(
        self,
        road: Road,
        side: int,
        s: float,
        d: float,
        class_name: str,
        turn: float,
        size: tuple[float, float, float] | None = None,
    ) -> bool:
        xy, heading = road.at(s, side * d)
        parked = class_name not in ("barrier", "traffic_cone", "pedestrian")
        size = size or draw_size(class_name, self.rng)
        return self.actor(
            standing(class_name, size, xy, float(heading) + turn, parked),
            LANE | TAKEN,
            margin=0.05 if class_name == "barrier" else 0.1,
        )

    # --- kerbs ---------------------------------------------------------------------------------------------

    def kerbs(self) -> None:
        """Vehicles parked along the roads."""
        rng = self.rng
        for road, side, low, high in self.sides():
            share = float(np.clip(rng.beta(2, 2), 0.1, 0.9)) * 0.8 * self.density
            s = low + rng.uniform(0, 3)
            while s < high:
                class_name = self.draw_class(PARKED)
                size = draw_size(class_name, rng)
                # Away from where the ego drives the streets are emptier.
                near = self.ego_distance(road.at(s, 0.0)[0]) < 28
                if rng.random() > share * (1.0 if near else 0.6):
                    s += rng.uniform(4, 9)
                    continue
                if class_name in ("motorcycle", "bicycle"):
                    for _ in range(int(rng.integers(1, 4))):
                        size = draw_size(class_name, rng)
                        s += size[0] * 0.5 + 0.3
                        turn = rng.choice([0.0, np.pi / 2, np.pi / 3]) + rng.normal(0, 0.1)
                        d = road.carriageway + road.parking - 0.2 - size[0] * 0.35
                        if s < high and not self.in_zone(road, side, s, s):
                            self.along(road, side, s, d, class_name, turn + self.heading(side), size)
                        s += size[0] * 0.5 + 0.3
                    continue
                centre = s + size[0] / 2
                if s + size[0] < high and not self.in_zone(road, side, s, s + size[0]):
                    d = road.carriageway + 0.3 + size[1] / 2 + abs(rng.normal(0, 0.08))
                    self.along(
                        road, side, centre, d, class_name, self.heading(side) + rng.normal(0, 0.025), size
                    )
                s += size[0] + rng.uniform(0.9, 3.5)

    def in_zone(self, road: Road, side: int, low: float, high: float) -> bool:
        zones = self.zones.get((road.name, side), [])
        return any(low < end + 1.5 and high > start - 1.5 for start, end in zones)

    # --- lots ----------------------------------------------------------------------------------------------

    def lots(self) -> None:
        """Car parks and yards, houses, parks behind the sidewalks."""
        rng = self.rng
        for road, side, low, high in self.sides():
            s = low - 4
            while s < high - 6:
                length = min(rng.uniform(18, 48), high + 4 - s)
                kind = str(rng.choice(["houses", "parking", "park", "yard"], p=[0.56, 0.09, 0.22, 0.13]))
                if length > 9:
                    depth = rng.uniform(22, 34)
                    outline = road.strip((s, s + length), (side * road.edge, side * (road.edge + depth)))
                    surface = {"houses": "paving", "park": "soil"}.get(kind, "asphalt")
                    self.layout.lots.append((outline, surface))
                    getattr(self, kind)(road, side, s, s + length, depth)
                s += length + rng.uniform(0.5, 3)

    def houses(self, road: Road, side: int, low: float, high: float, depth: float) -> None:
        rng = self.rng
        s = low + 0.5
        while s < high - 5:
            length = min(rng.uniform(8, 22), high - s)
            width, height = rng.uniform(8, 14), float(np.clip(rng.lognormal(2.0, 0.5), 3.5, 24))
            setback = rng.uniform(0.3, 5.0)
            xy, heading = road.at(s + length / 2, side * (road.edge + setback + width / 2))
            self.item(
                "building",
                (length - 0.6, width, height),
                xy,
                float(heading),
                LANE | STRIP | SIDEWALK | TAKEN,
                margin=0.0,
            )
            s += length + (rng.uniform(2, 7) if rng.random() < 0.4 else 0.3)

    def parking(self, road: Road, side: int, low: float, high: float, depth: float) -> None:
        """Rows of bays across the lot."""
        rng = self.rng
        share = rng.uniform(0.2, 0.5) * self.density
        for d in np.arange(road.edge + 3.6, road.edge + min(depth, 16.0) - 2.5, 9.5):
            self.bays(road, side, low + 1, high - 1, d)
            for s in np.arange(low + 2.5, high - 2.5, 3.0):
                if rng.random() > share:
                    continue
                class_name = "motorcycle" if rng.random() < 0.07 else "car"
                turn = float(rng.choice([1, -1])) * np.pi / 2 + rng.normal(0, 0.04)
                self.in_lot(road, side, s, d, class_name, turn)

    def bays(self, road: Road, side: int, low: float, high: float, d: float) -> None:
        for s in np.arange(low, high, 3.0):
            ends = np.stack([road.at(s, side * (d - 2.5))[0], road.at(s, side * (d + 2.5))[0]])
            self.layout.bays.append(ends)

    def yard(self, road: Road, side: int, low: float, high: float, depth: float) -> None:
        """Large vehicles and boxes."""
        rng = self.rng
        d = road.edge + rng.uniform(7, 9)
        while d < road.edge + depth:
            s = low + rng.uniform(2, 4)
            while s < high - 2:
                class_name = self.draw_class(YARD)
                if rng.random() < 0.42 * self.density:
                    turn = float(rng.choice([1, -1])) * np.pi / 2 + rng.normal(0, 0.1)
                    self.in_lot(road, side, s, d, class_name, turn)
                elif rng.random() < 0.35:
                    xy, heading = road.at(s, side * d)
                    size = (rng.uniform(1, 6), rng.uniform(1, 2.4), rng.uniform(0.8, 2.6))
                    self.item(
                        "box", size, xy, float(heading) + rng.normal(0, 0.5), LANE | STRIP | SIDEWALK | TAKEN
                    )
                s += rng.uniform(3.6, 5.5)
            d += 13.5

    def in_lot(self, road: Road, side: int, s: float, d: float, class_name: str, turn: float) -> bool:
        xy, heading = road.at(s, side * d)
        size = draw_size(class_name, self.rng)
        return self.actor(
            standing(class_name, size, xy, float(heading) + turn, True),
            LANE | STRIP | SIDEWALK | TAKEN,
        )

    def park(self, road: Road, side: int, low: float, high: float, depth: float) -> None:
        rng = self.rng
        for _ in range(int((high - low) * depth / 45)):
            xy, heading = road.at(rng.uniform(low, high), side * (road.edge + rng.uniform(1, depth)))
            if rng.random() < 0.55:
                self.tree(xy, LANE | STRIP | SIDEWALK | TAKEN)
            else:
                self.bush(xy, float(heading), LANE | STRIP | SIDEWALK | TAKEN)

    # --- street furniture ----------------------------------------------------------------------------------

    def tree(self, xy: np.ndarray, forbidden: int) -> bool:
        height = self.rng.uniform(4.5, 10)
        # What is taken is the trunk: the crown hangs above everything.
        return self.item("tree", (0.6, 0.6, height), xy, self.rng.uniform(-3, 3), forbidden)

    def bush(self, xy: np.ndarray, heading: float, forbidden: int) -> bool:
        rng = self.rng
        size = (rng.uniform(0.8, 3.0), rng.uniform(0.8, 1.6), rng.uniform(0.5, 1.6))
        return self.item("bush", size, xy, heading + rng.normal(0, 0.4), forbidden)

    def furniture(self) -> None:
        """Lamps, signs, trees, bins and boxes, standing people and parked bicycles on the sidewalks."""
        rng = self.rng
        for road, side, low, high in self.sides():
            for s in np.arange(low + rng.uniform(0, 12), high, rng.uniform(9, 20)):
                xy, heading = road.at(s, side * (road.curb + 0.55))
                if rng.random() < 0.55:
                    height = float(rng.choice([rng.uniform(2.2, 3.2), rng.uniform(5, 8)]))
                    inwards = float(heading) - side * np.pi / 2
                    self.item("pole", (0.35, 0.35, height), xy, inwards, LANE | STRIP | TAKEN)
                else:
                    self.tree(xy, LANE | STRIP | TAKEN)
            for s in np.arange(low + rng.uniform(0, 9), high, rng.uniform(6, 14)):
                xy, heading = road.at(s, side * (road.edge - rng.uniform(0.4, 1.0)))
                choice = rng.random()
                if choice < 0.35:
                    size = (rng.uniform(0.4, 1.6), rng.uniform(0.4, 0.9), rng.uniform(0.5, 1.7))
                    self.item("box", size, xy, float(heading) + rng.normal(0, 0.2), LANE | STRIP | TAKEN)
                elif choice < 0.5:
                    self.bush(xy, float(heading), LANE | STRIP | TAKEN)
                elif choice < 0.58:
                    self.people(road, side, s)
                elif choice < 0.74:
                    self.along(road, side, s, road.edge - 0.7, "bicycle", rng.uniform(-0.6, 0.6))

    def people(self, road: Road, side: int, s: float) -> None:
        """A group that stands and talks."""
        rng = self.rng
        d = rng.uniform(road.curb + 0.8, road.edge - 0.8)
        for _ in range(int(rng.integers(1, 4))):
            turn = rng.uniform(-np.pi, np.pi)
            self.along(road, side, s, d, "pedestrian", turn)
            s += rng.uniform(0.9, 1.4)
            d = float(np.clip(d + rng.normal(0, 0.5), road.curb + 0.5, road.edge - 0.5))

    def background(self) -> None:
        """Houses, trees and fences wherever there is still room."""
        rng = self.rng
        low, size = self.site.origin, self.site.size
        forbidden = LANE | STRIP | SIDEWALK | TAKEN
        for _ in range(int(size[0] * size[1] / 260)):
            xy = low + rng.random(2) * size
            choice = rng.random()
            if self.ego_distance(xy) < 22 + 30 * rng.random():
                continue
            if choice < 0.45:
                extent = (rng.uniform(8, 18), rng.uniform(8, 14), rng.uniform(3.5, 15))
                self.item("building", extent, xy, rng.uniform(-np.pi, np.pi), forbidden, margin=0.5)
            elif choice < 0.85:
                self.tree(xy, forbidden)
            elif choice < 0.93:
                self.item(
                    "fence", (rng.uniform(5, 12), 0.15, rng.uniform(1, 2)), xy, rng.uniform(-3, 3), forbidden
                )
            else:
                self.item(
                    "wall", (rng.uniform(4, 10), 0.3, rng.uniform(1, 2.4)), xy, rng.uniform(-3, 3), forbidden
                )


def build_layout(
    network: RoadNetwork, site: Site, ego: np.ndarray, density: float, rng: np.random.Generator
) -> Layout:
    """Fill a site; the bits of everything placed are set in it.

    Args:
        ego: ``[T, 2]`` where the ego drives.
        density: share of places for parked vehicles that are used, about 1.
    """
    builder = _Builder(network, site, ego, density, rng)
    builder.construction()
    builder.kerbs()
    builder.lots()
    builder.furniture()
    builder.background()
    return builder.layout
