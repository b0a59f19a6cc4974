# SPDX-License-Identifier: Apache-2.0
"""The published schedule as numbers: steps, learning rate over time, what the batch at hand makes of it."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from bevnext_core.config import ModelConfig, TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up from ``warmup_ratio`` of it, then constant, or half a ``cosine`` to 0.

    (The published step policy would lower it at epoch 20, which is never reached.)
    """

    learning_rate: float
    steps_per_epoch: int
    epochs: int
    warmup_steps: int
    warmup_ratio: float
    cosine: bool = False

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def factor(self, step: int) -> float:
        """Of the learning rate at ``step``, counted from 0 over the whole run."""
        if step >= self.warmup_steps:
            left = (self.steps - step) / max(self.steps - self.warmup_steps, 1)
            return (1 - math.cos(math.pi * left)) / 2 if self.cosine else 1.0
        return 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio)


def make_schedule(training: TrainingConfig, samples: int, global_batch: int) -> Schedule:
    """The schedule for ``samples`` per epoch; the rate is scaled from the configuration's batch to the one at hand."""
    return Schedule(
        training.learning_rate * global_batch / training.global_batch,
        -(-samples // global_batch),
        training.epochs,
        training.warmup_iterations,
        training.warmup_ratio,
        training.decay == "cosine",
    )


def describe(config: ModelConfig, options: argparse.Namespace, ranks: int, frames: int | None, drawn: int | None,
             ) -> list[str]:
    """The schedule in words and numbers, for --dry-run and the log.

    Args:
        ranks: processes; frames: of the split; drawn: samples of an epoch; both ``None`` without a data set.
    """
    training, batch = config.training, options.batch * ranks
    schedule = make_schedule(training, drawn or 1, batch)
    lines = [f"{config.name}, stage {training.stage}: {training.epochs} epochs, {ranks} processes x {options.batch} "
             f"samples = {batch} a step"]
    if drawn is None:
        lines.append("samples per epoch: unknown without --dataroot")
    else:
        how = "after class-balanced resampling" if training.class_balanced else "all frames"
        lines.append(f"samples per epoch: {drawn} {how}, of {frames} frames")
        lines.append(f"iterations per epoch: {schedule.steps_per_epoch}, in all {schedule.steps}")
    if batch == training.global_batch:
        reason = f"the published rate for {batch} samples a step"
    else:
        reason = (f"{training.learning_rate:g} for {training.global_batch} samples a step, scaled linearly to the "
                  f"{batch} here")
    lines.append(f"learning rate {schedule.learning_rate:g} ({reason})")
    for step in (0, training.warmup_iterations // 2, training.warmup_iterations):
        rate = schedule.learning_rate * schedule.factor(step)
        backbone = rate * training.backbone_lr_ratio
        lines.append(f"  learning rate at iteration {step}: {rate:.4g}, backbone {backbone:.4g}")
    shared = (f"; shared by runs of {training.shared_run} key frames, {options.batch // training.shared_run} in each "
              "process and step" if training.shared_run else "")
    after = "constant after it" if training.decay == "constant" else "then half a cosine, to 0 at the last step"
    optimizer = "AdamW"
    if training.optimizer == "muon":
        muon = training.muon_learning_rate * schedule.learning_rate / training.learning_rate
        optimizer = f"Muon for convolutions (learning rate {muon:g}), AdamW for the rest"
    sync = "never" if training.sync_bn_epoch is None else f"from epoch index {training.sync_bn_epoch}"
    return lines + [
        f"warm-up: {training.warmup_iterations} iterations, linear from {training.warmup_ratio:g}; {after}",
        f"{optimizer}: weight decay {training.weight_decay:g}, gradient norm clipped to {training.gradient_clip:g}",
        f"EMA: decay {training.ema_decay:g} * (1 - exp(-n / {training.ema_ramp})), n from {training.ema_start}",
        f"synchronised batch norm: {sync}; trained part: {training.part}",
        f"history: {config.history.frames} frames{shared}",
        f"loss weights: velocity {training.velocity_weight:g}, depth {training.depth_loss_weight:g}",
        f"mixed precision: {options.amp}; gradient checkpointing: {options.gradient_checkpointing}",
    ]
