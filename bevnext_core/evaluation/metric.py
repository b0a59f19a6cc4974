"""Score a nuScenes submission with the official devkit (metric ``detection_cvpr_2019``).

The official evaluation takes a whole split. With ``scenes`` the same code scores the key frames of those
scenes only, for a look at a part; such numbers cannot be compared with published ones, and the table says so.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevnext_core.datasets.nuscenes import LIDAR
from bevnext_core.datasets.nuscenes_tables import (
    SCORED_FIELDS,
    check_truth,
    fault,
    numbers,
    row_of,
    split_scenes,
    value,
)
from bevnext_core.errors import DatasetError, one_line
from bevnext_core.evaluation.submission import SubmissionError, read_submission
from bevnext_core.files import atomic_path

METRIC = "detection_cvpr_2019"
ERROR_NAMES = {
    "trans_err": "ATE",
    "scale_err": "ASE",
    "orient_err": "AOE",
    "vel_err": "AVE",
    "attr_err": "AAE",
}
"""The devkit's true-positive errors, in metres, 1 - IoU, radians, m/s and 1 - accuracy; their usual names."""

_VERSION_OF_SPLIT = {
    "mini_train": "mini",
    "mini_val": "mini",
    "test": "test",
    "train": "trainval",
    "val": "trainval",
    "train_detect": "trainval",
    "train_track": "trainval",
}


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes:
        summary: what the devkit gives (``mean_ap``, ``nd_score``, ``tp_errors``, ``label_tp_errors``, ...).
        eval_set: the split; ``scenes``: the part of it that was scored, empty for all of it.
        samples: number of key frames; ``ignored``: number of results for other key frames.
        boxes: number of predicted boxes in those key frames.
    """

    summary: dict[str, Any]
    eval_set: str
    scenes: tuple[str, ...]
    samples: int
    ignored: int
    boxes: int

    @property
    def mean_ap(self) -> float:
        return float(self.summary["mean_ap"])

    @property
    def nd_score(self) -> float:
        return float(self.summary["nd_score"])


def evaluate(
    tables: Any, submission_path: str | Path, eval_set: str, scenes: Sequence[str] | None = None
) -> Evaluation:
    """Score a submission file.

    Args:
        tables: ``nuscenes.NuScenes`` (:func:`bevnext_core.datasets.nuscenes.load_tables`).
        eval_set: official split of the tables' version, e.g. ``mini_val``.
        scenes: score these scenes of the split only.

    Raises:
        DatasetError: the split does not belong to the version, an unknown scene, no annotations.
        SubmissionError: the file is no valid submission, or lacks samples of the split (says which scenes).
    """
    _check_split(tables, eval_set)
    chosen = _chosen_scenes(tables, eval_set, scenes)
    scene_names = {row["token"]: row["name"] for row in tables.scene}
    for row in tables.sample:
        if value("sample", row, "scene_token") not in scene_names:
            raise fault("sample", row, "scene_token", "must be the token of a row of 'scene'")
    scene_of = {row["token"]: scene_names[row["scene_token"]] for row in tables.sample}
    tokens = [token for token, scene in scene_of.items() if scene in chosen]
    submission = read_submission(submission_path)
    results = submission["results"]
    missing = [token for token in tokens if token not in results]
    if missing:
        counts = Counter(scene_of[token] for token in missing)
        listing = ", ".join(f"{scene} ({count})" for scene, count in list(counts.items())[:10])
        more = f", ... ({len(counts)} scenes)" if len(counts) > 10 else ""
        raise SubmissionError(
            f"{submission_path} lacks {len(missing)} of the {len(tokens)} samples of {eval_set}, "
            f"in: {listing}{more}; detect the whole split, or name the scenes to be scored"
        )
    # the devkit reads the truth of the whole split, whatever is scored
    split = set(split_scenes(eval_set))
    check_truth(tables, [t for t, scene in scene_of.items() if scene in split], SCORED_FIELDS, "scoring")
    _check_distances(tables, tokens)
    if not any(tables.get("sample", token)["anns"] for token in tokens):
        raise DatasetError(
            f"{tables.version}: the samples of {eval_set} have no annotations to score against"
        )
    try:
        with _quiet():
            summary = _score(
                tables, {token: results[token] for token in tokens}, submission["meta"], eval_set
            )
    except AssertionError as error:
        raise SubmissionError(f"{submission_path}: the devkit refuses it: {one_line(error)}") from None
    return Evaluation(
        summary=summary,
        eval_set=eval_set,
        scenes=tuple(scenes or ()),
        samples=len(tokens),
        ignored=len(results) - len(tokens),
        boxes=sum(len(results[token]) for token in tokens),
    )


def _check_distances(tables: Any, tokens: Sequence[str]) -> None:
    """The official metric takes distances from where the vehicle was at the lidar's stamp."""
    for token in tokens:
        data = tables.get("sample", token)["data"]
        if LIDAR not in data:
            raise DatasetError(
                f"sample {token} has no record of {LIDAR}, from whose ego pose the official metric takes distances; "
                "bevnext detect does without"
            )
        row = row_of(tables, "sample_data", data[LIDAR])
        pose = row_of(tables, "ego_pose", value("sample_data", row, "ego_pose_token"))
        numbers("ego_pose", pose, "translation", 3)


