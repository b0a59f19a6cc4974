# SPDX-License-Identifier: Apache-2.0
"""A network that trains a step in a fraction of a second, and the command line that trains it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bevnext_core.config import ModelConfig, load_config
from tests.nuscenes_dataroot import write_dataroot
from tests.paths import ROOT

TINY = """
name: tiny_stage{stage}
channels: 16
image: {{height: 64, width: 96}}
backbone: {{base_channels: 4, neck_channels: 16}}
depth: {{min: 1.0, max: 60.0, step: 8.0, mid_channels: 8, crf_iterations: 2}}
bev: {{extent: 51.2, cell: 6.4, z_min: -5.0, z_max: 3.0, encoder_channels: 16}}
history: {{frames: {frames}, interval: 0.5}}
head: {{shared_channels: 16, branch_channels: 8}}
training: {{stage: {stage}, epochs: {epochs}, global_batch: 2, learning_rate: 1.0e-3, warmup_iterations: 4,
            sync_bn_epoch: null, backbone_init: none, class_balanced: false}}
"""


def tiny_file(folder: Path, stage: int = 2, epochs: int = 2) -> Path:
    """Write the configuration."""
    path = folder / f"tiny_stage{stage}.yaml"
    path.write_text(TINY.format(stage=stage, frames=0 if stage == 1 else 2, epochs=epochs))
    return path


def tiny_config(folder: Path, stage: int = 2) -> ModelConfig:
    return load_config(tiny_file(folder, stage))


def with_training(config: ModelConfig, **values: Any) -> ModelConfig:
    """``config`` with other values of its training part."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **values))


def tiny_dataroot(folder: Path) -> Path:
    """Eight key frames of mini_train."""
    return write_dataroot(folder / "data", {"scene-0061": 5, "scene-0553": 3})


def arguments(folder: Path, work_dir: str = "run", *more: str, stage: int = 2) -> list[str]:
    """Arguments of train.py for the tiny configuration on the made data set in ``folder``."""
    config = folder / f"tiny_stage{stage}.yaml"
    if not config.exists():
        tiny_file(folder, stage)
    values = ["--stage", stage, "--config", config, "--dataroot", folder / "data", "--version", "v1.0-mini"]
    values += ["--split", "mini_train", "--index-dir", folder / "cache", "--work-dir", folder / work_dir]
    values += ["--batch", 2, "--workers", 0, "--device", "cpu", "--log-every", 1]
    return [str(value) for value in values] + ["--from-scratch", *more]


def environment() -> dict[str, str]:
    """One computing thread per process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(processes: int, *more: str, restarts: int = 0) -> list[str]:
    """Command that runs train.py under torchrun on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
            f"--max-restarts={restarts}", *more]


def run_train(folder: Path, *more: str, work_dir: str = "run", processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run train.py in processes of its own."""
    command = torchrun(processes) if processes > 1 else [sys.executable]
    command += [str(ROOT / "training" / "train.py"), *arguments(folder, work_dir, *more)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
