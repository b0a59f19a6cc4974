# SPDX-License-Identifier: Apache-2.0
"""The detector over a reader's frames, as the node detects (``streaming``) or as the published code (``window``)."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.detections import Detections, FrameDetector
from bevnext_core.errors import FrameError, one_line
from bevnext_core.frame import CameraFrame
from bevnext_tools.evaluation.submission import submission_records

if TYPE_CHECKING:  # the detector takes torch, which a command may not need
    from bevnext_core.detector import Detector

Mode = Literal["window", "streaming"]


class FrameReader(Protocol):
    """What gives frames, scene by scene: :class:`NuScenesReader`, or one of other files."""

    scenes: tuple[str, ...]

    def __len__(self) -> int: ...

    def refs(self, scene: str) -> tuple[FrameRef, ...]: ...

    def load(self, ref: FrameRef) -> CameraFrame: ...


class Detected(NamedTuple):
    """A frame and what was found in it, or the error for which it cannot be used; seconds to read it and to detect."""

    ref: FrameRef
    frame: CameraFrame | None
    found: Detections | FrameError
    read: float
    step: float


def detect_frames(
    detector: FrameDetector,
    reader: FrameReader,
    scene: str,
    window: Callable[[list[CameraFrame]], Detections] | None = None,
) -> Iterator[Detected]:
    """Detect in the frames of a scene in their order; the detector forgets what was before.

    Args:
        window: takes the place of ``detector.step``: detects in a frame and those before it, newest first. A past frame
            that cannot be used has the present one in its place.
    """
    detector.reset("new scene")
    past: deque[CameraFrame | None] = deque(maxlen=detector.config.history.frames if window else 0)
    for ref in reader.refs(scene):
        start = loaded = time.perf_counter()
        frame: CameraFrame | None = None
        found: Detections | FrameError
        try:
            frame = reader.load(ref)
            loaded = time.perf_counter()
            found = window([frame, *(old or frame for old in past)]) if window else detector.step(frame)
        except FrameError as error:
            found = error
        past.appendleft(frame)
        yield Detected(ref, frame, found, loaded - start, time.perf_counter() - loaded)


def detect_scenes(
    detector: Detector,
    reader: NuScenesReader,
    scenes: Iterable[str],
    mode: Mode,
    on_frame: Callable[[], object] = lambda: None,
) -> tuple[dict[str, list[dict[str, Any]]], list[tuple[str, str]]]:
    """Detect in every key frame of ``scenes``. A frame that cannot be used gets no boxes and is listed.

    Args:
        on_frame: called after each frame (progress).

    Returns:
        Submission records by sample token, and (token, reason) of the frames that could not be used.
    """
    records: dict[str, list[dict[str, Any]]] = {}
    faults = []
    for scene in scenes:
        for ref, _, found, *_ in detect_frames(detector, reader, scene, detector.window if mode == "window" else None):
            if isinstance(found, FrameError):
                faults.append((ref.sample_token, one_line(found)))
            records[ref.sample_token] = [] if isinstance(found, FrameError) else submission_records(found)
            on_frame()
    return records, faults


class ShuffledImages(NuScenesReader):
    """A reader that gives every key frame the images of the next one of the version (the last one the first's).

    A control: a network that looks at its images must fail with it.
    """

    def load(self, ref: FrameRef) -> CameraFrame:
        if not hasattr(self, "_all"):
            whole = NuScenesReader(
                self.dataroot, self.version, cameras=self.cameras, anchor_camera=self.anchor_camera, tables=self.tables
            )
            self._all = [other for scene in whole.scenes for other in whole.refs(scene)]
        tokens = [other.sample_token for other in self._all]
        other = self._all[(tokens.index(ref.sample_token) + 1) % len(tokens)]
        return dataclasses.replace(super().load(ref), images=super().load(other).images)
