# SPDX-License-Identifier: Apache-2.0
"""Which past frames a stream keeps, which of them fill the network's slots, and when they must go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from bevnext_core.geometry import rotation_angle

T = TypeVar("T")
SECOND = 1_000_000_000


@dataclass(frozen=True)
class HistoryOptions:
    """
    Attributes:
        slots: ``time``: slot k holds the stored frame nearest to ``t - k * interval`` and no further from it than
            half an interval. ``count``: slot k holds the k-th stored frame, whatever its age (what the
            published evaluation does with key frames).
        store_interval: seconds; a frame sooner than this after the newest stored one is not stored. Bounds the
            memory: at most ``(slots + 1/2) * interval / store_interval + 2`` frames.
        max_gap: seconds between two frames above which the past is forgotten.
        max_speed, max_turn_rate: m/s and rad/s above which a change of the ego pose is a jump, not motion.
    """

    slots: Literal["time", "count"] = "time"
    store_interval: float = 0.1
    max_gap: float = 2.0
    max_speed: float = 70.0
    max_turn_rate: float = 3.0


@dataclass(frozen=True)
class Stored(Generic[T]):
    """A frame that was kept."""

    stamp_ns: int
    item: T


class History(Generic[T]):
    """A bounded store of past frames, oldest first. Knows stamps and poses, not what it stores."""

    def __init__(self, slots: int, interval: float, options: HistoryOptions) -> None:
        self.slots, self.interval, self.options = slots, interval, options
        in_time = int((slots + 0.5) * interval / max(options.store_interval, 1e-3)) + 2
        self.capacity = slots if options.slots == "count" else in_time
        self._frames: deque[Stored[T]] = deque(maxlen=max(self.capacity, 1))
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        self._frames.clear()
        self._last = None

    def reset_reason(self, stamp_ns: int, global_from_ego: np.ndarray) -> str:
        """Why the past does not belong to a frame at ``stamp_ns`` with this pose; empty when it does."""
        if self._last is None:
            return ""
        last_ns, last_pose = self._last
        elapsed = (stamp_ns - last_ns) / SECOND
        if elapsed < 0:
            return f"time went back by {-elapsed:.3f} s"
        if elapsed > self.options.max_gap:
            return f"gap of {elapsed:.3f} s"
        distance = float(np.linalg.norm(global_from_ego[:3, 3] - last_pose[:3, 3]))
        # The constant terms keep noise at short intervals from looking like speed.
        if distance > self.options.max_speed * elapsed + 0.5:
            return f"ego pose jumped {distance:.1f} m in {elapsed:.3f} s"
        angle = rotation_angle(last_pose[:3, :3].T @ global_from_ego[:3, :3])
        if angle > self.options.max_turn_rate * elapsed + 0.1:
            return f"ego pose turned {np.degrees(angle):.0f} degrees in {elapsed:.3f} s"
        return ""

    def select(self, stamp_ns: int) -> list[Stored[T] | None]:
        """The stored frame of each slot, newest slot first; ``None`` where there is none."""
        past = [frame for frame in self._frames if frame.stamp_ns < stamp_ns]
        if self.options.slots == "count":
            return [*past[::-1], *[None] * self.slots][: self.slots]
        chosen: list[Stored[T] | None] = []
        for slot in range(1, self.slots + 1):
            target = stamp_ns - round(slot * self.interval * SECOND)
            near = [frame for frame in past if abs(frame.stamp_ns - target) <= self.interval / 2 * SECOND]
            chosen.append(min(near, key=lambda frame: abs(frame.stamp_ns - target), default=None))
        return chosen

    def push(self, stamp_ns: int, global_from_ego: np.ndarray, item: T) -> None:
        """Note the frame's stamp and pose, and store it unless it is too near to the newest stored one."""
        self._last = (stamp_ns, np.array(global_from_ego))
        if self.slots == 0:
            return
        interval = self.options.store_interval if self.options.slots == "time" else 0.0
        if not self._frames or stamp_ns - self._frames[-1].stamp_ns >= max(1, round(interval * SECOND)):
            self._frames.append(Stored(stamp_ns, item))
