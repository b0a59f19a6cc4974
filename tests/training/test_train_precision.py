# SPDX-License-Identifier: Apache-2.0
"""Mixed precision, and the batch norms' change to synchronised ones in mid-run."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bevnext_benchmarks.synthetic_batches import synthetic_batch
from bevnext_core.network.bevnext import BEVNeXt
from tests.training.test_train import assert_identical, newest
from tests.training.tiny import arguments, tiny_config, tiny_dataroot
from training import train as script
from training.run.ema import ModelEma
from training.run.training_forward import TrainingForward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    tiny_dataroot(folder)
    return folder


def losses_in_log(work_dir: Path) -> list[float]:
    return [float(value) for value in re.findall(r"loss (\d+\.\d+) \(", (work_dir / "log.txt").read_text())]


def test_bf16_trains_and_resuming_is_bit_identical(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = set()
    original = nn.Conv2d.forward

    def forward(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        out = original(self, x)
        kinds.add(out.dtype)
        return out

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    options = ("--amp", "bf16", "--set", "training.head_scale=0.02", "training.epochs=3")
    assert script.main(arguments(folder, "whole", *options)) == 0
    assert kinds == {torch.bfloat16}
    for more in (["--max-steps", "3"], ["--resume"]):
        assert script.main(arguments(folder, "stopped", *options, *more)) == 0
    expected, found = newest(folder / "whole"), newest(folder / "stopped")
    assert found["step"] == 12 and found["skipped"] == 0
    assert_identical(found, expected)
    assert all(value.dtype != torch.bfloat16 for value in found["model"].values())
    losses = losses_in_log(folder / "whole")
    assert len(losses) == 12 and sum(losses[-4:]) < 0.9 * sum(losses[:4])


@pytest.fixture
def bad_gradients(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps of the process, from 1, whose loss is finite and whose gradient is not."""
    steps: set[int] = set()
    original, calls = TrainingForward.forward, []

    def forward(self: Any, batch: Any) -> dict[str, torch.Tensor]:
        losses = original(self, batch)
        calls.append(1)
        if len(calls) in steps:
            losses["loss_depth"] = losses["loss_depth"] + (0 * self.network.crf.weight.abs()).sqrt().sum()
        return losses

    monkeypatch.setattr(TrainingForward, "forward", forward)
    return steps


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss scale that is nearly found: gradients of fp16 convolutions take seconds on a CPU."""
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=4.0))


def test_fp16_steps_that_only_lower_the_loss_scale_are_counted_and_do_not_stop_the_run(folder: Path) -> None:
    """A scale of 65536 is too large for this network's first gradients."""
    options = ("--amp", "fp16", "--max-steps", "14", "--set")
    options += ("training.head_scale=0.02", "training.max_skipped=2", "training.repeat=4")
    assert script.main(arguments(folder, "search", *options)) == 0
    log = (folder / "search" / "log.txt").read_text()
    scales = re.findall(r"step \d+ skipped: non-finite gradient at loss scale (\d+), samples scene", log)
    assert 2 < len(scales) < 14
    assert [float(scale) for scale in scales] == [2.0 ** (16 - number) for number in range(len(scales))]
    state = newest(folder / "search")
    assert state["skipped"] == len(scales) and f" h skipped {len(scales)}\n" in log
    assert state["scaler"]["scale"] == 2.0 ** (16 - len(scales))
    assert state["ema"]["updates"] == 10560 + 14 - len(scales)
    assert state["optimizer"]["state"][0]["step"] == 14 - len(scales)


def test_fp16_gradients_that_no_loss_scale_helps_stop_the_run(
    folder: Path, bad_gradients: set[int], small_steps: None, capsys: Any
) -> None:
    bad_gradients |= set(range(1, 40))
    options = ("--amp", "fp16", "--set", "training.max_skipped=2", "training.repeat=2")
    assert script.main(arguments(folder, "lost", *options)) == 1
    assert "2 steps in a row had a non-finite loss or gradient" in capsys.readouterr().err
    state = newest(folder / "lost")
    assert state["step"] == state["skipped"] == 4, "two halvings from 4 to 1, and two more"
    assert state["scaler"]["scale"] == 0.25 and not state["optimizer"]["state"]
    assert state["ema"]["updates"] == 10560
    for name, value in state["model"].items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state["ema"]["state"][name]), name


def test_a_non_finite_gradient_in_fp32_counts_at_once(folder: Path, bad_gradients: set[int], capsys: Any) -> None:
    bad_gradients |= {1, 2}
    assert script.main(arguments(folder, "fp32", "--set", "training.max_skipped=2")) == 1
    assert newest(folder / "fp32")["step"] == 2
    assert re.search(r"step 2 skipped: non-finite gradient, samples scene", capsys.readouterr().err)


def test_synchronised_norms_keep_weights_buffers_and_names(tmp_path: Path) -> None:
    """What optimiser, average and checkpoints know goes on; the network computes what it computed."""
    config = tiny_config(tmp_path)
    torch.manual_seed(0)
    network = BEVNeXt(config)
    step = TrainingForward(network).train()
    parameters = dict(step.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    ema = ModelEma(network)
    names = list(network.state_dict())
    tensors = {name: value.data_ptr() for name, value in network.state_dict().items()}
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    network.depth_net.parameter_norm.eval()
    batch = synthetic_batch(config, 2)
    with torch.no_grad():
        before = network.eval().state_dict()["backbone.bn1.running_mean"].clone()
        torch.manual_seed(1)
        expected = step(batch)
        network.train()

    nn.SyncBatchNorm.convert_sync_batchnorm(network)

    assert norms and all(isinstance(network.get_submodule(name), nn.SyncBatchNorm) for name in norms)
    assert all(parameters[name] is parameter for name, parameter in step.named_parameters())
    assert list(network.state_dict()) == names == list(ema.state)
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == tensors
    with torch.no_grad():
        network.eval()
        torch.manual_seed(1)
        assert_identical(step(batch), expected)
        network.train()
    torch.stack(list(step(batch).values())).sum().backward()
    weight = network.get_submodule(norms[0]).weight.clone()
    optimizer.step()
    assert not torch.equal(network.get_submodule(norms[0]).weight, weight), "the optimiser moves the new norm's weight"
    assert not torch.equal(network.state_dict()["backbone.bn1.running_mean"], before)
    ema.update(network)
    torch.testing.assert_close(
        ema.state["backbone.bn1.running_mean"],
        before * ema.decay() + (1 - ema.decay()) * network.state_dict()["backbone.bn1.running_mean"],
    )
