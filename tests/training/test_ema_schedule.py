# SPDX-License-Identifier: Apache-2.0
"""The published average and learning-rate schedule."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from bevnext_core.config import ModelConfig, load_config
from tests.paths import ROOT
from training.run.ema import ModelEma
from training.run.options import parse_arguments
from training.run.schedule import describe, make_schedule

STAGE_1 = load_config(ROOT / "config/model/bevnext_r50_stage1.yaml").training
STAGE_2 = ModelConfig().training


def test_ema_follows_the_published_formula() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEma(model)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for n in range(10561, 10564):
        model.train()(torch.randn(8, 2))
        with torch.no_grad():
            model[0].weight += 1
        decay = 0.999 * (1 - math.exp(-n / 2000))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
        ema.update(model)
        assert ema.decay() == decay
        if n == 10561:
            assert decay == pytest.approx(0.99392, abs=5e-6)  # SEMANTICS.md, section 12
    for name, value in expected.items():
        torch.testing.assert_close(ema.state[name], value, msg=name)
    assert model[1].num_batches_tracked == 3 and ema.state["1.num_batches_tracked"] == 0


def test_ema_comes_back_from_a_checkpoint_and_refuses_another_models() -> None:
    model = nn.Linear(2, 2)
    ema, again = ModelEma(model), ModelEma(nn.Linear(2, 2))
    with torch.no_grad():
        model.weight += 1
    ema.update(model)
    again.load_state_dict(ema.state_dict())
    assert again.updates == 10561 and torch.equal(again.state["weight"], ema.state["weight"])
    with pytest.raises(ValueError, match="another model"):
        ModelEma(nn.Conv2d(1, 1, 1, bias=False)).load_state_dict(ema.state_dict())


def test_warm_up_is_linear_from_a_thousandth() -> None:
    schedule = make_schedule(STAGE_1, 28130, 64)
    assert schedule.factor(0) == pytest.approx(0.001)
    assert schedule.factor(100) == pytest.approx(1 - 0.5 * 0.999)
    assert schedule.factor(200) == schedule.factor(100000) == 1
    assert schedule.steps_per_epoch == 440 and schedule.steps == 880


def test_the_rate_scales_with_the_batch_and_says_so() -> None:
    assert make_schedule(STAGE_2, 1000, 128).learning_rate == 4e-4
    half = make_schedule(STAGE_2, 1000, 64)
    assert half.learning_rate == pytest.approx(2e-4)  # "halve for one node"
    options = parse_arguments(["--stage", "2", "--dry-run"])
    text = describe(ModelConfig(), options, 8, None, None)
    assert "learning rate 0.0002 (0.0004 for 128 samples a step, scaled linearly to the 64 here)" in text
    assert "learning rate 0.0004 (the published rate for 128 samples a step)" in describe(
        ModelConfig(), options, 16, None, None
    )


def test_the_configurations_hold_the_published_schedule() -> None:
    """SEMANTICS.md, sections 12 and 13."""
    published: dict[str, object] = {
        "weight_decay": 0.01,
        "gradient_clip": 5.0,
        "warmup_iterations": 200,
        "warmup_ratio": 0.001,
        "ema_decay": 0.999,
        "ema_ramp": 2000,
        "ema_start": 10560,
        "depth_loss_weight": 3.0,
    }
    per_stage: dict[int, dict[str, object]] = {
        1: {"epochs": 2, "global_batch": 64, "learning_rate": 2e-4, "velocity_weight": 0.2, "sync_bn_epoch": None},
        2: {"epochs": 12, "global_batch": 128, "learning_rate": 4e-4, "velocity_weight": 1.0, "sync_bn_epoch": 8},
    }
    initial = {"": ("imagenet", 1.0), "perspective_": ("perspective", 0.75)}
    for variant, (init, ratio) in initial.items():
        for stage, values in per_stage.items():
            config = load_config(ROOT / f"config/model/bevnext_r50_{variant}stage{stage}.yaml")
            found = dataclasses.asdict(config.training)
            for name, value in (published | values | {"stage": stage, "backbone_lr_ratio": ratio}).items():
                assert found[name] == value, (variant, stage, name)
            assert found["backbone_init"] == (init if stage == 1 else "none")
            assert config.history.frames == (0 if stage == 1 else 8) and config.channels == 80 * stage
