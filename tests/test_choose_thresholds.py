# SPDX-License-Identifier: Apache-2.0
"""The lowest score to draw of each class, from the official metric's curves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")

from bevnext_core.classes import CLASSES
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.detections import Detections
from bevnext_tools.evaluation.submission import make_submission, submission_records, write_submission
from scripts.choose_thresholds import best_threshold, main
from tests.nuscenes_dataroot import write_dataroot


def test_a_wrong_box_counts_for_more_than_a_missing_one() -> None:
    recall = np.array([0.0, 0.3, 0.6])
    confidence = np.array([0.0, 0.8, 0.4])
    # F0.5 of 0.3 and 0.9 is 0.64, of 0.6 and 0.6 it is 0.6; F1 would be 0.45 and 0.6
    assert best_threshold(np.array([0.0, 0.9, 0.6]), recall, confidence) == 0.8
    assert best_threshold(np.array([0.0, 0.9, 0.8]), recall, confidence) == 0.4
    assert best_threshold(np.zeros(3), recall, confidence) == 1.0


def test_command_finds_the_score_below_which_boxes_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cars are right with 0.7 and wrong, 8 m beside, with 0.2; nothing else is detected."""
    root = write_dataroot(tmp_path / "data", {"scene-0103": 3, "scene-0916": 2})
    reader, results = NuScenesReader(root, "v1.0-mini", split="mini_val"), {}
    for ref in (ref for scene in reader.scenes for ref in reader.refs(scene)):
        cars = reader.ground_truth(ref).boxes[:1]
        boxes = np.nan_to_num(np.concatenate([cars, cars + 8.0 * np.eye(9)[1]])).astype(np.float32)
        pose = reader.global_from_ego(ref)
        right = Detections(boxes, np.float32([0.7, 0.2]), np.zeros(2, int), CLASSES, ref.stamp_ns, pose)
        results[ref.sample_token] = submission_records(replace(right, token=ref.sample_token))
    write_submission(make_submission(results, reader.sample_tokens()), tmp_path / "s.json")
    arguments = ["--dataroot", str(root), "--version", "v1.0-mini", "--split", "mini_val"]
    assert main([*arguments, "--submission", str(tmp_path / "s.json")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if '"' in line]
    assert lines == [f'    "{name}": {0.7 if name == "car" else 1.0:.2f},' for name in CLASSES]
