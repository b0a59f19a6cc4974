# SPDX-License-Identifier: Apache-2.0
"""nuScenes submissions: against records of the published code, and the format's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevnext_core.classes import CLASSES
from bevnext_core.detections import Detections
from bevnext_core.geometry import rigid
from bevnext_tools.evaluation.submission import (
    MAX_BOXES,
    META,
    SubmissionError,
    attribute_for,
    check_submission,
    make_submission,
    read_submission,
    submission_records,
    write_submission,
)
from tests import recipe
from tests.paths import BUNDLED
from tests.published import from_bottom_center


def detections(
    boxes: Any, labels: Any = None, scores: Any = None, token: str = "token", **other: Any
) -> Detections:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 9)
    count = len(boxes)
    return Detections(
        boxes,
        np.linspace(0.9, 0.5, count, dtype=np.float32) if scores is None else np.asarray(scores, np.float32),
        np.zeros(count, np.int64) if labels is None else np.asarray(labels),
        **{"class_names": CLASSES, "stamp_ns": 1, "global_from_ego": np.eye(4), "token": token, **other},
    )


CAR = [10.0, 2.0, 0.8, 4.6, 1.9, 1.7, 0.3, 1.0, 0.0]


# ------------------------------------------------------------------------------------ published records
@pytest.mark.parametrize("index", [0, 1])
def test_records_equal_the_published_ones(index: int) -> None:
    """The published code writes the bottom centre; half the height along the box's own up axis lies between."""
    decoded = np.load(BUNDLED / "mod_decode.npz")
    expected = json.loads((BUNDLED / "modules.json").read_text())["format_bbox"][f"tok{index}"]
    key = recipe.make_infos("A", 2)[index]["cams"]["CAM_FRONT"]
    pose = recipe.transform(key["ego2global_rotation"], key["ego2global_translation"])
    # every seventh box was recorded
    rows = slice(None, None, 7)
    boxes = from_bottom_center(decoded[f"nms.s{index}.boxes"][rows].astype(np.float64))
    given = Detections(
        boxes,
        decoded[f"nms.s{index}.scores"][rows],
        decoded[f"nms.s{index}.labels"][rows].astype(np.int64),
        CLASSES,
        1,
        pose,
        f"tok{index}",
    )
    records = submission_records(given)
    assert len(records) == len(expected) >= 30
    expected = sorted(expected, key=lambda record: -record["detection_score"])
    for ours, theirs in zip(records, expected):
        center = np.array(theirs["translation"]) + pose[:3, :3] @ [0, 0, theirs["size"][2] / 2]
        np.testing.assert_allclose(ours["translation"], center, atol=1e-4)
        np.testing.assert_allclose(ours["size"], theirs["size"], rtol=1e-6)
        sign = np.sign(np.dot(ours["rotation"], theirs["rotation"]))
        np.testing.assert_allclose(np.multiply(sign, ours["rotation"]), theirs["rotation"], atol=1e-5)
        np.testing.assert_allclose(ours["velocity"], theirs["velocity"], atol=1e-5)
        for key_name in ("sample_token", "detection_name", "attribute_name"):
            assert ours[key_name] == theirs[key_name]
        assert ours["detection_score"] == pytest.approx(theirs["detection_score"], abs=1e-7)


@pytest.mark.parametrize(
    ("name", "moving", "still"),
    [
        ("car", "vehicle.moving", "vehicle.parked"),
        ("truck", "vehicle.moving", "vehicle.parked"),
        ("construction_vehicle", "vehicle.moving", "vehicle.parked"),
        ("bus", "vehicle.moving", "vehicle.stopped"),
        ("trailer", "vehicle.moving", "vehicle.parked"),
        ("barrier", "", ""),
        ("motorcycle", "cycle.with_rider", "cycle.without_rider"),
        ("bicycle", "cycle.with_rider", "cycle.without_rider"),
        ("pedestrian", "pedestrian.moving", "pedestrian.standing"),
        ("traffic_cone", "", ""),
    ],
)
def test_attribute_follows_class_and_speed(name: str, moving: str, still: str) -> None:
    assert attribute_for(name, 0.21) == moving
    assert attribute_for(name, 0.2) == attribute_for(name, 0.0) == still


def test_attribute_uses_the_speed_in_the_global_plane() -> None:
    # An ego that stands on its nose: forward in its frame is down in the global one.
    pose = rigid([np.cos(np.pi / 4), 0, np.sin(np.pi / 4), 0], [0, 0, 0])
    (record,) = submission_records(detections([CAR], global_from_ego=pose))
    assert record["attribute_name"] == "vehicle.parked"


# -------------------------------------------------------------------------------------- making and rules
def test_records_come_best_first_and_never_more_than_allowed() -> None:
    count = MAX_BOXES + 20
    scores = np.random.default_rng(0).uniform(0, 1, count)
    records = submission_records(detections([CAR] * count, scores=scores))
    written = [record["detection_score"] for record in records]
    assert len(records) == MAX_BOXES
    np.testing.assert_allclose(written, np.sort(scores)[::-1][:MAX_BOXES], atol=1e-7)


