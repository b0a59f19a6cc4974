# SPDX-License-Identifier: Apache-2.0
"""Data-loader workers change nothing: neither the errors nor the numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.test_train import assert_identical, newest
from tests.training.tiny import arguments, tiny_dataroot
from training import train as script

WORKERS = ("--workers", "2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_dataroot(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("lidar", "training.missing_lidar=no-depth-loss"),
        ("image", "the image is 80x45, but its calibration is for 160x90"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--set", "training.shared_run=2")])
def test_an_error_in_a_worker_is_the_one_line_that_it_is_without(
    folder: Path, capsys: Any, spoil: str, message: str, more: tuple[str, ...]
) -> None:
    samples = folder / "data" / "samples"
    if spoil == "lidar":
        shutil.rmtree(samples / "LIDAR_TOP")
    else:
        for path in (samples / "CAM_FRONT").iterdir():
            Image.fromarray(np.zeros((45, 80, 3), np.uint8)).save(path)
    errors = []
    for work_dir, workers in (("without", ()), ("with", WORKERS)):
        assert script.main(arguments(folder, work_dir, *workers, *more)) == 1
        errors.append(capsys.readouterr().err.splitlines()[-1])
    assert errors[0] == errors[1]
    assert errors[1].startswith("error: 20 ") and message in errors[1] and "Traceback" not in errors[1]


def test_unreadable_frames_in_workers_are_listed_and_stop_the_run_beyond_the_limit(folder: Path, capsys: Any) -> None:
    for path in sorted((folder / "data" / "samples" / "CAM_BACK").glob("scene-0553*")):
        path.write_bytes(b"")
    assert script.main(arguments(folder, "run", *WORKERS, "--set", "training.max_unreadable=1")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "1 are allowed" in error and error.count("scene-0553-sample") >= 2
    assert newest(folder / "run")["step"] > 0


def test_stopping_and_resuming_with_workers_is_bit_identical_to_a_whole_run_without(folder: Path) -> None:
    assert script.main(arguments(folder, "whole")) == 0
    for more in (["--max-steps", "3"], ["--resume"]):
        assert script.main(arguments(folder, "stopped", *WORKERS, *more)) == 0
    expected, found = newest(folder / "whole"), newest(folder / "stopped")
    assert found["step"] == 8
    assert_identical(found, expected)
