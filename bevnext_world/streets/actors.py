# SPDX-License-Identifier: Apache-2.0
"""Things that are annotated: their classes and sizes, and how they move.

A moving thing follows a path with its front axle and drags its rear axle behind (the kinematic bicycle model);
a trailer hangs on its truck's hitch and is dragged in the same way. Tracks are sampled at :data:`RATE`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from bevnext_world.streets.paths import Path

RATE = 50
"""Samples of a track per second."""
DURATION = 9.8
"""Length of a scene in seconds: 20 key frames and the sensors' delays."""
TIMES = np.arange(int(DURATION * RATE) + 1) / RATE

MEAN_SIZES = {
    "car": (4.6, 1.93, 1.70),
    "truck": (7.0, 2.45, 2.90),
    "construction_vehicle": (6.4, 2.70, 3.20),
    "bus": (10.8, 2.80, 3.45),
    "trailer": (10.5, 2.65, 3.70),
    "barrier": (0.50, 2.40, 1.00),
    "motorcycle": (2.10, 0.80, 1.45),
    "bicycle": (1.75, 0.62, 1.30),
    "pedestrian": (0.72, 0.68, 1.75),
    "traffic_cone": (0.42, 0.42, 1.00),
}
"""Length, width and height. A barrier's long side is its width, as in nuScenes."""

CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "construction_vehicle": "vehicle.construction",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "barrier": "movable_object.barrier",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "pedestrian": "human.pedestrian.adult",
    "traffic_cone": "movable_object.trafficcone",
}

WHEELBASE = {"car": 0.6, "truck": 0.6, "bus": 0.55, "construction_vehicle": 0.5}
"""Distance of the axles as a part of the length; 0.65 for the others."""
RIDER_HEIGHT = {"motorcycle": 1.08, "bicycle": 1.32}
BARE_HEIGHT = {"motorcycle": 0.86, "bicycle": 0.82}
"""Height of a cycle with and without its rider, relative to the class's mean."""

CYCLES = ("motorcycle", "bicycle")
MOVING_SPEED = 0.3
"""From this speed (m/s) on, something is annotated as moving."""


def draw_size(class_name: str, rng: np.random.Generator, rider: bool = False) -> tuple[float, float, float]:
    """A true size (length, width, height): about 12 % spread, partly shared by the three."""
    shared = np.clip(rng.normal(0, 0.09), -0.2, 0.2)
    factors = np.exp(shared + np.clip(rng.normal(0, 0.08, 3), -0.16, 0.16))
    length, width, height = np.array(MEAN_SIZES[class_name]) * factors
    if class_name in CYCLES:
        height *= RIDER_HEIGHT[class_name] if rider else BARE_HEIGHT[class_name]
    if class_name in ("truck", "bus", "trailer", "construction_vehicle"):
        # What drives on a lane is no wider than roads allow.
        width = min(width, 3.0)
    return float(length), float(width), float(height)


@dataclass
class Actor:
    """Something annotated.

    Attributes:
        class_name, size: one of the ten classes; length, width, height.
        track: ``[T, 3]`` x, y of the centre and heading at :data:`TIMES`, or ``[1, 3]`` for what stands still.
        travelled: ``[T]`` metres covered (legs and wheels follow it), or ``[1]``.
        parked: a vehicle without intent to move; rider: a cycle with its rider.
        towed_by: the actor that a trailer hangs on; the two may touch.
    """

    class_name: str
    size: tuple[float, float, float]
    track: np.ndarray
    travelled: np.ndarray = field(default_factory=lambda: np.zeros(1))
    parked: bool = False
    rider: bool = False
    towed_by: Actor | None = None

    @property
    def static(self) -> bool:
        return len(self.track) == 1

    def poses(self, times: np.ndarray | float) -> np.ndarray:
        """``[..., 3]`` x, y, heading at times in seconds."""
        times = np.asarray(times, np.float64)
        if self.static:
            return np.broadcast_to(self.track[0], (*times.shape, 3))
        return np.stack([np.interp(times, TIMES, self.track[:, axis]) for axis in range(3)], -1)

    def phase(self, time: float) -> float:
        """Place in the gait, [0, 1): one stride is 1.4 m."""
        covered = self.travelled[0] if self.static else np.interp(time, TIMES, self.travelled)
        return float(covered / 1.4 % 1.0)

    def speed(self, time: float) -> float:
        """m/s, over 0.2 s around ``time``."""
        a, b = self.poses(np.array([max(time - 0.1, 0.0), time + 0.1]))[:, :2]
        return float(np.hypot(*(b - a)) / (time + 0.1 - max(time - 0.1, 0.0)))

    def attribute(self, time: float) -> str:
        """The nuScenes attribute at a time, empty for classes without one."""
        moving = self.speed(time) > MOVING_SPEED
        if self.class_name in ("barrier", "traffic_cone"):
            return ""
        if self.class_name == "pedestrian":
            return "pedestrian.moving" if moving else "pedestrian.standing"
        if self.class_name in CYCLES:
            return "cycle.with_rider" if self.rider else "cycle.without_rider"
        if moving:
            return "vehicle.moving"
        return "vehicle.parked" if self.parked else "vehicle.stopped"


