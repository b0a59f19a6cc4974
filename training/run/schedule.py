"""The published schedule as numbers: steps, learning rate over time, what the batch at hand makes of it."""

from __future__ import annotations

from dataclasses import dataclass

from bevnext_core.config import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up from ``warmup_ratio`` of it, then constant.

    (The published step policy would lower it at epoch 20, which is never reached.)
    """

    learning_rate: float
    steps_per_epoch: int
    epochs: int
    warmup_steps: int
    warmup_ratio: float

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def factor(self, step: int) -> float:
        """Of the learning rate at ``step``, counted from 0 over the whole run."""
        if step >= self.warmup_steps:
            return 1.0
        return 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio)


def make_schedule(
    training: TrainingConfig, samples: int, global_batch: int, learning_rate: float | None = None
) -> Schedule:
    """The schedule for ``samples`` per epoch; the rate is scaled from the published batch unless it is given."""
    rate = training.learning_rate * global_batch / training.global_batch if learning_rate is None else learning_rate
    return Schedule(
        rate,
        -(-samples // global_batch),
        training.epochs,
        training.warmup_iterations,
        training.warmup_ratio,
    )


def learning_rate_statement(training: TrainingConfig, schedule: Schedule, global_batch: int) -> str:
    """One line: what the learning rate became, and why."""
    if global_batch == training.global_batch:
        reason = f"the published rate for {global_batch} samples a step"
    else:
        scaled = training.learning_rate * global_batch / training.global_batch
        reason = (
            f"published {training.learning_rate:g} for {training.global_batch} samples a step, "
            f"{global_batch} here: linear scaling gives {scaled:g}"
        )
    return f"learning rate {schedule.learning_rate:g} ({reason})"
