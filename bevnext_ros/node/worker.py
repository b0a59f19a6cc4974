# SPDX-License-Identifier: Apache-2.0
"""The node's two background threads: one decodes images, one runs the detector. No ROS here.

Decoding of the next frame runs beside the inference of the present one. With ``newest``, decoding starts only
shortly before the detector will be free, so that the newest complete frame wins and nothing is decoded in vain.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bevnext_core.detections import Detections, FrameDetector
from bevnext_core.errors import BevnextError, FrameError
from bevnext_core.frame import CameraFrame
from bevnext_ros.streams.drops import DropCounter
from bevnext_ros.streams.faults import Faults
from bevnext_ros.streams.frame_builder import PosedFrame, camera_frame

STAGES = ("assemble", "transforms", "queue", "decode", "ready", "inference", "publish", "total")
"""Intervals of a frame's way: newest image arrived, frame complete, poses there, decoding began, decoded,
inference began, inference ended, published; ``total`` is from first to last."""

_WEIGHT = 0.2
"""Of the latest duration in the running means that predict when the detector will be free."""


_REASONS = 4
"""Most reasons for a reset, before the newest, that frames that were dropped hand on."""


@dataclass
class Result:
    """One frame's detections; ``seconds`` holds the duration of each of :data:`STAGES` but the last two."""

    detections: Detections
    posed: PosedFrame
    seconds: dict[str, float]
    inferred_ns: int


@dataclass
class _Loaded:
    number: int
    posed: PosedFrame
    frame: CameraFrame
    errors: list[BevnextError]
    started_ns: int
    decoded_ns: int


