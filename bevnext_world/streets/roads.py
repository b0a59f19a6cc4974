# SPDX-License-Identifier: Apache-2.0
"""The road network of a synthetic scene: centre lines, lanes, junctions and the paths that traffic follows.

All lengths are metres in a flat world, x and y in the ground plane, headings in radians counter-clockwise from
+x. Traffic drives on the right. A position on a road is ``(s, d)``: ``s`` along the centre line, ``d`` to its left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bevnext_world.streets.paths import STEP, Path, joined

MAIN_BEFORE, MAIN_AFTER = 120.0, 270.0
"""Length of the main road before and after the place where the ego may start."""
ARM = 115.0
"""Length of a side road from its junction."""


@dataclass(frozen=True)
class Road:
    """A road: lanes in both directions, parking strips and sidewalks on both sides.

    Attributes:
        path: centre line; lanes: per direction; parking: width of the strip on each side, 0 where there is none;
        sidewalk: width.
    """

    name: str
    path: Path
    lanes: int
    lane_width: float
    parking: float
    sidewalk: float

    @property
    def carriageway(self) -> float:
        """From the centre line to the outer edge of the outer lane."""
        return self.lanes * self.lane_width

    @property
    def curb(self) -> float:
        """From the centre line to the sidewalk."""
        return self.carriageway + self.parking

    @property
    def edge(self) -> float:
        """From the centre line to the far side of the sidewalk."""
        return self.curb + self.sidewalk

    def lane_offset(self, direction: int, lane: int) -> float:
        """``d`` of a lane's middle; direction 1 runs along the centre line, -1 against; lane 0 is the inner one."""
        return -direction * (lane + 0.5) * self.lane_width

    def lane(self, direction: int, lane: int, start: float = 0.0, end: float | None = None) -> Path:
        """A lane's middle in its driving direction, between two distances along the centre line."""
        path = self.path.offset(self.lane_offset(direction, lane), start, end)
        return path if direction > 0 else path.reversed()

    def at(self, s: np.ndarray | float, d: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """World points ``[..., 2]`` and the road's headings ``[...]`` at ``(s, d)``."""
        points, heading = self.path.at(s)
        return points + np.asarray(d)[..., None] * np.stack([-np.sin(heading), np.cos(heading)], -1), heading

    def strip(self, s: tuple[float, float], d: tuple[float, float]) -> np.ndarray:
        """Outline ``[P, 2]`` of the part between two distances and two offsets."""
        along = np.linspace(*s, max(int(abs(s[1] - s[0]) / 1.0), 1) + 1)
        return np.concatenate([self.at(along, d[0])[0], self.at(along[::-1], d[1])[0]])


@dataclass(frozen=True)
class Junction:
    """Where a side road meets the main road.

    Attributes:
        s: place on the main road; side: the side road; side_s: the same place on the side road.
        main_reach, side_reach: from the middle to the stop line along either road.
        arms: which directions of the side road exist (1: along its centre line, -1: against).
    """

    s: float
    side: Road
    side_s: float
    main_reach: float
    side_reach: float
    arms: tuple[int, ...]


@dataclass(frozen=True)
class Route:
    """A way through the network that traffic takes.

    Attributes:
        kind: ``main``, ``side`` or ``turn``; stops: distances of the stop lines along ``path``.
        lane: 0 for the inner lane; flow: routes with the same name share their speed.
    """

    kind: str
    path: Path
    stops: tuple[float, ...]
    lane: int
    flow: str


@dataclass
class RoadNetwork:
    """A main road and the side roads that cross it or end at it."""

    main: Road
    junctions: list[Junction] = field(default_factory=list)

    @property
    def roads(self) -> list[Road]:
        return [self.main, *(junction.side for junction in self.junctions)]

    def clear_intervals(self, road: Road, margin: float = 2.0) -> list[tuple[float, float]]:
        """Parts of a road outside its junctions (beyond the stop lines and crosswalks)."""
        cuts = []
        for junction in self.junctions:
            if road is self.main:
                reach = junction.main_reach + margin
                cuts.append((junction.s - reach, junction.s + reach))
            elif road is junction.side:
                reach = junction.side_reach + margin
                cuts.append((junction.side_s - reach, junction.side_s + reach))
        intervals, start = [], 0.0
        for low, high in sorted(cuts):
            if low > start:
                intervals.append((start, low))
            start = max(start, high)
        if start < road.path.length:
            intervals.append((start, road.path.length))
        return [(low, high) for low, high in intervals if high - low > 8.0]

    def routes(self) -> list[Route]:
        """Every way through: straight along each lane, and each turn at each junction."""
        main, found = self.main, []
        for direction in (1, -1):
            for lane in range(main.lanes):
                path = main.lane(direction, lane)
                stops = self._stops(main, path, direction)
                found.append(Route("main", path, stops, lane, f"main{direction}{lane}"))
        for number, junction in enumerate(self.junctions):
            found += self._side_routes(junction, number)
            found += self._turns(junction, number)
        return found

    def _stops(self, road: Road, path: Path, direction: int) -> tuple[float, ...]:
        stops = []
        for junction in self.junctions:
            if road is self.main:
                point = road.at(junction.s - direction * junction.main_reach, 0.0)[0]
            elif road is junction.side:
                point = road.at(junction.side_s - direction * junction.side_reach, 0.0)[0]
            else:
                continue
            stops.append(path.project(point))
        return tuple(sorted(stops))

    def _side_routes(self, junction: Junction, number: int) -> list[Route]:
        if len(junction.arms) < 2:
            return []
        side, found = junction.side, []
        for direction in (1, -1):
            for lane in range(side.lanes):
                path = side.lane(direction, lane)
                flow = f"side{number}{direction}{lane}"
                found.append(Route("side", path, self._stops(side, path, direction), lane, flow))
        return found

    def _turns(self, junction: Junction, number: int) -> list[Route]:
        main, side, found = self.main, junction.side, []
        for direction in (1, -1):
            for arm in junction.arms:
                right = (direction > 0) != turns_left(self, junction, arm)
                out = junction.side_s + arm * junction.side_reach
                away = (out, side.path.length) if arm > 0 else (0.0, out)
                into = junction.s - direction * junction.main_reach
                approach = (0.0, into) if direction > 0 else (into, main.path.length)
                lane_main = main.lanes - 1 if right else 0
                lane_side = side.lanes - 1 if right else 0
                first = main.lane(direction, lane_main, *approach)
                second = side.lane(arm, lane_side, *away)
                flow = f"main{direction}{lane_main}"
                found.append(Route("turn", joined(first, second), (first.length,), lane_main, flow))
                # And back, from the arm onto the main road: a turn to the same hand.
                first = side.lane(-arm, lane_side, *away)
                leave = junction.s + direction * junction.main_reach
                onward = (leave, main.path.length) if direction > 0 else (0.0, leave)
                second = main.lane(direction, lane_main, *onward)
                flow = f"side{number}{-arm}{lane_side}"
                found.append(Route("turn", joined(first, second), (first.length,), lane_side, flow))
        return found


def overtaking(road: Road, direction: int, start: float, length: float) -> Path:
    """From the outer lane to the inner one and back, over ``length`` metres from ``start`` along the lane."""
    lane = road.lane(direction, road.lanes - 1)
    s = lane.s
    rise = _smooth((s - start) / 28.0) - _smooth((s - start - length + 28.0) / 28.0)
    normal = np.stack([-np.sin(lane.heading), np.cos(lane.heading)], -1)
    return Path(lane.points + (rise * road.lane_width)[:, None] * normal)


def _smooth(u: np.ndarray) -> np.ndarray:
    u = np.clip(u, 0, 1)
    return u * u * u * (u * (6 * u - 15) + 10)


def _winding(rng: np.random.Generator, length: float, tightest: float) -> np.ndarray:
    """Points ``[K, 2]`` of a curve from the origin along +x whose curvature changes smoothly."""
    knots = np.arange(0.0, length + 60.0, 45.0)
    curvature = rng.uniform(-1, 1, len(knots)) / tightest
    curvature[rng.random(len(knots)) < 0.4] = 0.0
    s = np.arange(0.0, length + STEP, STEP)
    kappa = np.interp(s, knots, curvature)
    kappa = np.convolve(np.pad(kappa, 30, "edge"), np.ones(61) / 61, "valid")
    heading = np.cumsum(kappa) * STEP
    return np.cumsum(np.stack([np.cos(heading), np.sin(heading)], -1) * STEP, axis=0)


def build_network(rng: np.random.Generator) -> RoadNetwork:
    """A network drawn at random: one main road with curves, one to three junctions."""
    while True:
        network = _draw(rng)
        if network is not None:
            return network


def _draw(rng: np.random.Generator) -> RoadNetwork | None:
    points = _winding(rng, MAIN_BEFORE + MAIN_AFTER, rng.uniform(60, 140))
    path = Path(points)
    if np.ptp(path.heading) > 1.9:
        return None
    main = Road(
        "main",
        path,
        lanes=int(rng.choice([1, 2], p=[0.4, 0.6])),
        lane_width=rng.uniform(3.4, 3.8),
        parking=rng.uniform(2.6, 2.9),
        sidewalk=rng.uniform(3.0, 4.5),
    )
    network = RoadNetwork(main)
    s = MAIN_BEFORE + rng.uniform(-85, -30) if rng.random() < 0.5 else MAIN_BEFORE + rng.uniform(25, 90)
    count = int(rng.integers(1, 4))
    while len(network.junctions) < count and s < path.length - 60:
        network.junctions.append(_junction(rng, main, s, len(network.junctions)))
        s += rng.uniform(85, 130)
    return network if network.junctions and _apart(network) else None


def _junction(rng: np.random.Generator, main: Road, s: float, number: int) -> Junction:
    (centre, heading) = main.path.at(s)
    angle = float(heading) + np.pi / 2 + rng.uniform(-0.22, 0.22)
    both = rng.random() < 0.7
    sign = 1 if both else int(rng.choice([-1, 1]))
    ahead = sign * np.array([np.cos(angle), np.sin(angle)])
    bend = rng.uniform(-1, 1) / 170.0
    u = np.arange(-ARM if both else 0.0, ARM + STEP, STEP)
    normal = np.array([-ahead[1], ahead[0]])
    curve = np.sign(u) * np.maximum(np.abs(u) - 25.0, 0.0) ** 2 * bend / 2
    path = Path(centre + u[:, None] * ahead + curve[:, None] * normal)
    side = Road(
        f"side{number}",
        path,
        lanes=int(rng.choice([1, 2], p=[0.75, 0.25])),
        lane_width=rng.uniform(3.3, 3.7),
        parking=rng.uniform(2.6, 2.9),
        sidewalk=rng.uniform(2.5, 3.5),
    )
    corner = rng.uniform(4.0, 6.0)
    return Junction(
        s=s,
        side=side,
        side_s=ARM if both else 0.0,
        main_reach=side.edge + corner,
        side_reach=main.edge + corner,
        arms=(1, -1) if both else (1,),
    )


def turns_left(network: RoadNetwork, junction: Junction, arm: int) -> bool:
    """Whether an arm lies to the left of the main road's centre line."""
    heading = float(network.main.path.at(junction.s)[1])
    point = junction.side.path.at(junction.side_s + arm * 20.0)[0] - network.main.path.at(junction.s)[0]
    return bool(np.cos(heading) * point[1] - np.sin(heading) * point[0] > 0)


def _apart(network: RoadNetwork) -> bool:
    """Whether no side road comes near another, or near the main road away from its junction."""
    main = network.main
    for i, junction in enumerate(network.junctions):
        side = junction.side
        far = side.path.points[np.abs(side.path.s - junction.side_s) > junction.side_reach + 8]
        gap = np.hypot(*(far[:, None] - main.path.points[None, ::4]).transpose(2, 0, 1)).min(1)
        if (gap < main.edge + 8).any():
            return False
        for other in network.junctions[:i]:
            points = other.side.path.points[::4]
            near = np.hypot(*(side.path.points[::4, None] - points[None]).transpose(2, 0, 1)).min()
            if near < side.edge + other.side.edge + 12:
                return False
    return True
