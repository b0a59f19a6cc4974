# SPDX-License-Identifier: Apache-2.0
"""Detection losses: Gaussian focal loss of the heat maps and grouped L1 of the box values.

Normalisers (objects per task, peaks per task) are averages over all ranks, as published, so a rank
with few objects weighs less. The depth loss is in :mod:`training.losses.depth_targets`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bevnext_core.config import ModelConfig
from training.losses.targets import DetectionTargets

BRANCHES = ("reg", "height", "dim", "rot", "vel")
"""Maps of a task's box head in the order of the ten target values."""

GROUPS = {"xy": (0, 2), "z": (2, 3), "whl": (3, 6), "yaw": (6, 8), "vel": (8, 10)}
"""Columns of the target values that share a loss."""

BOX_WEIGHT = 0.25
VELOCITY_COLUMNS = slice(8, 10)
CLIP = 1e-4
"""Sigmoids are kept this far from 0 and 1."""

MeanOverRanks = Callable[[torch.Tensor], torch.Tensor]
"""Takes a vector, gives its average over all ranks."""


def same(values: torch.Tensor) -> torch.Tensor:
    """The average over one rank."""
    return values


def gaussian_focal_loss(logits: torch.Tensor, heatmap: torch.Tensor) -> torch.Tensor:
    """Sum over all cells of the focal loss with alpha 2 and gamma 4. Both ``[B, classes, Y, X]``; a scalar.

    Cells of exactly 1 are positive; the others are negative with weight (1 - heatmap)^4.
    """
    score = torch.sigmoid(logits.float()).clamp(CLIP, 1 - CLIP)
    positive = heatmap.eq(1)
    positive_loss = -(score + 1e-12).log() * (1 - score) ** 2
    negative_loss = -(1 - score + 1e-12).log() * score**2 * (1 - heatmap) ** 4
    return torch.where(positive, positive_loss, negative_loss).sum()


def detection_losses(
    outputs: Sequence[dict[str, torch.Tensor]],
    targets: DetectionTargets,
    config: ModelConfig,
    mean_over_ranks: MeanOverRanks = same,
) -> dict[str, torch.Tensor]:
    """All losses of the six tasks; the total is their plain sum.

    Args:
        outputs: per task a dict of maps ``[B, *, Y, X]``: ``heatmap`` (logits) and those of ``BRANCHES``.

    Returns:
        Scalars named as published: ``task0.loss_xy``, ..., ``task5.loss_heatmap``.
    """
    class_count = [len(task.classes) for task in config.tasks]
    heatmaps = targets.heatmaps.split(class_count, 1)
    objects = torch.bincount(targets.task, minlength=len(outputs))[: len(outputs)]
    peaks = torch.stack([heatmap.eq(1).sum() for heatmap in heatmaps])
    counts = mean_over_ranks(torch.cat([objects, peaks]).float())
    eps = torch.finfo(torch.float32).eps
    object_norm = counts[: len(outputs)].clamp(min=1e-4) + 1e-4 + eps
    peak_norm = counts[len(outputs) :].clamp(min=1)

    # [task, B, 10, cells]: one gather for the objects of all tasks
    maps = torch.stack([torch.cat([output[name] for name in BRANCHES], 1) for output in outputs]).flatten(3).float()
    predicted = maps[targets.task, targets.sample, :, targets.cell]
    weights = torch.ones(10, device=maps.device)
    weights[VELOCITY_COLUMNS] = config.training.velocity_weight
    error = (predicted - targets.values).abs() * weights
    per_task = torch.zeros(len(outputs), 10, device=maps.device).index_add(0, targets.task, error)
    per_task = per_task * BOX_WEIGHT / object_norm[:, None]

    losses = {
        f"task{t}.loss_{name}": per_task[t, first:last].sum()
        for t in range(len(outputs))
        for name, (first, last) in GROUPS.items()
    }
    for t, (output, heatmap) in enumerate(zip(outputs, heatmaps, strict=True)):
        losses[f"task{t}.loss_heatmap"] = gaussian_focal_loss(output["heatmap"], heatmap) / peak_norm[t]
    return losses
