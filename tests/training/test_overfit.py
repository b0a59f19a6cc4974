"""Learning from real data, in short: docs/training.md has the whole experiment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.paths import ROOT
from training import train as script


@pytest.mark.sample
@pytest.mark.slow
def test_a_real_frame_is_being_learned(sample: Path, tmp_path: Path) -> None:
    """Forty steps on the frame with lidar: every part of the loss falls far below its start."""
    options = ["--stage", "1", "--config", str(ROOT / "training/overfit_sample.yaml"), "--dataroot", str(sample)]
    options += ["--version", "v1.0-mini", "--scenes", "scene-0061", "--index-dir", str(tmp_path), "--no-augmentation"]
    options += ["--no-cbgs", "--repeat", "40", "--from-scratch", "--batch", "1", "--workers", "0", "--device", "cpu"]
    options += ["--no-progress", "--work-dir", str(tmp_path / "run"), "--log-every", "5"]
    for override in ("epochs=1", "global_batch=1", "learning_rate=4.0e-3"):
        options += ["--set", f"training.{override}"]
    options += ["--set", "image.height=64", "--set", "image.width=192"]
    assert script.main(options) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    values = re.findall(r"heat ([\d.]+) box ([\d.]+) depth ([\d.]+)", log)
    first, last = ([float(v) for v in values[i]] for i in (0, -1))
    assert last[0] < 8.0 and last[0] < first[0] / 50, "heat maps"
    assert last[1] < 4.0 and last[1] < first[1] / 3, "boxes"
    assert 0 < last[2] < 0.95 * first[2], "depth"
