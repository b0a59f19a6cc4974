# SPDX-License-Identifier: Apache-2.0
"""bevnext_benchmarks.training: every way to encode history is measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bevnext_benchmarks import training as benchmark
from bevnext_benchmarks.synthetic_batches import synthetic_runs
from tests.training.tiny import tiny_config, tiny_file


@pytest.mark.parametrize(("stage", "cases"), [(1, 2), (2, 3)])
def test_every_case_has_a_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, stage: int, cases: int
) -> None:
    config = tiny_file(tmp_path, stage)
    monkeypatch.setattr("sys.argv", ["training", "--config", str(config), "--batch", "4", "--seconds", "0"])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert "4 samples a step, fp32" in lines[0]
    found = [re.fullmatch(r"  (\S.*?) +([\d.]+) samples/s .* peak [\d.]+ GiB", line) for line in lines[1:]]
    assert len(found) == cases and all(match and float(match[2]) > 0 for match in found)
    assert (found[-1][1] == "shared, 1 runs of 4") == (stage == 2)  # type: ignore[index]


def test_made_runs_have_the_slots_of_a_stream(tmp_path: Path) -> None:
    runs = synthetic_runs(tiny_config(tmp_path), 3, 2)
    assert runs.slots.tolist() == [[0, 6, 7], [1, 0, 6], [2, 1, 0], [3, 8, 9], [4, 3, 8], [5, 4, 3]]
    assert len(runs.canvas) == len(runs.own.rotation) == 10
    torch.testing.assert_close(
        runs.geometry.translation[0, 2, :, 0] + 8.0, runs.geometry.translation[0, 0, :, 0]
    )
