"""What the node says about itself on /diagnostics: rate, latency, cameras, drops, history. No rclpy here."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bevnext_core.detections import Detections
from bevnext_ros.messages.conversions import make_time
from bevnext_ros.messages.factory import MessageFactory
from bevnext_ros.node.worker import STAGES

OK, WARN, ERROR = 0, 1, 2
_LEVELS = {level: bytes([level]) for level in (OK, WARN, ERROR)}


@dataclass
class Report:
    """A moment of the node's life, for :meth:`Diagnostics.statuses`.

    Attributes:
        state: of the lifecycle. fault: why it could not be configured; empty when it could.
        ages: seconds since each camera was heard (``None``: never). anchor: the camera without which nothing goes.
        silent_after: age above which a camera is reported.
        drops: frames by cause; image_drops, transform_drops, calibration_drops: messages by cause.
        seen, published, in_flight: frames. note: the last fault in words.
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

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: list[dict[str, float]] = []
        self._slow_in_a_row = 0
        self._history = 0
        self._history_slots = 0
        self._last_reset = ""
        self._last_reset_stamp_ns = 0
        self._resets = 0
        self._last_drops: dict[str, int] = {}
        self._last_time = time.monotonic()

    def note_result(self, detections: Detections, seconds: Mapping[str, float], slow_frame: float) -> None:
        """One published frame with the duration of each stage."""
        with self._lock:
            self._seconds.append(dict(seconds))
            self._slow_in_a_row = self._slow_in_a_row + 1 if seconds["total"] > slow_frame else 0
            self._history = detections.info.history_frames
            self._history_slots = len(detections.info.history_stamps_ns)
            if detections.info.reset_reason:
                self._last_reset = detections.info.reset_reason
                self._last_reset_stamp_ns = detections.stamp_ns
                self._resets += 1

    def statuses(self, report: Report) -> list[Status]:
        """The entries, over the time since the last call."""
        with self._lock:
            now = time.monotonic()
            elapsed, self._last_time = max(now - self._last_time, 1e-6), now
            seconds, self._seconds = self._seconds, []
            return [
                self._node(report, len(seconds) / elapsed),
                self._latency(report, seconds),
                self._cameras(report),
                self._drops(report),
                self._history_status(),
            ]

    def _node(self, report: Report, rate: float) -> Status:
        values = {
            "state": report.state,
            "rate_hz": f"{rate:.2f}",
            "frames_seen": str(report.seen),
            "frames_published": str(report.published),
            "frames_in_flight": str(report.in_flight),
        }
        if report.fault:
            return Status("node", ERROR, report.fault, values)
        if not report.active:
            return Status("node", WARN, report.state, values)
        return Status("node", OK, f"{rate:.1f} frames/s", values)

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
        return Status("latency", OK, f"{values.get('total_mean_ms', '-')} ms", values)

    def _cameras(self, report: Report) -> Status:
        values = {f"{n}_age_s": "never" if age is None else f"{age:.2f}" for n, age in report.ages.items()}
        values |= {f"images_{cause}": str(count) for cause, count in report.image_drops.items()}
        values |= {f"camera_info_{cause}": str(count) for cause, count in report.calibration_drops.items()}
        silent = [n for n, age in report.ages.items() if age is None or age > report.silent_after]
        if report.active and silent:
            level = ERROR if report.anchor in silent or len(silent) == len(report.ages) else WARN
            return Status("cameras", level, f"silent: {', '.join(silent)}", values)
        return Status("cameras", OK, f"{len(report.ages)} cameras", values)

    def _drops(self, report: Report) -> Status:
        values = {cause: str(count) for cause, count in report.drops.items()}
        values |= {f"transforms_{cause}": str(count) for cause, count in report.transform_drops.items()}
        # frames that nobody wanted, or that were given up on purpose, are no trouble
        expected = {"no_subscriber", "deactivated"}
        new = {
            cause: count - self._last_drops.get(cause, 0)
            for cause, count in report.drops.items()
            if count > self._last_drops.get(cause, 0) and cause not in expected
        }
        self._last_drops = dict(report.drops)
        if report.note:
            values["last_fault"] = report.note
        if new:
            return Status(
                "drops", WARN, ", ".join(f"{cause} {count}" for cause, count in new.items()), values
            )
        return Status("drops", OK, "none", values)

    def _history_status(self) -> Status:
        values = {
            "frames": str(self._history),
            "slots": str(self._history_slots),
            "resets": str(self._resets),
            "last_reset": self._last_reset or "none",
            "last_reset_stamp_ns": str(self._last_reset_stamp_ns),
        }
        return Status("history", OK, f"{self._history} of {self._history_slots} past frames", values)


def make_diagnostics(factory: MessageFactory, statuses: list[Status], node: str, stamp_ns: int) -> Any:
    """diagnostic_msgs/DiagnosticArray; ``node`` is the node's full name."""
    items = [
        factory.make(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=_LEVELS[status.level],
            name=f"{node.lstrip('/')}: {status.name}",
            message=status.message,
            hardware_id="",
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
