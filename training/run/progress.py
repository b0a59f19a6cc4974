# SPDX-License-Identifier: Apache-2.0
"""What a training run says of itself while it runs: a bar, the log, and the numbers of its curves."""

from __future__ import annotations

import csv
import logging
import math
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from training.run.processes import Processes

CURVES = "curves.csv"
COLUMNS = ("step", "epoch", "samples", "loss", "heat", "box", "depth", "perspective", "norm", "rate",
           "samples_per_second", "waited", "memory_gib", "load")
"""Of the curves: the losses of one step; ``waited``: share of the time in which data was not there yet; ``load``: of
the machine. A resumed run writes some steps again: the last row of a step counts."""


class Progress:
    """Bar, lines of the log and rows of ``curves.csv``, the last two of rank 0 alone.

    Args:
        every: steps from one line to the next; steps: of the whole run; first: steps that were done before;
        batch: samples a step on all ranks.
    """

    def __init__(self, log: logging.Logger, work_dir: Path, every: int, processes: Processes, steps: int, first: int,
                 batch: int) -> None:
        self.log, self.every, self.batch, self.processes = log, every, batch, processes
        self.path = work_dir / CURVES
        hidden = not processes.is_main or not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=first, unit="step", disable=hidden)
        self.since, self.waited, self.count, self.steps, self.first = time.perf_counter(), 0.0, 0, steps, True

    def update(self, step: int, epoch: int, losses: dict[str, Tensor], norm: Tensor, rate: float, waited: float,
               skipped: int) -> bool:
        """One step more. ``True`` where it was logged: every so many steps, and at the first."""
        self.bar.update()
        self.waited, self.count = self.waited + waited, self.count + 1
        if step % self.every and not self.first:
            return False
        self.first = False
        seconds = time.perf_counter() - self.since
        speed = self.count * self.batch / seconds
        value = {name: loss.item() for name, loss in losses.items()}
        heat = sum(v for name, v in value.items() if name.endswith("heatmap"))
        box = sum(v for name, v in value.items() if name.startswith("task")) - heat
        depth, perspective = (value.get(f"loss_{name}", math.nan) for name in ("depth", "perspective"))
        row = (step, epoch, step * self.batch, sum(value.values()), heat, box, depth, perspective, norm.item(), rate,
               speed, self.waited / seconds, memory_used(self.processes.device), os.getloadavg()[0])
        if self.processes.is_main:
            new = not self.path.exists()
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS] * new + [[f"{v:.6g}" if isinstance(v, float) else v for v in row]])
        left = (self.steps - step) * self.batch / speed
        there = {name: v for name, v in (("depth", depth), ("perspective", perspective)) if not math.isnan(v)}
        extra = "".join(f" {name} {v:.3f}" for name, v in there.items())
        text = (f"loss {row[3]:.3f} (heat {heat:.3f} box {box:.3f}{extra}) norm {row[8]:.1f} "
                f"lr {rate:.2g} {speed:.2f} samples/s wait {row[11]:.0%} memory {row[12]:.2f} GiB")
        self.bar.set_postfix_str(text)
        self.log.info("epoch %d step %d/%d %s left %d:%02d h skipped %d", epoch, step, self.steps, text,
                      left // 3600, left % 3600 // 60, skipped)
        self.since, self.waited, self.count = time.perf_counter(), 0.0, 0
        return True


def memory_used(device: torch.device) -> float:
    """Peak GiB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