def test_given_attributes_stay_with_their_boxes() -> None:
    given = detections([CAR, CAR], scores=[0.2, 0.8])
    records = submission_records(given, ["vehicle.stopped", "vehicle.parked"])
    assert [record["attribute_name"] for record in records] == ["vehicle.parked", "vehicle.stopped"]
    with pytest.raises(SubmissionError, match="1 attributes for 2 boxes"):
        submission_records(given, ["vehicle.parked"])


def test_every_sample_is_present_and_no_other() -> None:
    records = submission_records(detections([CAR]))
    submission = make_submission({"token": records}, ["a", "token", "b"])
    assert list(submission["results"]) == ["a", "token", "b"]
    assert submission["results"]["a"] == [] and submission["meta"] == META
    with pytest.raises(SubmissionError, match="1 results are for other samples, the first is token"):
        make_submission({"token": records}, ["a"])


def test_written_file_reads_back_and_the_devkit_loads_it(tmp_path: Path) -> None:
    submission = make_submission({"token": submission_records(detections([CAR] * 3))}, ["token", "other"])
    path = tmp_path / "new folder" / "submission.json"
    write_submission(submission, path)
    assert read_submission(path) == submission
    loaders = pytest.importorskip("nuscenes.eval.common.loaders")
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes, meta = loaders.load_prediction(str(path), MAX_BOXES, DetectionBox)
    assert set(boxes.sample_tokens) == {"token", "other"} and len(boxes["token"]) == 3 and meta == META


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        write_submission({"meta": {}, "results": {"a": [float("nan")]}}, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (detections([CAR], token=""), "the frame at 1 ns has no sample token"),
        (detections([CAR, [np.nan] * 9]), "box 1 of sample token holds NaN or infinity"),
        (detections([CAR], scores=[np.inf]), "box 0 of sample token holds NaN or infinity"),
    ],
)
def test_detections_that_cannot_be_submitted(given: Detections, message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        submission_records(given)


GOOD = {
    "sample_token": "t",
    "translation": [1.0, 2.0, 3.0],
    "size": [1.9, 4.6, 1.7],
    "rotation": [1.0, 0.0, 0.0, 0.0],
    "velocity": [0.0, 0.0],
    "detection_name": "car",
    "detection_score": 0.5,
    "attribute_name": "vehicle.parked",
}


def with_record(**changes: Any) -> dict[str, Any]:
    return {"meta": {}, "results": {"t": [GOOD, {**GOOD, **changes}]}}


WRONG: dict[str, tuple[Any, str]] = {
    "list": ([], "must be a mapping with 'meta' and 'results'"),
    "no results": ({"meta": {}}, "must be a mapping with 'meta' and 'results'"),
    "no meta": ({"results": {}}, "has no 'meta'"),
    "no list": ({"meta": {}, "results": {"t": {}}}, "the result of sample t must be a list"),
    "too many": ({"meta": {}, "results": {"t": [GOOD] * 501}}, "sample t has 501 boxes, 500 are allowed"),
    "record": ({"meta": {}, "results": {"t": [3]}}, "sample t, box 0: must be a mapping"),
    "missing field": (
        {"meta": {}, "results": {"t": [{k: v for k, v in GOOD.items() if k != "size"}]}},
        "sample t, box 0: 'size' is missing",
    ),
    "other token": (with_record(sample_token="u"), "sample t, box 1: its sample_token is 'u'"),
    "short": (with_record(translation=[1.0, 2.0]), "'translation' must be 3 finite numbers"),
    "NaN": (with_record(velocity=[float("nan"), 0.0]), "'velocity' must be 2 finite numbers"),
    "text": (with_record(rotation=["a", 0, 0, 0]), "'rotation' must be 4 finite numbers"),
    "zero size": (with_record(size=[0.0, 1.0, 1.0]), "'size' must be positive"),
    "zero rotation": (with_record(rotation=[0.0] * 4), "'rotation' is a zero quaternion"),
    "class": (with_record(detection_name="tank"), "unknown detection_name 'tank'; known are car"),
    "score": (with_record(detection_score=1), "'detection_score' must be a finite float, got 1"),
    "attribute": (
        with_record(attribute_name="flying"),
        "unknown attribute_name 'flying'; known are pedestrian.moving",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_broken_rule_is_named(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SubmissionError, match=message) as caught:
        read_submission(path)
    assert str(path) in str(caught.value)


def test_good_submission_passes() -> None:
    check_submission(with_record(attribute_name=""), "it")


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"no such submission file: .*gone\.json"):
        read_submission(tmp_path / "gone.json")
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(SubmissionError, match=r"s\.json: cannot be read as JSON"):
        read_submission(tmp_path / "s.json")
