# SPDX-License-Identifier: Apache-2.0
"""A detector that takes the real one's place where the network is not what is tested."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np

from bevnext_core.config import ModelConfig
from bevnext_core.detections import Detections, StepInfo
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid
from bevnext_core.streaming.history import History, HistoryOptions


class StandIn:
    """Gives boxes that are a function of the frame alone, and logs what it was given.

    It forgets the past for the same reasons as the real one, and logs the past cameras in the present frame.

    Args:
        wait: seconds that a step sleeps (without the interpreter's lock). log: a file that gets a JSON line per call.
    """

    def __init__(self, wait: float = 0.0, log: Path | None = None, config: ModelConfig | None = None) -> None:
        self.config = config or ModelConfig()
        self.wait = wait
        self.frames: list[CameraFrame] = []
        self.resets: list[str] = []
        self._log = log
        self._history: History[np.ndarray] = History(2, 0.5, HistoryOptions(slots="count"))
        self._reason = ""

    def step(self, frame: CameraFrame) -> Detections:
        time.sleep(self.wait)
        reason = self._history.reset_reason(frame.stamp_ns, frame.global_from_ego)
        if reason:
            self.reset(reason)
        history = [stored for stored in self._history.select(frame.stamp_ns) if stored is not None]
        ego_from_global = invert_rigid(frame.global_from_ego)
        if self._log:
            self._write(
                {
                    "stamp": frame.stamp_ns,
                    "stamps": frame.camera_stamps_ns.tolist(),
                    "valid": frame.valid.tolist(),
                    "pose": frame.global_from_ego.tolist(),
                    "intrinsics": frame.intrinsics.tolist(),
                    "images": [None if i is None else image_digest(i) for i in frame.images],
                    "reset": self._reason,
                    "history": [
                        {"stamp": past.stamp_ns, "ego_from_cameras": (ego_from_global @ past.item).tolist()}
                        for past in history
                    ],
                }
            )
        else:
            self.frames.append(frame)
        self._history.push(frame.stamp_ns, frame.global_from_ego, frame.global_from_camera)
        reason, self._reason = self._reason, ""
        stamps = tuple(past.stamp_ns for past in history)
        return boxes_of(frame, self.config, StepInfo(stamps, reason, {"detect": self.wait}))

    def reset(self, reason: str = "") -> None:
        self._history.clear()
        self._reason = reason
        self.resets.append(reason)

    def _write(self, entry: dict) -> None:
        assert self._log is not None
        with self._log.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Waiting(StandIn):
    """Only waits (without the interpreter's lock) and gives boxes: for measuring the node."""

    def step(self, frame: CameraFrame) -> Detections:
        time.sleep(self.wait)
        return boxes_of(frame, self.config)


def image_digest(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def boxes_of(frame: CameraFrame, config: ModelConfig, info: StepInfo | None = None) -> Detections:
    """Three boxes whose numbers depend on the frame's stamp, pose and images."""
    digest = hashlib.sha256(str(frame.stamp_ns).encode())
    for image in frame.images:
        digest.update(b"masked" if image is None else image[::64, ::64].tobytes())
    rng = np.random.default_rng(int.from_bytes(digest.digest()[:8], "little"))
    boxes = rng.uniform(-30, 30, (3, 9)).astype(np.float32)
    boxes[:, 3:6] = np.abs(boxes[:, 3:6]) / 10 + 0.5
    boxes[:, 6] /= 10
    scores = np.sort(rng.uniform(0.2, 1, 3).astype(np.float32))[::-1].copy()
    return Detections(
        boxes,
        scores,
        rng.integers(0, len(config.class_names), 3),
        config.class_names,
        frame.stamp_ns,
        frame.global_from_ego,
        frame.token,
        info or StepInfo(),
    )
