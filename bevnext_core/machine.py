"""What a measurement was made on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine(device: str | torch.device) -> str:
    """The GPU or processor, the cores that this process may use, and PyTorch's version."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(torch.device(device))}, torch {torch.__version__}"
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
