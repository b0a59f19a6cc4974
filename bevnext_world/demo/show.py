# SPDX-License-Identifier: Apache-2.0
"""A drive through the detector, frame by frame: times, pictures, video and the official score."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.detections import Detections, FrameDetector
from bevnext_core.errors import FrameError
from bevnext_core.files import atomic_path
from bevnext_tools.draw.cameras import write_picture
from bevnext_tools.draw.video import frame_rate, open_video
from bevnext_tools.evaluation.inference import detect_frames
from bevnext_tools.evaluation.metric import METRIC, Evaluation, evaluate
from bevnext_tools.evaluation.submission import make_submission, submission_records, write_submission
from bevnext_world.demo.display import drawn
from bevnext_world.demo.picture import Status, contact_sheet, draw_demo
from bevnext_world.demo.truth import TrueBoxes, true_boxes

SHEET_PICTURES = 4
"""Moments on the contact sheet."""
ANIMATION_STEP = 2
"""Every second frame is in the animation, half as large as in the video."""


@dataclass
class Shown:
    """What a run gave.

    Attributes:
        name: of the drive; frames, key_frames: streamed; fps: frames per second of the drive and the video.
        boxes: detections of all frames that were drawn. objects: annotated in the key frames and in the metric's
            range, by class.
        seconds: of each frame, by stage: the detector's own stages, ``detector`` (their sum), ``read`` (six JPEG
            files) and ``draw`` (picture and video).
        evaluation: the official score.
        video, animation, sheet, picture: files.
    """

    name: str
    fps: float
    evaluation: Evaluation = field(init=False)
    frames: int = 0
    key_frames: int = 0
    boxes: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    video: Path | None = None
    animation: Path = Path()
    sheet: Path = Path()
    picture: Path = Path()

    def note(self, stage: str, seconds: float) -> None:
        self.seconds.setdefault(stage, []).append(seconds)

    def times(self, stage: str) -> tuple[float, float, float]:
        """Median, minimum and maximum seconds per frame."""
        values = self.seconds[stage]
        return median(values), min(values), max(values)

    @property
    def frames_per_second(self) -> float:
        """Of the detector: decoded images in, boxes out."""
        return self.frames / sum(self.seconds["detector"])


def show(
    reader: NuScenesReader,
    detector: FrameDetector,
    out: Path,
    *,
    name: str,
    eval_set: str,
    score_threshold: float | None = None,
    camera_width: int = 560,
) -> Shown:
    """Stream the first scene of ``reader`` and write below ``out``.

    Writes ``drive.mp4`` (with an H.264 encoder), ``drive.webp`` (an animation), ``contact_sheet.png``, ``frame.jpg``
    and ``submission.json``.

    Args:
        name: of the drive, for people.
        eval_set: the official split that the scene belongs to.
        score_threshold: lowest score drawn, in place of each class's own; all boxes are scored.

    Raises:
        FrameError: an image or pose of the drive cannot be used. DatasetError: it cannot be scored.
    """
    from bevnext_tools.progress import progress

    scene = reader.scenes[0]
    refs = reader.refs(scene)
    shown = Shown(name, frame_rate([ref.stamp_ns for ref in refs]))
    moments = _moments(refs)
    kept: list[np.ndarray] = []
    small: list[np.ndarray] = []
    results: dict[str, list[dict[str, Any]]] = {}
    detector.step(reader.load(refs[0]))  # not timed: what is built or loaded at first use
    with open_video(out / "drive.mp4", shown.fps) as video:
        run = detect_frames(detector, reader, scene)
        for ref, frame, found, read, step in progress("detecting", "frame", len(refs), run):
            start = time.perf_counter()
            if isinstance(found, FrameError):
                raise found
            assert frame is not None
            truth = true_boxes(reader, ref)
            status = _status(reader, name, ref, found, step)
            chosen = drawn(found, score_threshold)
            picture = draw_demo(frame, chosen, truth, status, camera_width)
            video.write(picture)
            if ref.index % ANIMATION_STEP == 0:
                small.append(draw_demo(frame, chosen, truth, status, camera_width // 2))
            if ref.index in moments:
                kept.append(picture)
            if ref.is_key:
                results[ref.sample_token] = submission_records(found)
                shown.key_frames += 1
                shown.objects.update(_in_range(truth))
            shown.frames += 1
            shown.boxes += len(chosen)
            shown.note("read", read)
            shown.note("detector", step)
            shown.note("draw", time.perf_counter() - start)
            for stage, seconds in found.info.seconds.items():
                shown.note(stage, seconds)
    shown.video = video.path
    files = ("contact_sheet.png", "frame.jpg", "drive.webp")
    shown.sheet, shown.picture, shown.animation = (out / file for file in files)
    write_picture(contact_sheet(kept), shown.sheet)
    write_picture(kept[(len(kept) - 1) // 2], shown.picture)
    write_animation(shown.animation, small, shown.fps / ANIMATION_STEP)
    submission = make_submission(results, reader.sample_tokens(scene))
    write_submission(submission, out / "submission.json")
    shown.evaluation = evaluate(reader.tables, submission, eval_set, [scene] if len(reader.tables.scene) > 1 else None)
    return shown


def write_animation(path: Path, pictures: list[np.ndarray], fps: float) -> None:
    """Write pictures ``[H, W, 3]`` uint8 RGB of one size as an animated WebP file, which plays again and again."""
    first, *others = (Image.fromarray(picture) for picture in pictures)
    with atomic_path(path) as temporary:
        options = {"duration": round(1000 / fps), "loop": 0, "quality": 60, "method": 2}
        first.save(temporary, "WEBP", save_all=True, append_images=others, **options)


def write_numbers(shown: Shown, about: dict[str, str], path: Path) -> None:
    """Write score, times and what was run as JSON."""
    content: dict[str, Any] = {
        "about": about,
        "drive": shown.name,
        "frames": shown.frames,
        "key_frames": shown.key_frames,
        "frames_per_second": shown.frames_per_second,
        "seconds": {stage: dict(zip(("median", "min", "max"), shown.times(stage))) for stage in shown.seconds},
        "objects": dict(shown.objects),
        "mean_ap": shown.evaluation.mean_ap,
        "nd_score": shown.evaluation.nd_score,
        "class_aps": shown.evaluation.summary["mean_dist_aps"],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _moments(refs: tuple[FrameRef, ...]) -> set[int]:
    """Indices of key frames, evenly spread; the first has no past and is left out where there are more."""
    keys = [ref.index for ref in refs if ref.is_key] or [ref.index for ref in refs]
    places = np.linspace(0, len(keys), SHEET_PICTURES + 1)[1:] - len(keys) / (2 * SHEET_PICTURES)
    return {keys[int(place)] for place in places}


def _status(reader: NuScenesReader, name: str, ref: FrameRef, found: Detections, step_seconds: float) -> Status:
    refs = reader.refs(ref.scene)
    other = refs[max(ref.index - 1, 0)] if ref.index else refs[min(1, len(refs) - 1)]
    way = (reader.global_from_ego(ref) - reader.global_from_ego(other))[:2, 3]
    seconds = abs(ref.stamp_ns - other.stamp_ns) * 1e-9
    return Status(
        name=name,
        index=ref.index,
        count=len(refs),
        seconds=(ref.stamp_ns - refs[0].stamp_ns) * 1e-9,
        is_key=ref.is_key,
        speed=float(np.hypot(*way)) / seconds if seconds else 0.0,
        step_seconds=step_seconds,
        history=found.info.history_frames,
    )


def _in_range(truth: TrueBoxes) -> list[str]:
    """Classes of the objects that the official metric takes."""
    from nuscenes.eval.common.config import config_factory

    ranges = config_factory(METRIC).class_range
    distances = np.hypot(truth.boxes[:, 0], truth.boxes[:, 1])
    return [name for name, distance in zip(truth.names, distances) if distance < ranges[name]]
