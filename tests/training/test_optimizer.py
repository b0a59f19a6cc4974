# SPDX-License-Identifier: Apache-2.0
"""Muon over convolutions and the decay of the learning rate: torch's own numbers, and runs that can be resumed."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bevnext_core.network.bevnext import BEVNeXt
from tests.training.test_train import assert_identical, newest
from tests.training.tiny import arguments, tiny_config, tiny_dataroot, with_training
from training import train as script
from training.run.optimizer import MuonAndAdamW, make_optimizer
from training.run.schedule import make_schedule
from training.run.training_forward import TrainingForward

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs PyTorch 2.9 or newer")
VALUES = {"lr": 0.02, "weight_decay": 0.01}
RECIPE = ["--set", "training.optimizer=muon", "training.decay=cosine", "training.channels_last=true"]


def weights(*shape: int) -> nn.Parameter:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(shape))


@needs_muon
@pytest.mark.parametrize("shape", [(8, 5, 1, 1), (6, 4, 3, 3), (40, 3, 3, 3)])
def test_a_convolution_is_stepped_as_torch_steps_its_matrix(shape: tuple[int, ...]) -> None:
    convolution, matrix, bias, plain = weights(*shape), weights(*shape), weights(7), weights(7)
    matrix = nn.Parameter(matrix.detach().flatten(1))
    ours = MuonAndAdamW([[convolution]], [[bias]], VALUES)
    theirs = torch.optim.Muon([matrix], **VALUES), torch.optim.AdamW([plain], fused=True, **VALUES)
    for rate in (0.02, 0.01, 0.005):
        for group in (*ours.param_groups, *(g for o in theirs for g in o.param_groups)):
            group["lr"] = rate
        convolution.grad, bias.grad = torch.randn(shape), torch.randn(7)
        matrix.grad, plain.grad = convolution.grad.flatten(1).clone(), bias.grad.clone()
        ours.step()
        for optimizer in theirs:
            optimizer.step()
        assert torch.equal(convolution.flatten(1), matrix) and torch.equal(bias, plain)
    ours.zero_grad()
    assert convolution.grad is None and bias.grad is None


@needs_muon
def test_the_order_in_memory_does_not_matter() -> None:
    first, second = weights(12, 8, 3, 3), weights(12, 8, 3, 3)
    second.data = second.data.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(12, 8, 3, 3)
    before = first.detach().clone()
    for parameter in (first, second):
        optimizer = MuonAndAdamW([[parameter]], [[weights(2)]], VALUES)
        parameter.grad = gradient.clone()
        optimizer.step()
    assert not second.is_contiguous()
    moved = (first - before).abs().mean()
    assert (first - second).abs().mean() < 0.02 * moved, "orthogonalised in bf16, whose sums depend on their order"


@needs_muon
def test_every_convolution_and_nothing_else_takes_muon(tmp_path: Path) -> None:
    config = with_training(tiny_config(tmp_path), optimizer="muon", backbone_lr_ratio=0.5, perspective_weight=1.0)
    forward = TrainingForward(BEVNeXt(config))
    optimizer, shares = make_optimizer(forward, config.training)
    assert shares == [1.0, 0.5, 20.0, 10.0]
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(list(forward.parameters()))
    for name, parameter in forward.named_parameters():
        place = 2 * (parameter.dim() == 4) + name.startswith("network.backbone.")
        assert id(parameter) in groups[place], name
    scaler = torch.amp.GradScaler("cpu")
    before = [p.detach().clone() for p in forward.parameters()]
    scaler.scale(sum(p.sum() for p in forward.parameters()) * math.inf).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, forward.parameters(), strict=True)), "fp16: skipped"


@needs_muon
@pytest.mark.parametrize("stop", [3, 4])
def test_stopping_and_resuming_is_bit_identical(tmp_path: Path, stop: int) -> None:
    tiny_dataroot(tmp_path)
    assert script.main(arguments(tmp_path, "whole", *RECIPE)) == 0
    assert script.main(arguments(tmp_path, "parts", *RECIPE, "--max-steps", str(stop))) == 0
    torch.rand(7)
    assert script.main(arguments(tmp_path, "parts", *RECIPE, "--resume")) == 0
    whole, parts = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert whole["step"] == 8 and set(whole["optimizer"]) == {"adamw", "muon"}
    assert_identical(parts, whole)
    with (tmp_path / "whole" / "curves.csv").open() as file:
        rates = [float(row["rate"]) for row in csv.DictReader(file)]
    expected = [(1 + math.cos(math.pi * n / 4)) / 2 * 1e-3 for n in range(4)]
    assert rates[4:] == pytest.approx(expected, rel=1e-5), "four steps of warm-up, then half a cosine"
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "Muon for convolutions (learning rate 0.02)" in log and "half a cosine, to 0" in log


def test_a_cosine_ends_at_nought_and_off_it_is_as_published(tmp_path: Path) -> None:
    config = tiny_config(tmp_path).training
    schedule = make_schedule(with_training(tiny_config(tmp_path), decay="cosine").training, 100, 2)
    assert schedule.steps == 100 and schedule.factor(100) == 0 and schedule.factor(4) == 1
    assert schedule.factor(52) == pytest.approx(0.5) and schedule.factor(2) == make_schedule(config, 100, 2).factor(2)
    assert make_schedule(config, 100, 2).factor(99) == 1


def test_a_pytorch_without_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    tiny_dataroot(tmp_path)
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    assert script.main(arguments(tmp_path, "run", *RECIPE)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: training.optimizer=muon takes PyTorch 2.9")
