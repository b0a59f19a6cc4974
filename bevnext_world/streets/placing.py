# SPDX-License-Identifier: Apache-2.0
"""Putting things that stand still into a scene, where the :class:`Site` has room: none stands in another."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bevnext_world.streets.actors import Actor, draw_size, footprints, standing
from bevnext_world.streets.ground_paint import LANE, SIDEWALK, STRIP, TAKEN, Site
from bevnext_world.streets.roads import Road, RoadNetwork

Size = tuple[float, float, float]
OFF_STREET = LANE | STRIP | SIDEWALK | TAKEN
"""Forbidden to what stands beside the streets."""


@dataclass(frozen=True)
class SceneryItem:
    """Something unannotated.

    Attributes:
        kind: ``building``, ``tree``, ``bush``, ``pole``, ``box``, ``wall`` or ``fence``.
        size: length, width, height; a tree's and a pole's height is the third.
        pose: x, y, heading; seed: of its look.
    """

    kind: str
    size: Size
    pose: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class Side:
    """One side of a road (1 left of the centre line, -1 right) between two distances along it."""

    road: Road
    side: int
    low: float
    high: float

    @property
    def driving(self) -> float:
        """Heading of this side's traffic, relative to the centre line."""
        return np.pi if self.side > 0 else 0.0

    def at(self, s: float, d: float) -> tuple[np.ndarray, float]:
        """World point ``[2]`` at ``s`` along and ``d`` from the centre line, and the road's heading there."""
        xy, heading = self.road.at(s, self.side * d)
        return xy, float(heading)


@dataclass
class Placer:
    """Puts things into a site and remembers them.

    Attributes:
        ego: ``[T, 2]`` where the ego drives; density: share of places for parked vehicles that are used, about 1.
        actors: annotated; scenery: not annotated.
        lots: (outline, surface) for the ground; bays: painted lines of parking lots.
        zones: the construction zones.
    """

    network: RoadNetwork
    site: Site
    ego: np.ndarray
    density: float
    rng: np.random.Generator
    actors: list[Actor] = field(default_factory=list)
    scenery: list[SceneryItem] = field(default_factory=list)
    lots: list[tuple[np.ndarray, str]] = field(default_factory=list)
    bays: list[np.ndarray] = field(default_factory=list)
    zones: list[Side] = field(default_factory=list)

    def sides(self) -> list[Side]:
        """Both sides of all roads, without the junctions."""
        return [
            Side(road, side, low, high)
            for road in self.network.roads
            for low, high in self.network.clear_intervals(road)
            for side in (1, -1)
        ]

    def ego_distance(self, points: np.ndarray) -> float:
        return float(np.hypot(*(self.ego - points).T).min())

    def draw_class(self, shares: dict[str, float]) -> str:
        values = np.array(list(shares.values()))
        return str(self.rng.choice(list(shares), p=values / values.sum()))

    def stand(
        self,
        side: Side,
        s: float,
        d: float,
        class_name: str,
        turn: float,
        size: Size | None = None,
        forbidden: int = LANE | TAKEN,
        margin: float = 0.1,
    ) -> None:
        """Something annotated, turned against the road, where there is room."""
        xy, heading = side.at(s, d)
        size = size or draw_size(class_name, self.rng)
        parked = class_name not in ("barrier", "traffic_cone", "pedestrian")
        actor = standing(class_name, size, xy, heading + turn, parked)
        margin = 0.05 if class_name == "barrier" else margin
        if self.site.take(footprints(actor.track[0], size, margin), forbidden):
            self.actors.append(actor)

    def in_lot(self, side: Side, s: float, d: float, class_name: str, turn: float) -> None:
        """Something annotated beside the streets."""
        self.stand(side, s, d, class_name, turn, forbidden=OFF_STREET, margin=0.2)

    def put(
        self, kind: str, size: Size, xy: np.ndarray, heading: float, forbidden: int, margin: float = 0.15
    ) -> None:
        """Something unannotated, where there is room."""
        pose = (float(xy[0]), float(xy[1]), float(heading))
        if self.site.take(footprints(np.array(pose), size, margin), forbidden):
            self.scenery.append(SceneryItem(kind, size, pose, int(self.rng.integers(2**31))))

    def put_beside(
        self, kind: str, side: Side, s: float, d: float, size: Size, turn: float, forbidden: int
    ) -> None:
        """Something unannotated, turned against the road."""
        xy, heading = side.at(s, d)
        self.put(kind, size, xy, heading + turn, forbidden)

    def tree(self, xy: np.ndarray, forbidden: int) -> None:
        # What is taken is the trunk: the crown hangs above everything.
        size = (0.6, 0.6, self.rng.uniform(4.5, 10))
        self.put("tree", size, xy, self.rng.uniform(-3, 3), forbidden)

    def bush(self, xy: np.ndarray, heading: float, forbidden: int) -> None:
        rng = self.rng
        size = (rng.uniform(0.8, 3.0), rng.uniform(0.8, 1.6), rng.uniform(0.5, 1.6))
        self.put("bush", size, xy, heading + rng.normal(0, 0.4), forbidden)
