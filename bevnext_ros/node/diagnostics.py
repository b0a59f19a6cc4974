# SPDX-License-Identifier: Apache-2.0
"""What the node says about itself on /diagnostics: rate, latency, cameras, drops, history. No rclpy here."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bevnext_core.detections import Detections
from bevnext_ros.messages.conversions import make_time
from bevnext_ros.messages.factory import MessageFactory
from bevnext_ros.node.worker import STAGES

OK, WARN, ERROR = 0, 1, 2
EXPECTED = frozenset({"no_subscriber", "deactivated", "max_rate"})
"""Causes that are no loss: frames that nobody wanted, or that were given up on purpose."""
_WINDOW_SECONDS = 10.0
"""Over which the share of lost frames is taken."""
_LEVELS = {level: bytes([level]) for level in (OK, WARN, ERROR)}


@dataclass
class Report:
    """A moment of the node's life, for :meth:`Diagnostics.statuses`.

    Attributes:
        state: of the lifecycle. fault: why it could not be configured; empty when it could.
        ages: seconds since each camera was heard (``None``: never). anchor: the camera without which nothing goes.
        silent_after: age above which a camera is reported.
        drops: frames by cause; image_drops, transform_drops, calibration_drops: messages by cause.
        seen, published, in_flight: frames. note: the last fault in words, with its age.
        wanted: whether somebody subscribes. bad_cameras: what is wrong with a camera's images or calibration.
        no_output_after: seconds without output, although images come, that are an error.
        max_loss: share of frames lost above which is warned.
    """

    state: str
    fault: str = ""
    active: bool = False
    ages: Mapping[str, float | None] = field(default_factory=dict)
    anchor: str = ""
    silent_after: float = 1.0
    drops: Mapping[str, int] = field(default_factory=dict)
    image_drops: Mapping[str, int] = field(default_factory=dict)
    transform_drops: Mapping[str, int] = field(default_factory=dict)
    calibration_drops: Mapping[str, int] = field(default_factory=dict)
    seen: int = 0
    published: int = 0
    in_flight: int = 0
    note: str = ""
    wanted: bool = True
    bad_cameras: Mapping[str, str] = field(default_factory=dict)
    no_output_after: float = 5.0
    max_loss: float = 0.1
    slow_frame: float = 1.0
    slow_frames: int = 10


@dataclass
class Status:
    """One entry of /diagnostics."""

    name: str
    level: int
    message: str
    values: dict[str, str]


class Diagnostics:
    """Collects results (from the detector's thread) and reports on them (from the executor's)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: list[dict[str, float]] = []
        self._slow_in_a_row = 0
        self._history = 0
        self._history_slots = 0
        self._last_reset = ""
        self._last_reset_stamp_ns = 0
        self._resets = 0
        self._doubt = ""
        self._past: deque[tuple[float, int, dict[str, int]]] = deque()  # time, published, drops
        self._output_time = self._last_time = clock()
        self._output_drops: dict[str, int] = {}

    def note_result(self, detections: Detections, seconds: Mapping[str, float], slow_frame: float) -> None:
        """One published frame with the duration of each stage."""
        with self._lock:
            self._seconds.append(dict(seconds))
            self._slow_in_a_row = self._slow_in_a_row + 1 if seconds["total"] > slow_frame else 0
            self._history = detections.info.history_frames
            self._history_slots = len(detections.info.history_stamps_ns)
            self._doubt = detections.info.doubt
            if detections.info.reset_reason:
                self._last_reset = detections.info.reset_reason
                self._last_reset_stamp_ns = detections.stamp_ns
                self._resets += 1

    def statuses(self, report: Report) -> list[Status]:
        """The entries, over the time since the last call."""
        with self._lock:
            now = self._clock()
            elapsed, self._last_time = max(now - self._last_time, 1e-6), now
            seconds, self._seconds = self._seconds, []
            return [
                self._node(report, len(seconds) / elapsed, now),
                self._latency(report, seconds),
                self._cameras(report),
                self._drops(report, now),
                self._history_status(),
            ]

    def _node(self, report: Report, rate: float, now: float) -> Status:
        values = {
            "state": report.state,
            "rate_hz": f"{rate:.2f}",
            "frames_seen": str(report.seen),
            "frames_published": str(report.published),
            "frames_in_flight": str(report.in_flight),
        }
        coming = any(age is not None and age <= report.silent_after for age in report.ages.values())
        if rate or not (report.active and report.wanted and coming):
            self._output_time, self._output_drops = now, dict(report.drops)
        if report.fault:
            return Status("node", ERROR, report.fault, values)
        if not report.active:
            return Status("node", WARN, report.state, values)
        if not report.wanted:
            return Status("node", OK, "idle: nobody subscribes to the boxes", values)
        if now - self._output_time >= report.no_output_after:
            text = f"no output for {now - self._output_time:.0f} s although images come: {self._why(report)}"
            return Status("node", ERROR, text, values)
        if self._doubt:
            return Status("node", WARN, f"{rate:.1f} frames/s; {self._doubt}", values)
        return Status("node", OK, f"{rate:.1f} frames/s", values)

    def _why(self, report: Report) -> str:
        """What dropped most since the last output."""
        lost = _since(report.drops, self._output_drops)
        if lost:
            cause = max(lost, key=lost.__getitem__)
            return f"{cause} {lost[cause]}" + (f" ({report.note})" if report.note else "")
        age = report.ages.get(report.anchor)
        if age is None or age > report.silent_after:
            return f"none of the anchor camera {report.anchor}"
        return f"{report.in_flight} frames are under way and none comes out"

    def _latency(self, report: Report, seconds: list[dict[str, float]]) -> Status:
        values: dict[str, str] = {}
        for stage in STAGES if seconds else ():
            durations = [entry[stage] for entry in seconds]
            values[f"{stage}_mean_ms"] = f"{sum(durations) / len(durations) * 1e3:.1f}"
            values[f"{stage}_max_ms"] = f"{max(durations) * 1e3:.1f}"
        slow = sum(entry["total"] > report.slow_frame for entry in seconds)
        values["slow_frames"] = str(slow)
        if self._slow_in_a_row >= report.slow_frames:
            text = f"{self._slow_in_a_row} frames in a row took more than {report.slow_frame:g} s"
            return Status("latency", ERROR, text, values)
        if slow:
            text = f"{slow} of {len(seconds)} frames took more than {report.slow_frame:g} s"
            return Status("latency", WARN, text, values)
        text = f"{values['total_mean_ms']} ms" if seconds else "no frame in this period"
        return Status("latency", OK, text, values)

    def _cameras(self, report: Report) -> Status:
        values = {f"{n}_age_s": "never" if age is None else f"{age:.2f}" for n, age in report.ages.items()}
        values |= {f"images_{cause}": str(count) for cause, count in report.image_drops.items()}
        values |= {f"camera_info_{cause}": str(count) for cause, count in report.calibration_drops.items()}
        silent = [n for n, age in report.ages.items() if age is None or age > report.silent_after]
        if report.active and silent:
            level = ERROR if report.anchor in silent or len(silent) == len(report.ages) else WARN
            return Status("cameras", level, f"silent: {', '.join(silent)}", values)
        if report.active and report.bad_cameras:
            level = ERROR if report.anchor in report.bad_cameras else WARN
            return Status("cameras", level, "; ".join(report.bad_cameras.values()), values)
        return Status("cameras", OK, f"{len(report.ages)} cameras", values)

    def _drops(self, report: Report, now: float) -> Status:
        values = {cause: str(count) for cause, count in report.drops.items()}
        values |= {f"transforms_{cause}": str(count) for cause, count in report.transform_drops.items()}
        if report.note:
            values["last_fault"] = report.note
        self._past.append((now, report.published, dict(report.drops)))
        while len(self._past) > 2 and self._past[1][0] <= now - _WINDOW_SECONDS:
            self._past.popleft()
        begin, published, drops = self._past[0]
        lost = _since(report.drops, drops)
        count = sum(lost.values())
        done = report.published - published + count
        if not count:
            return Status("drops", OK, "none", values)
        causes = ", ".join(f"{cause} {number}" for cause, number in lost.items())
        text = f"{count} of {done} frames lost in {now - begin:.0f} s: {causes}"
        return Status("drops", WARN if count > report.max_loss * done else OK, text, values)

    def _history_status(self) -> Status:
        values = {
            "frames": str(self._history),
            "slots": str(self._history_slots),
            "resets": str(self._resets),
            "last_reset": self._last_reset or "none",
            "last_reset_stamp_ns": str(self._last_reset_stamp_ns),
        }
        return Status("history", OK, f"{self._history} of {self._history_slots} past frames", values)