def standing(
    class_name: str, size: tuple[float, float, float], xy: np.ndarray, heading: float, parked: bool = False
) -> Actor:
    """An actor that never moves."""
    return Actor(class_name, size, np.array([[xy[0], xy[1], heading]]), parked=parked)


def speed_limits(path: Path, lateral: float = 2.2) -> np.ndarray:
    """``[K]`` m/s: what the curvature allows with ``lateral`` m/s^2."""
    return np.sqrt(lateral / np.maximum(np.abs(path.curvature()), 1e-4))


def reachable_limits(path: Path, brake: float) -> list[float]:
    """m/s at each point of a path: the fastest from which every later limit can be met with ``brake``."""
    limit = (speed_limits(path) ** 2).tolist()
    step = 2 * brake * float(path.s[1])
    for i in range(len(limit) - 2, -1, -1):
        limit[i] = min(limit[i], limit[i + 1] + step)
    return [math.sqrt(value) for value in limit]


def drive(
    path: Path,
    start: float,
    wish: np.ndarray,
    stop_at: float | None = None,
    release: float = np.inf,
    brake: float = 2.5,
    push: float = 1.8,
) -> np.ndarray:
    """Distances along a path at :data:`TIMES`: as fast as wished, slower in curves, with a stop.

    Args:
        start: distance at the beginning, metres.
        wish: ``[T]`` m/s.
        stop_at: distance of a stop line that is closed until ``release`` (s).
        brake, push: largest deceleration and acceleration, m/s^2.
    """
    limit = path.cached(("limit", brake), lambda: reachable_limits(path, 0.8 * brake))
    last, spacing, dt = len(limit) - 1, float(path.s[1]), 1.0 / RATE
    s, v = start, min(float(wish[0]), limit[min(max(int(start / spacing), 0), last)])
    if stop_at is not None and stop_at - s > 0 and release > 0:
        v = min(v, math.sqrt(2 * brake * 0.8 * (stop_at - s)))
    speeds = np.empty(len(TIMES))
    for i, (time, wished) in enumerate(zip(TIMES.tolist(), wish.tolist())):
        target = min(wished, limit[min(max(int(s / spacing), 0), last)])
        if stop_at is not None and time < release and s <= stop_at + 0.5:
            target = min(target, math.sqrt(2 * brake * 0.8 * max(stop_at - s, 0.0)))
        v = min(max(target, v - brake * 1.3 * dt), v + push * dt)
        speeds[i] = v
        s += v * dt
    width = int(0.3 * RATE)
    smooth = np.convolve(np.pad(speeds, width, "edge"), np.ones(2 * width + 1) / (2 * width + 1), "valid")
    return start + np.concatenate([[0.0], np.cumsum((smooth[1:] + smooth[:-1]) / 2) * dt])


def dragged(points: np.ndarray, length: float, heading: float) -> np.ndarray:
    """Headings ``[T]`` of a rod of ``length`` whose front end is pulled along ``points`` ``[T, 2]``."""
    along = np.empty((len(points), 2))
    rear_x = float(points[0, 0]) - length * math.cos(heading)
    rear_y = float(points[0, 1]) - length * math.sin(heading)
    for i, (x, y) in enumerate(points.tolist()):
        dx, dy = x - rear_x, y - rear_y
        along[i] = dx, dy
        scale = length / math.sqrt(dx * dx + dy * dy)
        rear_x, rear_y = x - dx * scale, y - dy * scale
    return np.unwrap(np.arctan2(along[:, 1], along[:, 0]))


