# SPDX-License-Identifier: Apache-2.0
"""Detection and depth losses, and their gradients, against the published code."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from bevnext_core.config import ModelConfig
from tests import recipe
from tests.training.published_depth import cell_depth
from tests.training.test_targets import CONFIG, reference_targets
from training.losses.depth_targets import depth_classes, depth_loss
from training.losses.detection import BRANCHES, detection_losses


def config_with(velocity_weight: float) -> ModelConfig:
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, velocity_weight=velocity_weight))


def reference_maps() -> list[dict[str, torch.Tensor]]:
    maps = recipe.head_maps("A")
    return [{k: torch.from_numpy(v).requires_grad_() for k, v in task.items()} for task in maps]


@pytest.mark.parametrize(("stage", "velocity_weight"), [(1, 0.2), (2, 1.0)])
def test_losses_and_gradients_equal_the_published_ones(
    stage: int, velocity_weight: float, module_scalars: dict[str, Any]
) -> None:
    expected = dict(module_scalars[f"head_losses_stage{stage}"])
    gradients = expected.pop("_grad_l2")
    outputs = reference_maps()
    losses = detection_losses(outputs, reference_targets(), config_with(velocity_weight))
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=5e-6), name
    sum(losses.values()).backward()  # type: ignore[union-attr]
    flat = {f"task{t}.{k}": v.grad.norm().item() for t, task in enumerate(outputs) for k, v in task.items()}
    assert set(flat) == set(gradients)
    for name, value in gradients.items():
        assert flat[name] == pytest.approx(value, rel=1e-5), name


def test_normalisers_are_averages_over_ranks() -> None:
    outputs, targets = reference_maps(), reference_targets()
    alone = detection_losses(outputs, targets, CONFIG)
    doubled = detection_losses(outputs, targets, CONFIG, mean_over_ranks=lambda counts: counts * 2)
    for name, value in alone.items():
        assert doubled[name].item() == pytest.approx(value.item() / 2, rel=1e-3), name


def test_a_batch_without_objects_has_a_finite_loss_and_gradient() -> None:
    from training.losses.targets import detection_targets

    nothing = [torch.zeros(0, 9)] * 2, [torch.zeros(0, dtype=torch.long)] * 2
    outputs = reference_maps()
    losses = detection_losses(outputs, detection_targets(*nothing, CONFIG), CONFIG)
    torch.stack(list(losses.values())).sum().backward()
    for task in outputs:
        assert all(task[name].grad is not None and not task[name].grad.any() for name in BRANCHES)
        assert torch.isfinite(task["heatmap"].grad).all() and task["heatmap"].grad.any()


def test_depth_classes_equal_the_published_ones(mod_targets: dict[str, np.ndarray]) -> None:
    cells = cell_depth(torch.from_numpy(recipe.make_depth("A", 256, 704)))
    np.testing.assert_array_equal(depth_classes(cells, CONFIG.depth).numpy(), mod_targets["depth.labels_int"] - 1)


def test_depth_loss_and_gradient_equal_the_published_ones(module_scalars: dict[str, Any]) -> None:
    logits = torch.from_numpy(recipe.normal("A", "depth_logits", (6, 118, 32, 88), 2.0))
    logits.requires_grad_()
    probability = logits.softmax(1)
    depth = cell_depth(torch.from_numpy(recipe.make_depth("A", 256, 704)))
    expected = module_scalars["depth_loss"]
    assert int((depth_classes(depth, CONFIG.depth) >= 0).sum()) == expected["n_fg"]
    loss = depth_loss(probability, depth, CONFIG.depth, CONFIG.training.depth_loss_weight)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.double().norm().item() == pytest.approx(expected["grad_l2"], rel=1e-5)


def test_without_lidar_the_depth_loss_is_zero_and_without_gradient() -> None:
    probability = torch.full((6, 118, 4, 4), 1 / 118).requires_grad_()
    loss = depth_loss(probability, torch.zeros(6, 4, 4), CONFIG.depth, 3.0)
    loss.backward()
    assert loss.item() == 0 and probability.grad is not None and not probability.grad.any()


def test_extreme_probabilities_give_a_finite_loss_and_nan_gives_nan() -> None:
    depth = torch.full((1, 2, 2), 10.0)
    probability = torch.zeros(1, 118, 2, 2)
    probability[:, 0] = 1 + 1e-7
    probability.requires_grad_()
    loss = depth_loss(probability, depth, CONFIG.depth, 3.0)
    loss.backward()
    assert torch.isfinite(loss) and probability.grad is not None and torch.isfinite(probability.grad).all()
    assert torch.isnan(depth_loss(torch.full((1, 118, 2, 2), torch.nan), depth, CONFIG.depth, 3.0))
