# SPDX-License-Identifier: Apache-2.0
"""The benchmark of precisions takes turns and names what auto stood for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from bevnext_benchmarks import precisions
from bevnext_benchmarks.random_network import TINY
from bevnext_core.config import config_to_mapping
from bevnext_tools.cli.main import main
from bevnext_tools.export import noise_drive


def test_a_column_per_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(config_to_mapping(TINY)))
    assert main(["precisions", "--config", str(config), "--rounds", "2", "--device", "cpu"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()[2:]
    assert head == "| streaming step | fp32 | bf16 (auto: AMX) | ratio |"
    assert re.fullmatch(r"\| tiny (\| [0-9]+ \([0-9]+ to [0-9]+\) ){2}\| [0-9.]+ \|", row)
    assert main(["precisions", "--rounds", "0"]) == 2
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err


def test_the_steps_take_turns_and_the_first_does_not_count() -> None:
    order: list[str] = []
    found = precisions.measure({name: lambda name=name: order.append(name) or 0 for name in "ab"}, 2)  # type: ignore[misc]
    assert "".join(order) == "ababab" and [len(seconds) for seconds in found] == [2, 2]
