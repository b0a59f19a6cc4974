# SPDX-License-Identifier: Apache-2.0
"""One part of ``make gpu``: what it is given, and what it finds, which is on the disk as soon as it is known."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.benchmark import Measurement, Timer

from bevnext_benchmarks.environment import environment
from bevnext_benchmarks.random_network import TINY
from bevnext_core.config import ModelConfig, published_config
from bevnext_tools.export import noise_drive


@dataclass
class Part:
    """
    Attributes:
        size: ``full`` (R50, 1600x900 images) or ``tiny``.
        goldens: folder of the complete reference outputs, or "".
        out: where :meth:`save` writes, or None.
        tables: of strings, the first row being the head; notes: sentences; failures: what is wrong, one line each.
        state: what is said in place of "passed".
    """

    device: str = "cuda"
    size: str = "full"
    goldens: str = ""
    out: Path | None = None
    tables: list[list[list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    state: str = ""

    @property
    def full(self) -> bool:
        return self.size == "full"

    @property
    def gpu(self) -> bool:
        return self.device.startswith("cuda")

    def config(self, stage: Literal[1, 2] = 2) -> ModelConfig:
        return published_config(stage) if self.full else TINY

    def table(self, *head: str) -> None:
        """Begin a table."""
        self.tables.append([list(head)])

    def row(self, *cells: str) -> None:
        """Add a row to the latest table."""
        self.tables[-1].append(list(cells))
        self.save()

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.save()

    def check(self, right: bool, failure: str) -> None:
        """Note a failure where something is not right; the part goes on."""
        if not right:
            self.failures.append(failure)
            self.save()

    def save(self) -> None:
        if self.out is not None:
            names = ("tables", "notes", "failures", "state")
            found = {"environment": self.environment, **{name: getattr(self, name) for name in names}}
            temporary = self.out.with_suffix(".part")
            temporary.write_text(json.dumps(found))
            temporary.replace(self.out)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Machine, driver, versions, revision."""
        return {**environment(self.device), "CUDA": torch.version.cuda, "driver": driver()}

    def time(self, work: Any, seconds: float = 1.0) -> Measurement:
        """Time a function: at least so long, and hardly at all when tiny."""
        timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=seconds if self.full else 0)


def milliseconds(measured: Measurement) -> str:
    """Median and interquartile range."""
    return f"{1e3 * measured.median:.3f} (IQR {1e3 * measured.iqr:.3f})"


def driver() -> str:
    """The GPU's driver, or ""."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("function", help="MODULE:FUNCTION of this package")
    parser.add_argument("--device", required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--goldens", default="")
    parser.add_argument("--out", type=Path, help="file of what is found; without: nothing is written")
    args = parser.parse_args(arguments)
    part = Part(args.device, args.size, args.goldens, args.out)
    if part.gpu and not torch.cuda.is_available():
        part.check(False, f"device '{part.device}': PyTorch {torch.__version__} finds no CUDA device")
        return 1
    if not part.full:
        noise_drive.SOURCE_SIZE = (320, 180)
    module, _, function = args.function.partition(":")
    part.save()
    try:
        getattr(importlib.import_module(f"bevnext_benchmarks.gpu.{module}"), function)(part)
    finally:
        part.save()
    return 1 if part.failures else 0


if __name__ == "__main__":
    sys.exit(main())
