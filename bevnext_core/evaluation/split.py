"""From a checkpoint to the official score of a split: what ``bevnext evaluate`` and ``training/evaluate.py`` share."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.datasets.nuscenes_tables import split_scenes
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.errors import DatasetError
from bevnext_core.evaluation.distributed import Processes
from bevnext_core.evaluation.inference import Mode, ShuffledImages, detect_scenes
from bevnext_core.evaluation.metric import Evaluation, evaluate
from bevnext_core.evaluation.submission import make_submission, write_submission
from bevnext_core.network.inference import Precision


@dataclass(frozen=True)
class SplitTask:
    """What to detect in, with what, and how.

    Attributes:
        mode: ``window`` encodes each key frame's whole window, past frames with the present one's colours and camera
            parameters, as the published code; ``streaming`` encodes each frame once, with its own, as the node.
        scenes: only these of the split; empty: all of it.
        shuffle_images: control; every frame gets the images of another one.
        submission: where the submission is kept; ``None``: nowhere.
    """

    checkpoint: str | Path
    dataroot: str | Path
    version: str
    split: str
    mode: Mode = "window"
    precision: Precision = "fp32"
    scenes: Sequence[str] = ()
    shuffle_images: bool = False
    submission: str | Path | None = None
    progress: bool = True


@dataclass(frozen=True)
class SplitScore:
    """The evaluation, whose summary says under ``inference`` how it was made; ``title`` says it in a line.

    ``faults`` are (sample token, reason) of frames that could not be read; they count with no boxes.
    """

    title: str
    evaluation: Evaluation
    faults: list[tuple[str, str]]


def score_split(task: SplitTask, processes: Processes) -> SplitScore | None:
    """Detect in a split and score it. The processes share the scenes; all but the first get ``None``.

    Raises:
        CheckpointError, DatasetError, SubmissionError: as the parts that it puts together.
    """
    from tqdm import tqdm

    outside = [scene for scene in task.scenes if scene not in split_scenes(task.split)]
    if outside:
        raise DatasetError(f"the split '{task.split}' has no scene '{outside[0]}'")
    options = DetectorOptions(precision=task.precision)
    detector = Detector.from_checkpoint(task.checkpoint, processes.device, options)
    config = detector.config
    reader = (ShuffledImages if task.shuffle_images else NuScenesReader)(
        task.dataroot,
        task.version,
        **({"scenes": task.scenes} if task.scenes else {"split": task.split}),  # type: ignore[arg-type]
        cameras=config.cameras,
        anchor_camera=config.anchor_camera,
        class_names=config.class_names,
    )
    scenes = reader.scenes[processes.rank :: processes.count]
    count = sum(len(reader.refs(scene)) for scene in scenes)
    hidden = not task.progress or not processes.is_main
    with tqdm(total=count, unit="frame", desc=task.mode, disable=hidden) as bar:
        mine = detect_scenes(detector, reader, scenes, task.mode, bar.update)
    parts = processes.gather((mine.records, mine.faults))
    if not processes.is_main:
        return None
    records = {token: found for part, _ in parts for token, found in part.items()}
    faults = [fault for _, part in parts for fault in part]
    with tempfile.TemporaryDirectory() if task.submission is None else nullcontext() as temporary:
        path = Path(task.submission or f"{temporary}/submission.json")
        write_submission(make_submission(records, reader.sample_tokens()), path)
        scored = evaluate(reader.tables, path, task.split, task.scenes or None)
    inference = {
        "mode": task.mode,
        "precision": task.precision,
        "checkpoint": str(task.checkpoint),
        "model": config.name,
        "unreadable_frames": len(faults),
        "shuffled_images": task.shuffle_images,
    }
    control = ", control with shuffled images" if task.shuffle_images else ""
    title = f"{config.name}, mode {task.mode}{' (as published)' * (task.mode == 'window')}, {task.precision}{control}"
    summary = {"inference": inference, **scored.summary}
    return SplitScore(title, dataclasses.replace(scored, summary=summary), faults)
