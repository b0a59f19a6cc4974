"""Detections of a whole split, as the published code computes them (``window``) or as the node does (``streaming``)."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.detections import Detections
from bevnext_core.detector import Detector
from bevnext_core.errors import FrameError, one_line
from bevnext_core.evaluation.submission import submission_records
from bevnext_core.frame import CameraFrame

Mode = Literal["window", "streaming"]


@dataclass
class SplitDetections:
    """Submission records by sample token, and (token, reason) of the frames that could not be read."""

    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)


def detect_scenes(
    detector: Detector,
    reader: NuScenesReader,
    scenes: Iterable[str],
    mode: Mode,
    on_frame: Callable[[], object] = lambda: None,
) -> SplitDetections:
    """Detect in every key frame of ``scenes``.

    A frame that cannot be read gets no boxes and is listed; as history the present stands in for it.

    Args:
        on_frame: called after each frame (progress).
    """
    result = SplitDetections()
    for scene in scenes:
        detector.reset(f"scene {scene}")
        past: deque[CameraFrame | None] = deque(maxlen=max(detector.config.history.frames, 1))
        for ref in reader.refs(scene):
            try:
                frame: CameraFrame | None = reader.load(ref)
            except FrameError as error:
                frame = None
                result.faults.append((ref.sample_token, one_line(error)))
                result.records[ref.sample_token] = []
            if frame is not None:
                found = _window(detector, frame, past) if mode == "window" else detector.step(frame)
                result.records[ref.sample_token] = submission_records(found)
            past.appendleft(frame)
            on_frame()
    return result


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


def _window(detector: Detector, frame: CameraFrame, past: deque[CameraFrame | None]) -> Detections:
    history = [frame if old is None else old for old in past][: detector.config.history.frames]
    return detector.window([frame, *history])
