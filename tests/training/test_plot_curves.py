# SPDX-License-Identifier: Apache-2.0
"""The curves of training runs: what is written, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from bevnext_core.images import read_image
from tests.training.tiny import arguments, tiny_dataroot
from training import plot_curves
from training import train as script
from training.run.progress import COLUMNS


def test_the_losses_of_runs_are_written_and_drawn(tmp_path: Path, capsys: Any) -> None:
    tiny_dataroot(tmp_path)
    for name, more in (("plain", []), ("read", ["--set", "training.perspective_weight=1"])):
        assert script.main(arguments(tmp_path, name, "--max-steps", "3", *more, stage=1)) == 0
    plain, read = (plot_curves.read_curves(tmp_path / name) for name in ("plain", "read"))
    assert plain["samples"].tolist() == [2, 4, 6]
    assert np.isnan(plain["perspective"]).all() and np.isfinite(read["perspective"]).all()
    for curves, name in ((plain, "plain"), (read, "read")):
        lines = [line for line in (tmp_path / name / "log.txt").read_text().splitlines() if " loss " in line]
        for part in ("heat", "box", "depth"):
            assert f"{part} {curves[part][-1]:.3f}" in lines[-1]
    out = tmp_path / "curves.png"
    assert plot_curves.main([str(tmp_path / "plain"), str(tmp_path / "read"), "--out", str(out)]) == 0
    assert read_image(out, "curves").shape[1] > 800


def test_a_step_that_was_done_twice_has_its_last_row(tmp_path: Path) -> None:
    rows = ["1,0,2," + ",".join(["5"] * 11), "2,0,4," + ",".join(["4"] * 11), "2,0,4," + ",".join(["3"] * 11)]
    (tmp_path / "curves.csv").write_text("\n".join([",".join(COLUMNS), *rows]))
    assert plot_curves.read_curves(tmp_path)["heat"].tolist() == [5, 3]


@pytest.mark.parametrize("text", [None, "", ",".join(COLUMNS), "step,other\n1,2\n"])
def test_a_folder_without_curves_is_named(tmp_path: Path, capsys: Any, text: str | None) -> None:
    if text is not None:
        (tmp_path / "curves.csv").write_text(text)
    assert plot_curves.main([str(tmp_path), "--out", str(tmp_path / "no.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/curves.csv ") and error.count("\n") == 1


def test_smoothing_keeps_a_constant_and_takes_neighbours() -> None:
    np.testing.assert_allclose(plot_curves.smoothed(np.full(5, 2.0)), 2.0)
    values = np.zeros(30)
    values[15] = plot_curves.SMOOTH
    assert plot_curves.smoothed(values)[15] == pytest.approx(1.0) and plot_curves.smoothed(values)[0] == 0
