# SPDX-License-Identifier: Apache-2.0
"""The command that compares two submissions: order and the quaternion's sign do not count, everything else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevnext_tools.evaluation.submission import make_submission
from scripts.compare_submissions import main


def record(x: float, **changes: Any) -> dict[str, Any]:
    values = {"translation": [x, 2.0, 0.5], "size": [1.9, 4.6, 1.7], "rotation": [0.6, 0.0, 0.0, 0.8]}
    names = {"detection_name": "car", "attribute_name": "vehicle.moving", "detection_score": 0.5}
    return {"sample_token": "s", **values, "velocity": [1.0, 0.0], **names, **changes}


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text(json.dumps(make_submission({"s": list(records)}, ["s", "t"])))
    return str(path)


def test_order_and_sign_of_the_quaternion_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = np.random.default_rng(0).uniform(-50, 50, 40)
    first = write(tmp_path / "a", *(record(x) for x in places))
    turned = [record(x + 5e-6, rotation=[-0.6, 0.0, 0.0, -0.8]) for x in places[::-1]]
    assert main([first, write(tmp_path / "b", *turned)]) == 0
    assert "equal: 40 boxes agree within 1e-05 (at most 5.0e-06" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"translation": [3.0, 2.0, 0.501]},
        {"size": [1.9, 4.6, 1.71]},
        {"rotation": [0.8, 0.0, 0.0, 0.6]},
        {"velocity": [1.0, 0.1]},
        {"detection_score": 0.501},
        {"detection_name": "truck"},
        {"attribute_name": "vehicle.parked"},
    ],
)
def test_every_field_counts(change: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "a", record(1.0), record(3.0))
    assert main([first, write(tmp_path / "b", record(1.0), record(3.0, **change))]) == 1
    assert "DIFFERENT: 1 boxes agree within 1e-05" in capsys.readouterr().out


def test_each_box_has_a_partner_of_its_own(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", record(1.0), record(1.0)), write(tmp_path / "b", record(1.0))
    assert main([first, second]) == main([second, first]) == 1
    assert main([first, str(tmp_path / "gone")]) == 2
