# SPDX-License-Identifier: Apache-2.0
"""The device that a name stands for, and the machine in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from bevnext_core.errors import ConfigError


def find_device(name: str | torch.device = "auto") -> torch.device:
    """The device called ``name``: cpu, cuda, cuda:1, ..., or auto: cuda where there is one.

    Raises:
        ConfigError: no such kind of device, or no GPU is here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'; known are auto, cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but PyTorch finds no CUDA device here; use 'cpu'")
    return device


def machine(device: str | torch.device) -> str:
    """What a measurement is made on: GPU or processor, the cores that this process may use, PyTorch's version."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(torch.device(device))}, torch {torch.__version__}"
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
