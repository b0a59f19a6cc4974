"""Checkpoints of a training run: tensors and plain values only, written atomically, the last few kept."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bevnext_core.checkpoint import safe_torch_load
from bevnext_core.errors import CheckpointError
from bevnext_core.files import atomic_path

FORMAT = "bevnext-training-1"
_NAME = re.compile(r"step_(\d{8})\.pt$")


class CheckpointFolder:
    """The checkpoints of a work dir, by step: ``step_00000120.pt``.

    Args:
        keep: how many are left; older ones are deleted after each write.
    """

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        self.folder = Path(folder)
        self.keep = keep

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
        """The newest one that can be read, or ``None`` when there is none. Warns about each it passes over.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return path, read_training_checkpoint(path)
            except CheckpointError as error:
                warnings.warn(f"{error}; the checkpoint before it is used", stacklevel=2)
        if paths:
            raise CheckpointError(f"none of the {len(paths)} checkpoints in {self.folder} can be read")
        return None


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
