# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: tensors and plain values only, written atomically, the last few kept."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bevnext_core.checkpoint import safe_torch_load
from bevnext_core.errors import CheckpointError
from bevnext_core.files import atomic_path
from training.run.ema import ModelEma
from training.run.training_forward import TrainingForward

FORMAT = "bevnext-training-1"
_NAME = re.compile(r"step_(\d{8})\.pt$")


class CheckpointFolder:
    """The checkpoints of a work dir, by step: ``step_00000120.pt``.

    Args:
        keep: how many are left; older ones are deleted after each write.
        warn: is told of each that cannot be read.
    """

    def __init__(self, folder: str | Path, keep: int = 3, warn: Callable[[str], Any] = warnings.warn) -> None:
        self.folder = Path(folder)
        self.keep, self.warn = keep, warn

    def paths(self) -> list[Path]:
        """All, oldest first."""
        return sorted(path for path in self.folder.glob("step_*.pt") if _NAME.search(path.name))

    def save(self, step: int, content: Mapping[str, Any]) -> Path:
        """Write a checkpoint; a reader sees all of it or nothing. Raises OSError when the disk is full."""
        path = self.folder / f"step_{step:08d}.pt"
        with atomic_path(path) as temporary:
            torch.save({"format": FORMAT, "step": step, **content}, temporary)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest one that can be read, or ``None`` when there is none.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return path, read_training_checkpoint(path)
            except CheckpointError as error:
                self.warn(f"{error}; the checkpoint before it is used")
        if paths:
            raise CheckpointError(f"none of the {len(paths)} checkpoints in {self.folder} can be read")
        return None

    def to_continue(self, resume: str | None, restarts: int) -> dict[str, Any] | None:
        """What a run continues from: ``resume`` is ``newest``, a file or, not asked for, ``None``. A restart by
        torchrun (``restarts``) continues without being asked.

        Raises:
            CheckpointError: nobody asked and there are checkpoints, or they cannot be read.
        """
        if resume not in (None, "newest"):
            return read_training_checkpoint(resume)
        if resume is None and restarts == 0 and self.paths():
            raise CheckpointError(f"{self.folder} holds checkpoints; continue with --resume, or choose another "
                                  "--work-dir")
        found = self.newest()
        return found[1] if found else None


def read_training_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one checkpoint of a training run, on the CPU.

    Raises:
        CheckpointError: missing, damaged, holding other types than tensors and plain values, or something else.
    """
    data = safe_torch_load(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of a training run of this project")
    return data


def random_state() -> dict[str, Any]:
    """This process's random state as tensors. Data-loader workers have none: see :mod:`.dataset`."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@dataclass
class Run:
    """What a step changes and a checkpoint holds, beside the random state.

    ``epoch_step`` counts the steps of ``epoch``, ``skipped`` all that were skipped. A checkpoint holds neither those
    ``skipped_in_row`` nor the ``unreadable`` frames (reasons by sample token): a resumed run may try again.
    """

    forward: TrainingForward
    optimizer: Any
    scaler: torch.amp.GradScaler
    ema: ModelEma
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        perspective = self.forward.perspective.state_dict() if self.forward.perspective else {}
        return {"epoch": self.epoch, "epoch_step": self.epoch_step, "skipped": self.skipped, "perspective": perspective,
                "model": self.forward.network.state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`, with ``step`` beside it."""
        for name in ("step", "epoch", "epoch_step", "skipped"):
            setattr(self, name, saved[name])
        self.forward.network.load_state_dict(saved["model"])
        if self.forward.perspective is not None:
            self.forward.perspective.load_state_dict(saved["perspective"])
        for name in ("ema", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(saved[name])
