"""The curves of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from bevnext_core.images import read_image
from tests.training.tiny import arguments, tiny_dataroot
from training import plot_log
from training import train as script


def test_the_losses_of_runs_are_read_and_drawn(tmp_path: Path, capsys: Any) -> None:
    tiny_dataroot(tmp_path)
    for name, more in (("plain", []), ("read", ["--perspective-loss", "1"])):
        assert script.main(arguments(tmp_path, name, "--max-steps", "3", *more, stage=1)) == 0
    logs = [tmp_path / name / "log.txt" for name in ("plain", "read")]
    plain, read = (plot_log.read_log(path) for path in logs)
    assert plain.samples.tolist() == [2, 4, 6] and plain.name == "plain"
    assert np.isnan(plain.losses[:, 3]).all() and np.isfinite(plain.losses[:, :3]).all()
    assert np.isfinite(read.losses).all()
    assert plot_log.main([*map(str, logs), "--out", str(tmp_path / "curves.png")]) == 0
    assert read_image(tmp_path / "curves.png", "curves").shape[1] > 800
    (tmp_path / "other.txt").write_text("nothing")
    assert plot_log.main([str(tmp_path / "other.txt"), "--out", str(tmp_path / "no.png")]) == 1
    assert "no log of a training run" in capsys.readouterr().err


def test_smoothing_keeps_a_constant_and_takes_neighbours() -> None:
    np.testing.assert_allclose(plot_log.smoothed(np.full(5, 2.0)), 2.0)
    values = np.zeros(30)
    values[15] = plot_log.SMOOTH
    assert plot_log.smoothed(values)[15] == pytest.approx(1.0) and plot_log.smoothed(values)[0] == 0
