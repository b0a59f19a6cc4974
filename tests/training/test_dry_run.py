# SPDX-License-Identifier: Apache-2.0
"""The published schedule as train.py states it, compared with SEMANTICS.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bevnext_core.config import load_config
from tests.paths import ROOT
from tests.training.tiny import arguments, tiny_dataroot
from training import train as script
from training.run.schedule import describe


def statement(stage: int, processes: int, *more: str, drawn: int = 123_456) -> str:
    """What a dry run says for the published configuration with 8 samples per process."""
    options = script.parse_arguments(["--stage", str(stage), "--dry-run", *more])
    config = script.resolve_config(options)
    return "\n".join(describe(config, options, processes, 28_130, drawn))


def test_the_statement_is_what_semantics_md_says(reference: Path) -> None:
    text = (reference / "SEMANTICS.md").read_text()
    found = re.search(
        r"Batch (\d+) per GPU x (\d+) GPUs; AdamW wd ([\d.]+), lr (\S+) stage 1 \((\d+) epochs\), (\S+) for 2 nodes = "
        r"(\d+) samples in stage 2 \((\d+) epochs.*grad clip (\d+).*warm-up of (\d+) iterations from ([\d.]+)\*lr",
        text,
    )
    assert found
    batch, gpus, decay, rate1, epochs1, rate2, global2, epochs2, clip, warmup, ratio = found.groups()
    one, two = statement(1, int(gpus)), statement(2, int(global2) // int(batch))
    assert f"{epochs1} epochs, {gpus} processes x {batch} samples = {int(batch) * int(gpus)} a step" in one
    assert f"learning rate {float(rate1):g} (the published rate" in one
    assert f"{epochs2} epochs, 16 processes x {batch} samples = {global2} a step" in two
    assert f"learning rate {float(rate2):g} (the published rate" in two
    halved = f"learning rate {float(rate2) / 2:g} ({float(rate2):g} for {global2} samples"  # "halve for one node"
    assert halved in statement(2, 8)
    ema = re.search(r"MEGVIIEMAHook: d = ([\d.]+)\*\(1 - exp\(-n/(\d+)\)\), n starts at (\d+)", text)
    sync = re.search(r"No SyncBN until epoch index (\d+)", text)
    share = re.search(r"backbone lr x([\d.]+)", text)
    history = re.search(r"history 8 \((\d+)\)", text)
    assert ema and sync and share and history
    for statement_of_stage in (one, two):
        assert f"weight decay {float(decay):g}, gradient norm clipped to {clip}" in statement_of_stage
        assert f"warm-up: {warmup} iterations, linear from {ratio}; constant after it" in statement_of_stage
        assert f"decay {ema[1]} * (1 - exp(-n / {ema[2]})), n from {ema[3]}" in statement_of_stage
    assert "synchronised batch norm: never" in one
    assert f"synchronised batch norm: from epoch index {sync[1]}" in two
    assert f"history: {history[1]} frames" in one and "history: 8 frames\n" in two
    weights = re.search(r"velocity weight ([\d.]+) in stage 1, ([\d.]+) in stage 2", text)
    assert weights
    assert f"velocity {float(weights[1]):g}, depth 3" in one and f"velocity {float(weights[2]):g}, depth 3" in two
    perspective = statement(1, 8, "--config", str(ROOT / "config/model/bevnext_r50_perspective_stage1.yaml"))
    assert f"iteration 200: 0.0002, backbone {2e-4 * float(share[1]):.4g}" in perspective


def test_iterations_follow_from_the_samples() -> None:
    text = statement(2, 16, drawn=123_457)
    assert "samples per epoch: 123457 after class-balanced resampling, of 28130 frames" in text
    assert "iterations per epoch: 965, in all 11580" in text


def test_a_dry_run_prints_the_schedule_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    tiny_dataroot(tmp_path)
    assert script.main([*arguments(tmp_path, "run", "--set", "training.class_balanced=true"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"samples per epoch: \d+ after class-balanced resampling, of 8 frames", text)
    assert not (tmp_path / "run").exists()


def test_without_a_dataroot_the_samples_are_unknown(capsys: Any, tmp_path: Path) -> None:
    config = arguments(tmp_path)[3]
    assert script.main(["--stage", "2", "--config", config, "--dry-run"]) == 0
    assert "unknown without --dataroot" in capsys.readouterr().out


@pytest.mark.parametrize("stage", [1, 2])
def test_the_shipped_default_is_the_published_configuration(stage: int) -> None:
    options = script.parse_arguments(["--stage", str(stage), "--dry-run"])
    assert script.resolve_config(options) == load_config(ROOT / f"config/model/bevnext_r50_stage{stage}.yaml")
