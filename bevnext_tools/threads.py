# SPDX-License-Identifier: Apache-2.0
"""How many threads compute, and that waiting ones leave the processor to others.

The OpenMP runtimes read their settings when PyTorch loads them, so this comes first in every program. It imports
nothing but the standard library.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from bevnext_core.errors import ConfigError

WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""GNU's and LLVM's runtimes spin by default: on a busy machine the waiting threads burn the time that the working
ones need."""
_CGROUP = Path("/sys/fs/cgroup")


def prepare_threads(count: int | None = None) -> None:
    """Settings of the OpenMP runtimes, before PyTorch is imported; what the user has set stays.

    Args:
        count: threads; default: ``OMP_NUM_THREADS``, else :func:`usable_cores`.
    """
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def use_threads(count: int | None) -> None:
    """Compute with ``count`` threads from now on; None changes nothing.

    Raises:
        ConfigError: it is below 1.
    """
    if count is None:
        return
    if count < 1:
        raise ConfigError(f"threads must be at least 1, got {count}")
    prepare_threads(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the limit of its control group (v2 or v1)."""
    cores = len(os.sched_getaffinity(0))
    limit = _quota(_CGROUP / "cpu.max") or _quota(_CGROUP / "cpu/cpu.cfs_quota_us", _CGROUP / "cpu/cpu.cfs_period_us")
    return max(1, min(cores, math.floor(limit))) if limit else cores


def _quota(*files: Path) -> float | None:
    """Cores that one file (``quota period``) or two grant; None without a limit."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
