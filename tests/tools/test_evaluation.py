# SPDX-License-Identifier: Apache-2.0
"""Scores of the official metric: the best possible, a known detector's, and what mistakes cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")

from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.datasets.nuscenes_tables import load_tables
from bevnext_core.detections import Detections
from bevnext_core.errors import DatasetError
from bevnext_core.geometry import rigid
from bevnext_tools.evaluation.metric import Evaluation, evaluate, format_table, report
from bevnext_tools.evaluation.submission import (
    SubmissionError,
    make_submission,
    submission_records,
    write_submission,
)
from tests.core.test_boxes import with_submission_undone
from tests.nuscenes_dataroot import write_dataroot

VERSION = "v1.0-mini"
Change = Callable[[Detections, FrameRef, NuScenesReader], Detections]


def perfect(
    reader: NuScenesReader, path: Path, all_truth: bool = False, change: Change | None = None
) -> Path:
    """A submission made of the ground truth, through this project's own conversions."""
    results = {}
    for scene in reader.scenes:
        for ref in reader.refs(scene):
            truth = reader.ground_truth(ref)
            if not all_truth:
                truth = truth.select(truth.num_points > 0)
            detections = Detections(
                boxes=np.nan_to_num(truth.boxes).astype(np.float32),
                scores=np.ones(len(truth), np.float32),
                labels=truth.labels,
                class_names=truth.class_names,
                stamp_ns=ref.stamp_ns,
                global_from_ego=reader.global_from_ego(ref),
                token=ref.sample_token,
            )
            if change:
                detections = change(detections, ref, reader)
            results[ref.sample_token] = submission_records(detections, truth.attributes)
    write_submission(make_submission(results, reader.sample_tokens()), path)
    return path


def with_exact_inverse(detections: Detections, ref: FrameRef, reader: NuScenesReader) -> Detections:
    """The same boxes, made of the annotations by the exact inverse of the submission's conversion."""
    chosen = {tuple(box[:3]) for box in detections.boxes}
    truth = reader.ground_truth(ref)
    tables = reader.tables
    rows = [tables.get("sample_annotation", token) for token in truth.annotation_tokens]
    boxes = with_submission_undone(
        truth.boxes,
        np.array([row["rotation"] for row in rows]),
        np.array([tables.box_velocity(row["token"]) for row in rows]).reshape(-1, 3),
        reader.global_from_ego(ref),
    )
    keep = [tuple(box[:3]) in chosen for box in truth.boxes.astype(np.float32)]
    return replace(detections, boxes=np.nan_to_num(boxes[keep]))


@pytest.fixture(scope="module")
def real(sample: Path) -> Any:
    return load_tables(sample, VERSION)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = write_dataroot(
        tmp_path_factory.mktemp("made") / "data", {"scene-0103": 3, "scene-0916": 2, "scene-0061": 1}
    )
    return load_tables(root, VERSION)


def reader_of(tables: Any, **choice: Any) -> NuScenesReader:
    return NuScenesReader(tables.dataroot, tables.version, tables=tables, **choice)


# ------------------------------------------------------------------------------------------ real key frames
@pytest.mark.sample
@pytest.mark.parametrize(
    ("split", "all_truth", "mean_ap", "nds"),
    [
        ("mini_val", False, 0.3, 0.282222),
        ("mini_val", True, 0.297983, 0.281214),
        ("mini_train", True, 0.494263, 0.429076),
    ],
)
def test_perfect_predictions_score_the_maximum(
    real: Any, tmp_path: Path, split: str, all_truth: bool, mean_ap: float, nds: float
) -> None:
    """The published conversion of annotations, which the training targets use, costs 1e-4 of NDS under an ego
    that is tilted by 1 to 2 degrees; boxes that undo the submission's conversion cost nothing."""
    reader = reader_of(real, split=split)
    exact = evaluate(real, perfect(reader, tmp_path / "e.json", all_truth, change=with_exact_inverse), split)
    assert (exact.mean_ap, exact.nd_score) == pytest.approx((mean_ap, nds), abs=2e-6)
    evaluation = evaluate(real, perfect(reader, tmp_path / "s.json", all_truth), split)
    assert evaluation.mean_ap == pytest.approx(mean_ap, abs=1e-6)
    assert evaluation.nd_score == pytest.approx(nds, abs=2e-4)
    for name, errors in evaluation.summary["label_tp_errors"].items():
        if evaluation.summary["mean_dist_aps"][name] > 0.9:
            assert errors["trans_err"] < 1e-5 and errors["scale_err"] < 1e-6
            assert np.isnan(errors["attr_err"]) or errors["attr_err"] == 0
            assert np.isnan(errors["orient_err"]) or errors["orient_err"] < 1e-3
            assert split == "mini_train" or np.isnan(errors["vel_err"]) or errors["vel_err"] < 0.02


