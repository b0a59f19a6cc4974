"""The device that a name stands for."""

from __future__ import annotations

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
