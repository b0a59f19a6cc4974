# SPDX-License-Identifier: Apache-2.0
"""The verdict of the demo with ROS: it must notice a box that is missing, extra, moved, or of another class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bevnext_core.classes import CLASSES
from bevnext_core.detections import Detections
from scripts.demo_ros import TOLERANCE, compare


def detections(stamp: int, count: int = 5) -> Detections:
    rng = np.random.default_rng(stamp)
    boxes = rng.uniform(-3, 3, (count, 9)).astype(np.float32)
    scores = rng.uniform(0, 1, count).astype(np.float32)
    return Detections(boxes, scores, rng.integers(0, 2, count), CLASSES, stamp, np.eye(4))


EXPECTED = {stamp: detections(stamp) for stamp in (1, 2, 3)}


def changed(**fields: object) -> dict[int, Detections]:
    return EXPECTED | {2: replace(EXPECTED[2], **fields)}  # type: ignore[arg-type]


def test_equal_sets_in_any_order_are_equal() -> None:
    order = np.array([3, 1, 4, 0, 2])
    two = EXPECTED[2]
    boxes = two.boxes[order].copy()
    boxes[:, 6] += 2 * np.pi
    verdict = compare(changed(boxes=boxes, scores=two.scores[order], labels=two.labels[order]), EXPECTED)
    assert (verdict.equal, verdict.frames, verdict.boxes, verdict.faults) == (3, 3, 15, ())
    assert verdict.largest < 1e-5


@pytest.mark.parametrize("field", range(9))
def test_moved_box_is_noticed(field: int) -> None:
    boxes = EXPECTED[2].boxes.copy()
    boxes[1, field] += 2 * TOLERANCE
    verdict = compare(changed(boxes=boxes), EXPECTED)
    assert verdict.equal == 2 and verdict.faults == ("frame 2: 5 boxes, 5 expected, 1 without partner",)


def test_other_class_and_other_score_are_noticed() -> None:
    two = EXPECTED[2]
    for fields in ({"labels": two.labels + 2}, {"scores": two.scores + np.float32(0.01)}):
        assert compare(changed(**fields), EXPECTED).equal == 2


def test_missing_extra_and_doubled_boxes_are_noticed() -> None:
    two = EXPECTED[2]
    for index in (np.arange(4), np.array([0, 1, 2, 3, 4, 4]), np.array([0, 1, 2, 3, 3]), np.zeros(0, int)):
        fields = {name: getattr(two, name)[index] for name in ("boxes", "scores", "labels")}
        assert compare(changed(**fields), EXPECTED).equal == 2


def test_each_box_is_a_partner_once() -> None:
    def chosen(*index: int) -> dict[int, Detections]:
        two = EXPECTED[2]
        fields = {name: getattr(two, name)[list(index)] for name in ("boxes", "scores", "labels")}
        return {2: replace(two, **fields)}

    assert compare(chosen(0, 0, 1), chosen(0, 0, 1)).equal == 1
    assert compare(chosen(0, 1, 1), chosen(0, 0, 1)).equal == 0


def test_missing_and_unexpected_frames_are_noticed() -> None:
    assert compare({1: EXPECTED[1], 3: EXPECTED[3]}, EXPECTED).faults == ("frame 2: not published",)
    assert compare(EXPECTED | {4: EXPECTED[1]}, EXPECTED).faults == ("frame 4: not expected",)


def test_frames_without_boxes_are_equal() -> None:
    nothing = {1: detections(1, 0)}
    assert compare(nothing, nothing).faults == ()