def swap_length_and_width(d: Detections, *_: Any) -> Detections:
    return replace(d, boxes=d.boxes[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]])


def mirror_yaw(d: Detections, *_: Any) -> Detections:
    return replace(d, boxes=d.boxes * np.array([1, 1, 1, 1, 1, 1, -1, 1, 1], np.float32))


def mirror_y(d: Detections, *_: Any) -> Detections:
    return replace(d, boxes=d.boxes * np.array([1, -1, 1, 1, 1, 1, 1, 1, 1], np.float32))


def swap_velocity(d: Detections, *_: Any) -> Detections:
    return replace(d, boxes=d.boxes[:, [0, 1, 2, 3, 4, 5, 6, 8, 7]])


def lidar_s_ego_pose(d: Detections, ref: FrameRef, reader: NuScenesReader) -> Detections:
    row = reader.tables.get("sample_data", reader.tables.get("sample", ref.sample_token)["data"]["LIDAR_TOP"])
    pose = reader.tables.get("ego_pose", row["ego_pose_token"])
    return replace(d, global_from_ego=rigid(pose["rotation"], pose["translation"]))


def inverse_pose(d: Detections, *_: Any) -> Detections:
    return replace(d, global_from_ego=np.linalg.inv(d.global_from_ego))


@pytest.mark.sample
@pytest.mark.parametrize(
    ("change", "at_most"),
    [
        (swap_length_and_width, 0.275),
        (mirror_yaw, 0.278),
        (mirror_y, 0.15),
        (swap_velocity, 0.275),
        (lidar_s_ego_pose, 0.281),
        (inverse_pose, 0.01),
    ],
)
def test_each_mistake_costs_more_than_the_tolerance(
    real: Any, tmp_path: Path, change: Change, at_most: float
) -> None:
    path = perfect(reader_of(real, split="mini_val"), tmp_path / "s.json", change=change)
    assert evaluate(real, path, "mini_val").nd_score < at_most


@pytest.mark.sample
def test_known_detector_scores_as_published_and_as_the_official_program_says(
    real: Any, sample: Path, tmp_path: Path
) -> None:
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import NuScenesEval

    path = sample / "golden" / "fastbev_scene-0103_nusc_submission.json"
    evaluation = evaluate(real, path, "mini_val")
    expected = json.loads((sample / "golden" / "devkit_eval_expected.json").read_text())["fastbev_mini_val"]
    assert evaluation.mean_ap == pytest.approx(expected["mean_ap"], abs=1e-6)
    assert evaluation.nd_score == pytest.approx(expected["nd_score"], abs=1e-6)
    official = NuScenesEval(
        real, config_factory("detection_cvpr_2019"), str(path), "mini_val", str(tmp_path), verbose=False
    ).main(plot_examples=0, render_curves=False)
    for key in ("mean_dist_aps", "tp_errors", "mean_ap", "nd_score"):
        assert evaluation.summary[key] == official[key]
    table = format_table(evaluation)
    assert "pedestrian             0.503  0.603  0.296  0.639  0.669  0.043" in table
    assert "traffic_cone           0.767  0.666  0.198      -      -      -" in table
    assert "mAP 0.1878\nNDS 0.1727" in table


