# SPDX-License-Identifier: Apache-2.0
"""The depth error by range: of a network that knows the lidar, and of one that is off by a known distance."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bevnext_core.checkpoint import save_checkpoint
from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras
from tests.training.tiny import tiny_config, tiny_dataroot
from training import depth_error
from training.data.dataset import TrainingDataset
from training.data.index import open_index


def told(data: TrainingDataset, shift: int) -> Any:
    """An ``encode`` that answers the lidar's bin, ``shift`` bins farther; frames come in order."""
    config, frames = data.config.depth, iter(data.frames.tolist())

    def encode(*_: torch.Tensor) -> EncodedCameras:
        lidar = data.lidar_depth(next(frames))
        place = ((lidar - config.min) / config.step).floor().long().clamp(0, config.bins - 1) + shift
        depth = torch.nn.functional.one_hot(place.clamp(max=config.bins - 1), config.bins).movedim(-1, 1).float()
        return EncodedCameras(depth, depth)

    return encode


def test_errors_by_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_dataroot(tmp_path)
    config = tiny_config(tmp_path)
    index = open_index(tmp_path / "data", "v1.0-mini", tmp_path / "index", False)
    data, network = TrainingDataset(index, config, "mini_train"), BEVNeXt(config).eval()
    monkeypatch.setattr(network, "encode", told(data, 0))
    exact = depth_error.depth_errors(network, data, data.frames.tolist())
    monkeypatch.setattr(network, "encode", told(data, 1))
    far = depth_error.depth_errors(network, data, data.frames.tolist())
    step = config.depth.step
    compared = 0
    for low, (count, lifted, corrected, bias), (_, _, _, farther) in zip(depth_error.RANGES, exact, far):
        if not count:
            assert math.isnan(bias)
            continue
        compared += 1
        assert abs(bias) <= step / 2 and corrected <= step / 2 / low and lifted <= step / low
        assert farther - bias == pytest.approx(step, rel=0.01)
    assert compared >= 3
    config = dataclasses.replace(config, depth=dataclasses.replace(config.depth, lift_to="middle"))
    data, network = TrainingDataset(index, config, "mini_train"), BEVNeXt(config).eval()
    monkeypatch.setattr(network, "encode", told(data, 0))
    middle = depth_error.depth_errors(network, data, data.frames.tolist())
    for (_, _, corrected, bias), (count, lifted, same, mended) in zip(exact, middle):
        if count:
            assert lifted == same == pytest.approx(corrected) and mended == pytest.approx(bias, abs=1e-5)


def test_the_table(tmp_path: Path, capsys: Any) -> None:
    tiny_dataroot(tmp_path)
    config = tiny_config(tmp_path)
    save_checkpoint(tmp_path / "c.safetensors", BEVNeXt(config).state_dict(), config)
    options = ["--checkpoint", str(tmp_path / "c.safetensors"), "--dataroot", str(tmp_path / "data")]
    options += ["--version", "v1.0-mini", "--index-dir", str(tmp_path / "index")]
    assert depth_error.main([*options, "--split", "mini_train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny_stage2, mini_train: 8 frames" and len(lines) == 2 + 6 and "%" in lines[4]
    assert depth_error.main([*options, "--split", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("error: unknown split 'nothing'")