def _since(drops: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Frames lost since, by cause; what was expected is none."""
    lost = {cause: count - before.get(cause, 0) for cause, count in drops.items() if cause not in EXPECTED}
    return {cause: count for cause, count in lost.items() if count > 0}


def make_diagnostics(
    factory: MessageFactory, statuses: list[Status], node: str, stamp_ns: int, hardware_id: str
) -> Any:
    """diagnostic_msgs/DiagnosticArray; ``node`` is the node's full name, ``hardware_id`` what it runs on."""
    items = [
        factory.make(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=_LEVELS[status.level],
            name=f"{node.lstrip('/')}: {status.name}",
            message=status.message,
            hardware_id=hardware_id,
            values=[
                factory.make("diagnostic_msgs/msg/KeyValue", key=key, value=value)
                for key, value in status.values.items()
            ],
        )
        for status in statuses
    ]
    header = factory.make("std_msgs/msg/Header", stamp=make_time(factory, stamp_ns), frame_id="")
    return factory.make("diagnostic_msgs/msg/DiagnosticArray", header=header, status=items)


def make_latency(factory: MessageFactory, seconds: Mapping[str, float]) -> Any:
    """std_msgs/Float64MultiArray: milliseconds per stage; the names stand in ``layout.dim[i].label``."""
    dims = [
        factory.make("std_msgs/msg/MultiArrayDimension", label=stage, size=1, stride=1) for stage in STAGES
    ]
    layout = factory.make("std_msgs/msg/MultiArrayLayout", dim=dims, data_offset=0)
    return factory.make(
        "std_msgs/msg/Float64MultiArray", layout=layout, data=[seconds[stage] * 1e3 for stage in STAGES]
    )
