# SPDX-License-Identifier: Apache-2.0
"""What moves in a synthetic scene: the ego, vehicles, cyclists and people on foot.

Each candidate is drawn with its whole motion and accepted when it meets nothing that is there already, at any
time. Vehicles on one lane share how fast they wish to drive, so that they brake, wait and set off together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevnext_world.streets.actors import (
    DURATION,
    TIMES,
    Actor,
    draw_size,
    drive,
    follow,
    footprints,
    hang_trailer,
    overlapping,
)
from bevnext_world.streets.ground_paint import TAKEN, Site
from bevnext_world.streets.paths import Path
from bevnext_world.streets.roads import MAIN_BEFORE, RoadNetwork, Route, overtaking

EGO_SIZE = (4.1, 1.8, 1.55)
EGO_TOP_SPEED = 15.0
CLEARANCE = 0.25
"""Metres between moving things and anything else."""
CHECKS = np.arange(0, len(TIMES), 3)
"""Samples at which candidates are checked: 0.06 s apart."""

DRIVING = {"car": 0.42, "truck": 0.22, "bus": 0.16, "motorcycle": 0.15, "bicycle": 0.11}


@dataclass(frozen=True)
class Ego:
    """The ego's drive.

    Attributes:
        track: ``[T, 3]`` x, y, heading of its frame (below the rear axle) at ``TIMES``.
        body: ``[T, 3]`` of its body's centre; route: what it follows; wish: ``[T]`` m/s.
        hold: (distance on the route, time) of a red light, or ``None``.
    """

    track: np.ndarray
    body: np.ndarray
    route: Route
    wish: np.ndarray
    hold: tuple[float, float] | None


def wishes(rng: np.random.Generator, cruise: float) -> np.ndarray:
    """``[T]`` m/s around ``cruise``, changing over seconds."""
    knots = np.arange(0.0, DURATION + 4.0, 3.0)
    values = cruise * np.exp(rng.normal(0, 0.14, len(knots)))
    return np.clip(np.interp(TIMES, knots, values), 0.8, EGO_TOP_SPEED - 0.3)


def draw_ego(network: RoadNetwork, rng: np.random.Generator) -> Ego:
    """The ego along the main road, or turning off it; cruising, braking to a stop, or setting off."""
    routes = [route for route in network.routes() if route.flow.startswith("main1")]
    start_point = network.main.at(MAIN_BEFORE, 0.0)[0]
    turns = [
        route
        for route in routes
        if route.kind == "turn" and 12 < route.stops[0] - route.path.project(start_point) < 75
    ]
    straight = [route for route in routes if route.kind == "main"]
    turning = bool(turns) and rng.random() < 0.45
    route = turns[int(rng.integers(len(turns)))] if turning else straight[int(rng.integers(len(straight)))]
    start = route.path.project(start_point)
    style = str(rng.choice(["cruise", "stop", "start", "slow"], p=[0.46, 0.22, 0.2, 0.12]))
    wish = wishes(rng, rng.uniform(2.5, 5.0) if style == "slow" else rng.uniform(6.0, 13.5))
    hold = None
    ahead = [stop - EGO_SIZE[0] / 2 - 1.0 for stop in route.stops if stop > start + 12]
    if style == "stop" and ahead and ahead[0] - start < 70:
        hold = (ahead[0], float(rng.uniform(6.0, 14.0)))
    elif style == "stop":
        wish = wish * np.clip((rng.uniform(3.5, 6.0) - TIMES) / 3.0, 0.0, 1.0)
    elif style == "start":
        wish = np.clip(wish * 1.15, 0, EGO_TOP_SPEED - 0.3) * np.clip(
            (TIMES - rng.uniform(0.5, 3.5)) / 0.5, 0.0, 1.0
        )
    s = drive(route.path, start, wish, *(hold or ()))
    body = follow(route.path, s, EGO_SIZE, "car")
    # The same rear axle as the bicycle model's, so that the frame moves without slipping.
    axles = 0.6 * EGO_SIZE[0]
    ahead_vector = np.stack([np.cos(body[:, 2]), np.sin(body[:, 2])], -1)
    rear = body[:, :2] - axles / 2 * ahead_vector
    return Ego(np.concatenate([rear, body[:, 2:]], -1), body, route, wish, hold)


class Traffic:
    """Accepts moving actors one after another; what stands still is marked in the site."""

    def __init__(self, network: RoadNetwork, site: Site, ego: Ego, rng: np.random.Generator) -> None:
        self.network, self.site, self.ego, self.rng = network, site, ego, rng
        self.actors: list[Actor] = []
        self._tracks = [ego.body[CHECKS]]
        self._sizes = [EGO_SIZE[:2]]
        self._flows: dict[str, np.ndarray] = {ego.route.flow: ego.wish}
        self._lights: dict[str, tuple[float, bool]] = {}

    def fits(self, actor: Actor) -> bool:
        """Whether an actor meets nothing, at any time, and spends some of it inside the site."""
        poses = actor.poses(TIMES[CHECKS])
        if not any(self.site.holds(pose[None, :2]) for pose in poses[::20]):
            return False
        outline = footprints(poses, actor.size, 0.1)
        grid = np.concatenate([outline, (outline + np.roll(outline, 1, 1)) / 2, poses[:, None, :2]], 1)
        if (self.site.at(grid) & TAKEN).any():
            return False
        others = np.stack(self._tracks, 1)
        return not overlapping(poses, actor.size, others, np.array(self._sizes), CLEARANCE).any()

    def accept(self, *actors: Actor) -> None:
        for actor in actors:
            self.actors.append(actor)
            self._tracks.append(actor.poses(TIMES[CHECKS]))
            self._sizes.append(actor.size[:2])

    def offer(self, *actors: Actor) -> bool:
        """Accept actors (a truck and its trailer) if all of them fit."""
        if all(self.fits(actor) for actor in actors):
            self.accept(*actors)
            return True
        return False

    # --- vehicles ------------------------------------------------------------------------------------------

    def _flow(self, name: str) -> np.ndarray:
        if name not in self._flows:
            self._flows[name] = wishes(self.rng, self.rng.uniform(5.0, 12.0))
        return self._flows[name]

    def _light(self, flow: str) -> tuple[float, bool]:
        """(time at which the flow's light turns green, whether it is red until then)."""
        if flow not in self._lights:
            main = flow.startswith("main")
            red = self.rng.random() < (0.15 if main else 0.65)
            self._lights[flow] = (float(self.rng.uniform(2.0, 15.0)), bool(red))
        return self._lights[flow]

    def vehicle(self, route: Route) -> bool:
        """Offer one vehicle on a route."""
        rng, path = self.rng, route.path
        shares = np.array(list(DRIVING.values()))
        class_name = str(rng.choice(list(DRIVING), p=shares / shares.sum()))
        if route.kind == "turn" and class_name == "bus":
            class_name = "car"
        rider = class_name in ("motorcycle", "bicycle")
        size = draw_size(class_name, rng, rider)
        wish = self._flow(route.flow)
        # Half way through the scene it is somewhere near the ego.
        middle = path.project(self.ego.body[len(TIMES) // 2, :2])
        start = middle + rng.normal(0, 38.0) - DURATION / 2 * wish.mean()
        if not 18.0 < start < path.length - 12.0:
            return False
        if class_name == "bicycle":
            wish = np.minimum(wish, rng.uniform(3.0, 6.5))
        stop, release = None, 0.0
        ahead = [s - size[0] / 2 - 1.0 for s in route.stops if s - size[0] / 2 - 1.0 > start]
        hold = self.ego.hold if route.flow == self.ego.route.flow else None
        if hold is not None and ahead:
            stop, release = ahead[0], hold[1]
        elif ahead and self._light(route.flow)[1]:
            stop, release = ahead[0], self._light(route.flow)[0]
        if stop is not None:
            stop = self._queue(stop)
            if stop <= start + 1.0:
                return False
        s = drive(path, start, wish, stop, release)
        track = follow(path, s, size, class_name)
        actor = Actor(class_name, size, track, s - s[0], rider=rider)
        if class_name == "truck" and rng.random() < 0.6 and start > 30 and route.kind != "turn":
            return self.offer(actor, hang_trailer(actor, path, draw_size("trailer", rng)))
        return self.offer(actor)

    def _queue(self, stop: float) -> float:
        """Where to stop: at the line, or behind those who wait there already."""
        return stop - float(self.rng.choice([0.0, 0.0, 7.0, 8.0, 14.0, 16.0, 22.0]))

    def overtake(self, direction: int) -> bool:
        """Offer a faster vehicle that leaves the outer lane for the inner one and comes back."""
        main, rng = self.network.main, self.rng
        if main.lanes < 2:
            return False
        start = rng.uniform(40.0, 220.0)
        path = overtaking(main, direction, start + rng.uniform(0, 30), rng.uniform(65, 110))
        class_name = str(rng.choice(["car", "car", "motorcycle"]))
        size = draw_size(class_name, rng, class_name == "motorcycle")
        s = drive(path, start, wishes(rng, rng.uniform(10.0, 14.0)))
        actor = Actor(
            class_name, size, follow(path, s, size, class_name), s - s[0], rider=class_name == "motorcycle"
        )
        return self.offer(actor)

    def vehicles(self, count: int, tries: int = 12) -> None:
        """Offer vehicles until ``count`` have been accepted, or ``tries`` times as many were offered."""
        routes = self.network.routes()
        weight = {"main": 1.0, "side": 0.6, "turn": 0.35}
        weights = np.array([weight[route.kind] for route in routes])
        accepted = 0
        for _ in range(2):
            accepted += self.overtake(int(self.rng.choice([1, -1])))
        for _ in range(count * tries):
            if accepted >= count:
                return
            accepted += self.vehicle(routes[int(self.rng.choice(len(routes), p=weights / weights.sum()))])

    # --- people --------------------------------------------------------------------------------------------

    def walker(self) -> bool:
        """Offer someone walking along a sidewalk."""
        rng = self.rng
        road = self.network.roads[int(rng.integers(len(self.network.roads)))]
        if rng.random() < 0.45:
            road = self.network.main
        side = int(rng.choice([1, -1]))
        intervals = self.network.clear_intervals(road, 1.0)
        low, high = intervals[int(rng.integers(len(intervals)))]
        path = road.path.offset(side * rng.uniform(road.curb + 0.9, road.edge - 0.6), low, high)
        if rng.random() < 0.5:
            path = path.reversed()
        # More of them where the ego comes by.
        start = path.project(self.ego.body[int(rng.integers(len(TIMES))), :2]) + rng.normal(0, 20.0)
        if not 0 < start < path.length:
            start = rng.uniform(0, path.length)
        return self._walk(path, start, "pedestrian")

    def crosser(self) -> bool:
        """Offer someone crossing a road, mostly on a crosswalk; some wait at the kerb first."""
        rng = self.rng
        road = self.network.roads[int(rng.integers(len(self.network.roads)))]
        places = []
        for junction in self.network.junctions:
            if road is self.network.main:
                places += [junction.s + sign * (junction.main_reach - 2.0) for sign in (1, -1)]
            elif road is junction.side:
                places += [junction.side_s + arm * (junction.side_reach - 2.0) for arm in junction.arms]
        if rng.random() < 0.2 or not places:
            low, high = self.network.clear_intervals(road)[0]
            places = [rng.uniform(low, high)]
        s = places[int(rng.integers(len(places)))] + rng.uniform(-1.2, 1.2)
        side = int(rng.choice([1, -1]))
        d = np.linspace(side * (road.edge - 0.7), -side * (road.edge - 0.7), 60)
        return self._walk(Path(road.at(np.full(60, s), d)[0]), 0.0, "pedestrian", wait=True)

    def _walk(self, path: Path, start: float, class_name: str, wait: bool = False) -> bool:
        rng = self.rng
        pace = rng.uniform(0.9, 1.75) if class_name == "pedestrian" else rng.uniform(2.5, 4.5)
        wish = np.full(len(TIMES), pace)
        if wait:
            if rng.random() < 0.5:
                start = rng.uniform(0, path.length * 0.7)
            else:
                wish *= np.clip((TIMES - rng.uniform(0, 5)) / 0.4, 0, 1)
        elif rng.random() < 0.2:
            wish *= np.clip((rng.uniform(2, 8) - TIMES) / 0.4, 0, 1)
        size = draw_size(class_name, rng, rider=class_name != "pedestrian")
        # Nobody walks beyond the end of the path: they stop there.
        s = drive(path, start, wish, path.length - 0.6, np.inf, brake=1.5, push=1.5)
        track = follow(path, s, size, class_name)
        return self.offer(Actor(class_name, size, track, s - s[0], rider=class_name != "pedestrian"))

    def sidewalk_cyclist(self) -> bool:
        """Offer someone cycling along a sidewalk."""
        road = self.network.roads[int(self.rng.integers(len(self.network.roads)))]
        low, high = max(self.network.clear_intervals(road, 1.0), key=lambda pair: pair[1] - pair[0])
        side = int(self.rng.choice([1, -1]))
        path = road.path.offset(side * self.rng.uniform(road.curb + 0.9, road.edge - 0.6), low, high)
        if self.rng.random() < 0.5:
            path = path.reversed()
        return self._walk(path, self.rng.uniform(0, path.length), "bicycle")

    def people(self, walkers: int, crossers: int, cyclists: int) -> None:
        """Offer people on foot and on bicycles until as many have been accepted, or four times as many offered."""
        for offer, count in (
            (self.walker, walkers),
            (self.crosser, crossers),
            (self.sidewalk_cyclist, cyclists),
        ):
            accepted = 0
            for _ in range(count * 4):
                if accepted >= count:
                    break
                accepted += offer()