def _check_split(tables: Any, eval_set: str) -> None:
    split_scenes(eval_set)
    kind = str(tables.version).rsplit("-", 1)[-1]
    if _VERSION_OF_SPLIT.get(eval_set) != kind:
        allowed = [split for split, version in _VERSION_OF_SPLIT.items() if version == kind]
        raise DatasetError(
            f"the split '{eval_set}' cannot be scored with {tables.version}; "
            f"it has: {', '.join(allowed) or 'none'}"
        )


def _chosen_scenes(tables: Any, eval_set: str, scenes: Sequence[str] | None) -> set[str]:
    members = set(split_scenes(eval_set))
    present = [row["name"] for row in tables.scene if row["name"] in members]
    if not present:
        raise DatasetError(f"{tables.dataroot} ({tables.version}) has no scene of the split '{eval_set}'")
    for scene in scenes or ():
        if scene not in present:
            raise DatasetError(
                f"the split '{eval_set}' has no scene '{scene}' here; it has {', '.join(present)}"
            )
    return set(scenes) if scenes else set(present)


def _score(tables: Any, results: dict[str, Any], meta: dict[str, Any], eval_set: str) -> dict[str, Any]:
    """The devkit's own steps, on the samples of ``results``.

    Not through ``DetectionEval.__init__``: it wants whole splits, writes folders, and raises "Invalid box
    type: None" where there is no box at all.
    """
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_gt
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    config = config_factory(METRIC)
    predicted = EvalBoxes.deserialize(results, DetectionBox)
    truth = load_gt(tables, eval_set, DetectionBox)
    wanted = EvalBoxes()
    for token in results:
        wanted.add_boxes(token, truth[token])

    def prepare(boxes: Any) -> Any:
        if not boxes.all:
            return boxes
        return filter_eval_boxes(tables, add_center_dist(tables, boxes), config.class_range)

    scorer = DetectionEval.__new__(DetectionEval)
    scorer.cfg = config
    scorer.verbose = False
    scorer.pred_boxes = prepare(predicted)
    scorer.gt_boxes = prepare(wanted)
    metrics, _ = scorer.evaluate()
    return {**metrics.serialize(), "meta": dict(meta)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The devkit prints, and shows progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def format_table(evaluation: Evaluation) -> str:
    """The per-class table and the totals, as text. A dash stands where nuScenes defines no error."""
    summary = evaluation.summary
    part = f", scenes {', '.join(evaluation.scenes)} only: not comparable" if evaluation.scenes else ""
    lines = [f"nuScenes {evaluation.eval_set}{part}: {evaluation.samples} samples, {evaluation.boxes} boxes"]
    if evaluation.ignored:
        lines.append(f"({evaluation.ignored} samples of the submission are outside it and were not scored)")
    lines.append("")
    lines.append(f"{'class':<21}{'AP':>7}" + "".join(f"{short:>7}" for short in ERROR_NAMES.values()))
    for name, ap in summary["mean_dist_aps"].items():
        errors = summary["label_tp_errors"][name]
        lines.append(f"{name:<21}{ap:>7.3f}" + "".join(_cell(errors[key]) for key in ERROR_NAMES))
    totals = summary["tp_errors"]
    lines.append(
        f"{'mean':<21}{evaluation.mean_ap:>7.3f}" + "".join(_cell(totals[key]) for key in ERROR_NAMES)
    )
    lines.append("")
    lines.append(f"mAP {evaluation.mean_ap:.4f}")
    lines.append(f"NDS {evaluation.nd_score:.4f}")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{'-':>7}" if math.isnan(value) else f"{value:>7.3f}"


def write_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Write the devkit's summary and what was scored as JSON (undefined errors are null)."""
    content = {
        "eval_set": evaluation.eval_set,
        "scenes": list(evaluation.scenes),
        "samples": evaluation.samples,
        "ignored_samples": evaluation.ignored,
        "boxes": evaluation.boxes,
        **evaluation.summary,
    }
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(finite, indent=2), encoding="utf-8")
