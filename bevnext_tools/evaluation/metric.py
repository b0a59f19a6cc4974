# SPDX-License-Identifier: Apache-2.0
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevnext_core.datasets.nuscenes import LIDAR
from bevnext_core.datasets.nuscenes_tables import (
    SCORED_FIELDS,
    SPLITS,
    check_truth,
    fault,
    listing,
    numbers,
    row_of,
    split_scenes,
    value,
)
from bevnext_core.errors import DatasetError, one_line
from bevnext_core.files import atomic_path
from bevnext_tools.evaluation.submission import SubmissionError, read_submission

METRIC = "detection_cvpr_2019"
ERROR_NAMES = {
    "trans_err": "ATE",
    "scale_err": "ASE",
    "orient_err": "AOE",
    "vel_err": "AVE",
    "attr_err": "AAE",
}
"""The devkit's true-positive errors, in metres, 1 - IoU, radians, m/s and 1 - accuracy; their usual names."""


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
    tables: Any, submission: str | Path | dict[str, Any], eval_set: str, scenes: Sequence[str] | None = None
) -> Evaluation:
    """Score a submission.

    Args:
        tables: ``nuscenes.NuScenes`` (:func:`bevnext_core.datasets.nuscenes_tables.load_tables`).
        submission: a file, or what :func:`~bevnext_tools.evaluation.submission.make_submission` gives.
        eval_set: official split of the tables' version, e.g. ``mini_val``.
        scenes: score these scenes of the split only.

    Raises:
        DatasetError: the split does not belong to the version, an unknown scene, no annotations.
        SubmissionError: the file is no valid submission, or lacks samples of the split (says which scenes).
    """
    members, chosen = _scenes(tables, eval_set, scenes)
    scene_names = {row["token"]: row["name"] for row in tables.scene}
    for row in tables.sample:
        if value("sample", row, "scene_token") not in scene_names:
            raise fault("sample", row, "scene_token", "must be the token of a row of 'scene'")
    scene_of = {row["token"]: scene_names[row["scene_token"]] for row in tables.sample}
    tokens = [token for token, scene in scene_of.items() if scene in chosen]
    name = "the submission" if isinstance(submission, dict) else str(submission)
    content = submission if isinstance(submission, dict) else read_submission(submission)
    results = content["results"]
    counts = Counter(scene_of[token] for token in tokens if token not in results)
    if counts:
        lacking = listing([f"{scene} ({count})" for scene, count in counts.items()], 10)
        raise SubmissionError(
            f"{name} lacks {counts.total()} of the {len(tokens)} samples of {eval_set}, "
            f"in: {lacking}; detect the whole split, or name the scenes to be scored"
        )
    # the devkit reads the truth of the whole split, whatever is scored
    check_truth(tables, [t for t, scene in scene_of.items() if scene in members], SCORED_FIELDS, "scoring")
    _check_distances(tables, tokens)
    if not any(tables.get("sample", token)["anns"] for token in tokens):
        raise DatasetError(f"{tables.version}: the samples of {eval_set} have no annotations to score against")
    try:
        # the devkit prints, and shows progress bars
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            summary = _score(tables, {token: results[token] for token in tokens}, eval_set)
    except AssertionError as error:
        raise SubmissionError(f"{name}: the devkit refuses it: {one_line(error)}") from None
    return Evaluation(
        summary={**summary, "meta": dict(content["meta"])},
        eval_set=eval_set,
        scenes=tuple(scenes or ()),
        samples=len(tokens),
        ignored=len(results) - len(tokens),
        boxes=sum(len(results[token]) for token in tokens),
    )


def _scenes(tables: Any, eval_set: str, scenes: Sequence[str] | None) -> tuple[set[str], set[str]]:
    """All scenes of a split, and those of the tables that are to be scored."""
    version = str(tables.version)
    members = set(split_scenes(eval_set, version))
    if version.rpartition("-")[2] not in SPLITS:
        raise DatasetError(f"{version} cannot be scored: a version's name ends in {', '.join(SPLITS)}")
    present = [row["name"] for row in tables.scene if row["name"] in members]
    if not present:
        raise DatasetError(f"{tables.dataroot} ({tables.version}) has no scene of the split '{eval_set}'")
    for scene in scenes or ():
        if scene not in present:
            raise DatasetError(f"the split '{eval_set}' has no scene '{scene}' here; it has {', '.join(present)}")
    return members, set(scenes or present)


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


def _score(tables: Any, results: dict[str, Any], eval_set: str) -> dict[str, Any]:
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
    scorer.cfg, scorer.verbose = config, False
    scorer.pred_boxes, scorer.gt_boxes = prepare(predicted), prepare(wanted)
    metrics, _ = scorer.evaluate()
    return metrics.serialize()  # type: ignore[no-any-return]


def format_table(evaluation: Evaluation) -> str:
    """The per-class table and the totals, as text. A dash stands where nuScenes defines no error."""
    summary = evaluation.summary
    part = f", scenes {', '.join(evaluation.scenes)} only: not comparable" if evaluation.scenes else ""
    counted = f"{evaluation.samples} key frames, {evaluation.boxes} boxes"
    lines = [f"by nuScenes' metric, {evaluation.eval_set}{part}: {counted}"]
    if evaluation.ignored:
        lines.append(f"({evaluation.ignored} samples of the submission are outside it and were not scored)")
    lines += ["", f"{'class':<21}{'AP':>7}" + "".join(f"{short:>7}" for short in ERROR_NAMES.values())]
    rows = [(name, ap, summary["label_tp_errors"][name]) for name, ap in summary["mean_dist_aps"].items()]
    for name, ap, errors in [*rows, ("mean", evaluation.mean_ap, summary["tp_errors"])]:
        cells = ["-" if math.isnan(errors[key]) else f"{errors[key]:.3f}" for key in ERROR_NAMES]
        lines.append(f"{name:<21}{ap:>7.3f}" + "".join(f"{cell:>7}" for cell in cells))
    return "\n".join([*lines, "", f"mAP {evaluation.mean_ap:.4f}", f"NDS {evaluation.nd_score:.4f}"])


def report(evaluation: Evaluation, path: str | Path | None = None) -> None:
    """Print the table, and write the devkit's summary and what was scored as JSON (undefined errors are null)."""
    print(format_table(evaluation))
    if path is None:
        return
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
