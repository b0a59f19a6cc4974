# SPDX-License-Identifier: Apache-2.0
"""What a detector gives for one frame, and what a detector is."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from bevnext_core.config import ModelConfig
from bevnext_core.frame import CameraFrame


@dataclass(frozen=True)
class StepInfo:
    """How a detection came about.

    Attributes:
        history_stamps_ns: stamp of the stored frame in each history slot, newest first; 0 where the
            present frame stands in for a missing one.
        reset_reason: why the history was cleared before this frame; empty when it was not.
        seconds: wall time per stage, by stage name (on a GPU: of the host).
        ego_from_cameras: ``[1 + slots, N, 4, 4]``, each slot's cameras in the present ego frame, as used for
            lifting; the present frame first.
        doubt: why the boxes are not to be expected good: the rig is far from those of training; empty when it is not.
    """

    history_stamps_ns: tuple[int, ...] = ()
    reset_reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    ego_from_cameras: np.ndarray | None = None
    doubt: str = ""

    @property
    def history_frames(self) -> int:
        """Number of slots that hold a true past frame."""
        return sum(1 for stamp in self.history_stamps_ns if stamp)


@dataclass(frozen=True)
class Detections:
    """Boxes of one frame in the ego frame of the anchor camera's stamp.

    Attributes:
        boxes: ``[M, 9]`` float32, layout of :mod:`bevnext_core.boxes` (geometric centre).
        scores: ``[M]`` float32 in [0, 1]; labels: ``[M]`` int64, index into ``class_names``.
        stamp_ns, global_from_ego, token: those of the frame.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    stamp_ns: int
    global_from_ego: np.ndarray
    token: str = ""
    info: StepInfo = field(default_factory=StepInfo)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Class name of each box."""
        return [self.class_names[int(label)] for label in self.labels]

    def as_mapping(self) -> dict[str, Any]:
        """Plain values for JSON: the frame, and class, score and geometry of each box (ego frame), best first."""
        best = self.above(0.0)
        rows = zip(best.names, best.scores.tolist(), best.boxes.tolist(), strict=True)
        boxes = [
            {"class": name, "score": score, "center": box[:3], "size": box[3:6], "yaw": box[6], "velocity": box[7:]}
            for name, score, box in rows
        ]
        pose = self.global_from_ego.tolist()
        return {"stamp_ns": self.stamp_ns, "token": self.token or None, "global_from_ego": pose, "boxes": boxes}

    def above(self, score: float, limit: int | None = None) -> Detections:
        """Those with at least ``score``, best first, at most ``limit``."""
        order = np.argsort(-self.scores, kind="stable")
        order = order[self.scores[order] >= score][:limit]
        return self.select(order)

    def select(self, rows: np.ndarray) -> Detections:
        """Those that ``rows``, indices or a mask, choose."""
        chosen = {name: getattr(self, name)[rows] for name in ("boxes", "scores", "labels")}
        return dataclasses.replace(self, **chosen)


def lines_file(folder: Path, wanted: bool) -> AbstractContextManager[TextIO | None]:
    """``detections.jsonl`` in ``folder``, for a line of JSON per frame; ``None`` when it is not ``wanted``."""
    if not wanted:
        return nullcontext()
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "detections.jsonl").open("w")


class FrameDetector(Protocol):
    """What takes a stream's frames: :class:`bevnext_core.detector.Detector`, or what stands in for it."""

    config: ModelConfig

    def step(self, frame: CameraFrame) -> Detections: ...

    def reset(self, reason: str = "requested") -> None: ...