# ---------------------------------------------------------------------------------------- made data set
def test_empty_lists_score_zero(made: Any, tmp_path: Path) -> None:
    reader = reader_of(made, split="mini_val")
    write_submission(make_submission({}, reader.sample_tokens()), tmp_path / "s.json")
    evaluation = evaluate(made, tmp_path / "s.json", "mini_val")
    assert (evaluation.mean_ap, evaluation.nd_score, evaluation.boxes) == (0.0, 0.0, 0)
    assert "mAP 0.0000\nNDS 0.0000" in format_table(evaluation)


def test_perfect_predictions_of_the_made_data_set(made: Any, tmp_path: Path) -> None:
    evaluation = evaluate(made, perfect(reader_of(made, split="mini_val"), tmp_path / "s.json"), "mini_val")
    aps = evaluation.summary["mean_dist_aps"]
    assert [name for name, ap in aps.items() if ap > 0.999] == ["car", "pedestrian", "traffic_cone"]
    assert evaluation.samples == 5 and evaluation.boxes == 15


def test_missing_samples_are_counted_by_scene(made: Any, tmp_path: Path) -> None:
    path = perfect(reader_of(made, scenes=["scene-0103"]), tmp_path / "s.json")
    message = r"lacks 2 of the 5 samples of mini_val, in: scene-0916 \(2\); detect the whole split, or name the scenes"
    with pytest.raises(SubmissionError, match=message):
        evaluate(made, path, "mini_val")


def test_part_of_a_split_is_scored_when_named_and_the_table_says_so(made: Any, tmp_path: Path) -> None:
    path = perfect(reader_of(made, scenes=["scene-0103"]), tmp_path / "s.json")
    evaluation = evaluate(made, path, "mini_val", ["scene-0103"])
    assert evaluation.samples == 3 and evaluation.mean_ap == pytest.approx(0.3, abs=1e-6)
    assert "scenes scene-0103 only: not comparable" in format_table(evaluation)


def test_samples_outside_the_split_are_ignored_and_counted(made: Any, tmp_path: Path) -> None:
    whole = perfect(reader_of(made), tmp_path / "all.json")
    part = perfect(reader_of(made, split="mini_val"), tmp_path / "val.json")
    evaluation = evaluate(made, whole, "mini_val")
    assert (evaluation.samples, evaluation.ignored) == (5, 1)
    assert evaluation.nd_score == evaluate(made, part, "mini_val").nd_score
    assert "1 samples of the submission are outside it" in format_table(evaluation)


@pytest.mark.parametrize(
    ("split", "scenes", "message"),
    [
        ("mini", None, "unknown split 'mini' of v1.0-mini: it has mini_train, mini_val"),
        ("val", None, "unknown split 'val' of v1.0-mini: it has mini_train, mini_val"),
        (
            "mini_val",
            ["scene-0061"],
            "the split 'mini_val' has no scene 'scene-0061' here; it has scene-0103",
        ),
    ],
)
def test_wrong_choices_list_what_there_is(
    made: Any, tmp_path: Path, split: str, scenes: list[str] | None, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        evaluate(made, tmp_path / "s.json", split, scenes)


def test_results_file_is_strict_json(made: Any, tmp_path: Path) -> None:
    evaluation = evaluate(made, perfect(reader_of(made, split="mini_val"), tmp_path / "s.json"), "mini_val")
    report(evaluation, tmp_path / "out" / "results.json")

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    content = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=refuse)
    assert content["nd_score"] == pytest.approx(evaluation.nd_score) and content["eval_set"] == "mini_val"
    assert content["label_tp_errors"]["traffic_cone"]["vel_err"] is None


def test_nothing_is_printed(made: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = perfect(reader_of(made, split="mini_val"), tmp_path / "s.json")
    assert isinstance(evaluate(made, path, "mini_val"), Evaluation)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
