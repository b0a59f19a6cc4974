# SPDX-License-Identifier: Apache-2.0
"""Detections <-> nuScenes detection submission (a JSON file of boxes in the global frame)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core.boxes import nuscenes_from_boxes
from bevnext_core.classes import CLASSES
from bevnext_core.detections import Detections
from bevnext_core.errors import BevnextError, one_line
from bevnext_core.files import atomic_path, user_path

MAX_BOXES = 500
"""Boxes per sample that the official evaluation accepts."""

MOVING_SPEED = 0.2
"""m/s in the global plane; above it a box counts as moving (published value)."""

META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}
"""The modality dict of a camera-only method."""

ATTRIBUTE_NAMES = (
    *("pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing"),
    *("cycle.with_rider", "cycle.without_rider", "vehicle.moving", "vehicle.parked", "vehicle.stopped"),
)

_ATTRIBUTES = {
    **dict.fromkeys(("car", "truck", "construction_vehicle", "trailer"), ("vehicle.moving", "vehicle.parked")),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    **dict.fromkeys(("motorcycle", "bicycle"), ("cycle.with_rider", "cycle.without_rider")),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    **dict.fromkeys(("barrier", "traffic_cone"), ("", "")),
}
"""The published rule: by class, the attribute of a box that moves and of one that does not."""

_LENGTHS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}
_RECORD_KEYS = ("sample_token", *_LENGTHS, "detection_name", "detection_score", "attribute_name")


class SubmissionError(BevnextError):
    """A submission is unreadable, incomplete or breaks the format's rules."""


def attribute_for(name: str, speed: float) -> str:
    """The published rule: an attribute from the class and the global planar speed (m/s); empty for none."""
    moving, still = _ATTRIBUTES.get(name, ("", ""))
    return moving if speed > MOVING_SPEED else still


def submission_records(detections: Detections, attributes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The records of one frame, in the global frame, best first and at most :data:`MAX_BOXES`.

    Args:
        detections: boxes in the ego frame; ``token`` is the sample's.
        attributes: M names that replace the published rule, for boxes whose attribute is known.

    Raises:
        SubmissionError: no token, NaN or infinity in a box.
    """
    if not detections.token:
        raise SubmissionError(f"the frame at {detections.stamp_ns} ns has no sample token: it is no key frame")
    if attributes is not None and len(attributes) != len(detections):
        raise SubmissionError(f"{len(attributes)} attributes for {len(detections)} boxes")
    names = detections.names
    finite = np.isfinite(detections.boxes).all(1) & np.isfinite(detections.scores)
    if not finite.all():
        raise SubmissionError(f"box {int(np.argmin(finite))} of sample {detections.token} holds NaN or infinity")
    geometry = nuscenes_from_boxes(detections.boxes, detections.global_from_ego)
    records = []
    for index in np.argsort(-detections.scores, kind="stable")[:MAX_BOXES]:
        speed = math.hypot(*geometry[index]["velocity"])
        records.append(
            {
                "sample_token": detections.token,
                **geometry[index],
                "detection_name": names[index],
                "detection_score": float(detections.scores[index]),
                "attribute_name": attribute_for(names[index], speed) if attributes is None else attributes[index],
            }
        )
    return records


def make_submission(
    results: Mapping[str, list[dict[str, Any]]],
    sample_tokens: Iterable[str],
    meta: Mapping[str, bool] = META,
    class_names: Sequence[str] = CLASSES,
) -> dict[str, Any]:
    """The complete submission: every one of ``sample_tokens``, an empty list where ``results`` has none.

    With other ``class_names`` it has the same form, but nuScenes takes none such.

    Raises:
        SubmissionError: a result for a sample that is not among ``sample_tokens``, or an invalid record.
    """
    tokens = list(dict.fromkeys(sample_tokens))
    strangers = sorted(set(results) - set(tokens))
    if strangers:
        raise SubmissionError(f"{len(strangers)} results are for other samples, the first is {strangers[0]}")
    submission = {"meta": dict(meta), "results": {token: list(results.get(token, [])) for token in tokens}}
    check_submission(submission, "the submission", class_names)
    return submission


def write_submission(submission: Mapping[str, Any], path: str | Path) -> None:
    """Write a submission; the file appears when it is complete."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(submission, allow_nan=False), encoding="utf-8")


def read_submission(path: str | Path) -> dict[str, Any]:
    """Read and check a submission file.

    Raises:
        SubmissionError: missing file, no JSON, or what :func:`check_submission` finds; names the file.
    """
    path = user_path(path)
    try:
        submission = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SubmissionError(f"no such submission file: {path}") from None
    except (OSError, ValueError) as error:
        raise SubmissionError(f"{path}: cannot be read as JSON: {one_line(error)}") from None
    check_submission(submission, str(path))
    return submission


def check_submission(submission: Any, source: str, class_names: Sequence[str] = CLASSES) -> None:
    """Check what the official evaluation requires; ``source`` names the submission in errors.

    Raises:
        SubmissionError: naming the sample, the record and the field.
    """
    if not isinstance(submission, dict) or not isinstance(submission.get("results"), dict):
        raise SubmissionError(f"{source}: must be a mapping with 'meta' and 'results' (sample token -> boxes)")
    if not isinstance(submission.get("meta"), dict):
        raise SubmissionError(f"{source}: has no 'meta' (which sensors the method uses)")
    for token, records in submission["results"].items():
        if not isinstance(records, list):
            raise SubmissionError(f"{source}: the result of sample {token} must be a list")
        if len(records) > MAX_BOXES:
            raise SubmissionError(f"{source}: sample {token} has {len(records)} boxes, {MAX_BOXES} are allowed")
        for index, record in enumerate(records):
            fault = _record_fault(record, token, class_names)
            if fault:
                raise SubmissionError(f"{source}: sample {token}, box {index}: {fault}")


def _record_fault(record: Any, token: str, class_names: Sequence[str]) -> str | None:
    if not isinstance(record, dict):
        return "must be a mapping"
    missing = [key for key in _RECORD_KEYS if key not in record]
    if missing:
        return f"'{missing[0]}' is missing"
    if record["sample_token"] != token:
        return f"its sample_token is {record['sample_token']!r}"
    for key, length in _LENGTHS.items():
        value = record[key]
        if not isinstance(value, list) or len(value) != length or not all(map(_is_finite, value)):
            return f"'{key}' must be {length} finite numbers, got {value!r}"
    if min(record["size"]) <= 0:
        return f"'size' must be positive, got {record['size']}"
    if not any(record["rotation"]):
        return "'rotation' is a zero quaternion"
    name, score, attribute = record["detection_name"], record["detection_score"], record["attribute_name"]
    if name not in class_names:
        return f"unknown detection_name {name!r}; known are {', '.join(class_names)}"
    if not isinstance(score, float) or not math.isfinite(score):
        return f"'detection_score' must be a finite float, got {score!r}"
    if attribute != "" and attribute not in ATTRIBUTE_NAMES:
        return f"unknown attribute_name {attribute!r}; known are {', '.join(ATTRIBUTE_NAMES)}, or empty"
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