def follow(path: Path, s: np.ndarray, size: tuple[float, float, float], class_name: str) -> np.ndarray:
    """Track ``[T, 3]`` of a vehicle whose centre is near distances ``s`` of a path."""
    base = WHEELBASE.get(class_name, 0.65) * size[0]
    # It comes from 15 m before, so that its rear axle lies where it would.
    lead_in = np.arange(-15.0, 0.0, 0.25) + s[0]
    front, heading = path.at(np.concatenate([lead_in, s]) + base / 2)
    yaw = dragged(front, base, float(heading[0]))
    ahead = np.stack([np.cos(yaw), np.sin(yaw)], -1)
    centre = front - base / 2 * ahead
    return np.concatenate([centre, yaw[:, None]], -1)[len(lead_in) :]


def hang_trailer(truck: Actor, path: Path, size: tuple[float, float, float], gap: float = 0.7) -> Actor:
    """A trailer behind a moving truck, turning about the hitch at the truck's rear end."""
    ahead = np.stack([np.cos(truck.track[:, 2]), np.sin(truck.track[:, 2])], -1)
    hitch = truck.track[:, :2] - (truck.size[0] / 2) * ahead
    axle = gap + 0.75 * size[0]
    # Settle on the way there: the truck's own heading, held along the path it came.
    start = path.project(hitch[0])
    lead_in = path.at(start + np.arange(-20.0, 0.0, 0.25))[0] if start > 0 else hitch[:1]
    shift = hitch[0] - path.at(start)[0]
    points = np.concatenate([lead_in + shift, hitch])
    heading = float(path.at(start - 20.0)[1]) if start > 0 else float(truck.track[0, 2])
    yaw = dragged(points, axle, heading)[len(lead_in) :]
    yaw = yaw + 2 * np.pi * np.round((truck.track[0, 2] - yaw[0]) / (2 * np.pi))
    back = np.stack([np.cos(yaw), np.sin(yaw)], -1)
    centre = hitch - (gap + size[0] / 2) * back
    return Actor("trailer", size, np.concatenate([centre, yaw[:, None]], -1), truck.travelled, towed_by=truck)


def footprints(poses: np.ndarray, size: tuple[float, float, float], margin: float = 0.0) -> np.ndarray:
    """Ground corners ``[..., 4, 2]`` of a box at poses ``[..., 3]``, grown by ``margin`` on all sides."""
    half = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (np.array(size[:2]) / 2 + margin)
    cos, sin = np.cos(poses[..., 2])[..., None], np.sin(poses[..., 2])[..., None]
    x = half[:, 0] * cos - half[:, 1] * sin
    y = half[:, 0] * sin + half[:, 1] * cos
    return np.stack([x, y], -1) + poses[..., None, :2]


def overlapping(
    poses: np.ndarray,
    size: tuple[float, float, float],
    others: np.ndarray,
    sizes: np.ndarray,
    margin: float = 0.0,
) -> np.ndarray:
    """Whether a box's ground rectangle meets others' (separating axes).

    Args:
        poses: ``[T, 3]``; others: ``[T, N, 3]`` at the same times; sizes: ``[N, 2]`` length and width.
        margin: required clearance, metres.

    Returns:
        ``[T, N]`` bool.
    """
    delta = others[..., :2] - poses[:, None, :2]
    turn = others[..., 2] - poses[:, None, 2]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    l1, w1 = size[0] / 2, size[1] / 2
    l2, w2 = sizes[:, 0] / 2, sizes[:, 1] / 2

    def along(heading: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, s = np.cos(heading), np.sin(heading)
        return np.abs(delta[..., 0] * c + delta[..., 1] * s), np.abs(-delta[..., 0] * s + delta[..., 1] * c)

    x1, y1 = along(poses[:, None, 2])
    x2, y2 = along(others[..., 2])
    apart = (
        (x1 > l1 + l2 * cos + w2 * sin + margin)
        | (y1 > w1 + l2 * sin + w2 * cos + margin)
        | (x2 > l2 + l1 * cos + w1 * sin + margin)
        | (y2 > w2 + l1 * sin + w1 * cos + margin)
    )
    return ~apart