class DetectionWorker:
    """Runs frames through decoding and detection; every frame given to it is published or counted.

    Args:
        model_cameras: names for the :class:`CameraFrame`, in its order.
        decode: ``(message, camera) -> RGB array``, raises FrameError. publish: called for each result, in the
            detector's thread. faults: is told what is wrong.
        overload, queue_size: policy for frames that come while the detector is busy.
        mask_faulty: mask a camera whose image is bad instead of dropping the frame.
    """

    def __init__(
        self,
        detector: FrameDetector,
        model_cameras: Sequence[str],
        decode: Callable[[Any, str], np.ndarray],
        publish: Callable[[Result], None],
        faults: Faults,
        *,
        overload: Literal["newest", "queue"] = "newest",
        queue_size: int = 10,
        mask_faulty: bool = False,
    ) -> None:
        self._detector = detector
        self._cameras = tuple(model_cameras)
        self._decode = decode
        self._publish = publish
        self._faults = faults
        self._newest = overload == "newest"
        self._limit = 1 if self._newest else queue_size
        self._mask_faulty = mask_faulty
        self._condition = threading.Condition()
        self._waiting: deque[tuple[int, PosedFrame]] = deque()
        self._loaded: _Loaded | None = None
        self._decoding = self._inferring = False
        self._busy_since_ns = 0
        self._decode_ns = self._inference_ns = 0.0
        self._stopped = False
        self._reset_reasons: list[tuple[int, str]] = []
        self.drops = DropCounter()
        self.accepted = 0
        self.published = 0
        self.masked_images = DropCounter()
        """Images that were bad and had their camera masked (``bad_image``)."""
        self._pool = ThreadPoolExecutor(max_workers=len(self._cameras), thread_name_prefix="decode")
        self._threads = [
            threading.Thread(target=self._decode_loop, name="decoder", daemon=True),
            threading.Thread(target=self._detect_loop, name="detector", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, posed: PosedFrame) -> None:
        """Give a frame. Returns at once; an older one that must make room is counted as ``overload``."""
        with self._condition:
            self.accepted += 1
            if self._stopped:
                self.drops.add("deactivated")
                return
            while len(self._waiting) >= self._limit:
                self._drop(*self._waiting.popleft(), "overload")
            self._waiting.append((self.accepted, posed))
            self._condition.notify_all()

    def skip(self, posed: PosedFrame, cause: str) -> None:
        """Take a frame that is not to be computed: it is counted, and hands its reset reason on."""
        with self._condition:
            self.accepted += 1
            self._drop(self.accepted, posed, cause)

    @property
    def in_flight(self) -> int:
        """Frames that are neither published nor counted yet."""
        with self._condition:
            return len(self._waiting) + self._decoding + (self._loaded is not None) + self._inferring

    def stop(self, timeout: float) -> bool:
        """Drop what waits (``deactivated``) and wait for a running inference; whether both threads ended."""
        with self._condition:
            self._stopped = True
            self.drops.add("deactivated", len(self._waiting) + (self._loaded is not None))
            self._waiting.clear()
            self._loaded = None
            self._condition.notify_all()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._pool.shutdown(wait=False)
        return not self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether a thread still runs."""
        return any(thread.is_alive() for thread in self._threads)

    def _drop(self, number: int, posed: PosedFrame, cause: str) -> None:
        """Count a frame; the condition is held. The reason for a reset goes over to the next frame after it."""
        self.drops.add(cause)
        if posed.reset_reason:
            self._reset_reasons = [*self._reset_reasons[-_REASONS:], (number, posed.reset_reason)]

    def _decode_delay(self) -> float | None:
        """Seconds until the next frame should be decoded; ``None``: not before something happens."""
        if not self._waiting or self._loaded is not None:
            return None
        if not self._newest or not self._inferring:
            return 0.0
        free_ns = self._busy_since_ns + self._inference_ns - 1.5 * self._decode_ns
        return max(0.0, (free_ns - time.monotonic_ns()) * 1e-9)

    def _decode_loop(self) -> None:
        while True:
            with self._condition:
                while not self._stopped and (delay := self._decode_delay()) != 0.0:
                    self._condition.wait(delay)
                if self._stopped:
                    return
                number, posed = self._waiting.popleft()
                self._decoding = True
            started = time.monotonic_ns()
            loaded: _Loaded | None = None
            cause = "bad_image"
            try:
                frame, errors = camera_frame(
                    posed, self._cameras, self._decode, self._mask_faulty, self._pool.map, self._faults
                )
                loaded = _Loaded(number, posed, frame, errors, started, time.monotonic_ns())
            except FrameError:
                pass  # told of by camera
            except Exception as error:  # a thread that dies would silence the node
                cause = "decode_error"
                self._faults.note("frame decode_error", f"decoding failed: {type(error).__name__}: {error}")
            with self._condition:
                self._decoding = False
                if loaded is None:
                    self._drop(number, posed, cause)
                elif self._stopped:
                    self.drops.add("deactivated")
                else:
                    self._loaded = loaded
                    self._decode_ns += _WEIGHT * (loaded.decoded_ns - started - self._decode_ns)
                self._condition.notify_all()

    def _detect_loop(self) -> None:
        while True:
            with self._condition:
                while not self._stopped and self._loaded is None:
                    self._condition.wait()
                if self._stopped or self._loaded is None:
                    return
                loaded, self._loaded = self._loaded, None
                self._inferring = True
                self._busy_since_ns = time.monotonic_ns()
                reasons = [reason for number, reason in self._reset_reasons if number < loaded.number]
                reasons += [loaded.posed.reset_reason] if loaded.posed.reset_reason else []
                self._reset_reasons = [item for item in self._reset_reasons if item[0] > loaded.number]
                self._condition.notify_all()
            cause = self._detect(loaded, "; ".join(dict.fromkeys(reasons)))
            with self._condition:
                self._inferring = False
                if cause:
                    self._drop(loaded.number, loaded.posed, cause)
                else:
                    self.published += 1
                self._condition.notify_all()

    def _detect(self, loaded: _Loaded, reason: str) -> str:
        """Detect and publish -> the cause for which the frame was dropped; empty when it was published."""
        start = time.monotonic_ns()
        try:
            if reason:
                self._detector.reset(reason)
            detections = self._detector.step(loaded.frame)
        except FrameError as error:
            self._faults.note("frame bad_frame", str(error))
            return "bad_frame"
        except Exception as error:  # out of memory and the like: the next frame may do
            self._faults.note(
                "frame inference_error", f"the detector failed: {type(error).__name__}: {error}"
            )
            self._detector.reset(f"the detector failed ({type(error).__name__})")
            return "inference_error"
        end = time.monotonic_ns()
        self._inference_ns += (
            _WEIGHT * (end - start - self._inference_ns) if self._inference_ns else end - start
        )
        if self._stopped:
            return "deactivated"
        self.masked_images.add("bad_image", len(loaded.errors))
        assembled = loaded.posed.assembled
        points = (
            *(assembled.newest_arrival_ns, assembled.assembled_ns, loaded.posed.posed_ns),
            *(loaded.started_ns, loaded.decoded_ns, start, end),
        )
        seconds = {name: (b - a) * 1e-9 for name, a, b in zip(STAGES, points, points[1:])}
        try:
            self._publish(Result(detections, loaded.posed, seconds, end))
        except Exception as error:  # publishers are gone while shutting down
            self._faults.note("frame publish_error", f"publishing failed: {type(error).__name__}: {error}")
            return "publish_error"
        self._faults.heal("frame")
        return ""
