"""What a training run says of itself while it runs."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from bevnext_core.evaluation.distributed import Processes


class Progress:
    """Bar and log lines: losses, samples/s, share of the time spent waiting for data, memory, time left.

    Args:
        every: steps from one line to the next; steps: of the whole run; first: steps that were done before;
        batch: samples a step on all ranks.
    """

    def __init__(self, log: logging.Logger, every: int, processes: Processes, shown: bool, steps: int, first: int,
                 batch: int) -> None:
        from tqdm import tqdm

        self.log, self.every, self.batch, self.device = log, every, batch, processes.device
        self.bar = tqdm(total=steps, initial=first, unit="step", disable=not (shown and processes.is_main))
        self.since, self.waited, self.count, self.steps, self.first = time.perf_counter(), 0.0, 0, steps, True

    def update(self, step: int, epoch: int, losses: dict[str, Tensor], total: Tensor, norm: Tensor, rate: float,
               waited: float, skipped: int) -> None:
        self.bar.update()
        self.waited, self.count = self.waited + waited, self.count + 1
        if step % self.every and not self.first:
            return
        self.first = False
        seconds = time.perf_counter() - self.since
        speed = self.count * self.batch / seconds
        boxes = sum(v.item() for k, v in losses.items() if k.startswith("task") and not k.endswith("heatmap"))
        heat = sum(v.item() for k, v in losses.items() if k.endswith("heatmap"))
        left = (self.steps - step) * self.batch / speed
        extra = f" perspective {losses['loss_perspective'].item():.3f}" if "loss_perspective" in losses else ""
        text = (f"loss {total.item():.3f} (heat {heat:.3f} box {boxes:.3f} depth {losses['loss_depth'].item():.3f}"
                f"{extra}) norm {norm.item():.1f} lr {rate:.2g} {speed:.2f} samples/s wait {self.waited / seconds:.0%} "
                f"memory {memory_used(self.device):.2f} GiB")
        self.bar.set_postfix_str(text)
        self.log.info("epoch %d step %d/%d %s left %d:%02d h skipped %d", epoch, step, self.steps, text,
                 left // 3600, left % 3600 // 60, skipped)
        self.since, self.waited, self.count = time.perf_counter(), 0.0, 0


def memory_used(device: torch.device) -> float:
    """Peak GiB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
