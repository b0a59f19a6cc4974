#!/usr/bin/env python3
"""Samples per second and memory of a training step on synthetic batches, for each way to encode the history.

    python bevnext_benchmarks/training.py --config config/model/bevnext_r50_stage2.yaml --batch 8 --device cuda
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_core.config import load_config  # noqa: E402
from bevnext_core.network.bevnext import BEVNeXt  # noqa: E402
from training.data.dataset import Batch  # noqa: E402
from training.data.shared_runs import SharedBatch  # noqa: E402
from training.run.gradient_checkpointing import enable_checkpointing  # noqa: E402
from training.run.memory import synthetic_batch, synthetic_runs  # noqa: E402
from training.run.shared_forward import SharedForward  # noqa: E402
from training.run.training_forward import ForwardOptions, TrainingForward  # noqa: E402

CASES = {
    "sequential (published)": (ForwardOptions(), False),
    "sequential, checkpointing": (ForwardOptions(), True),
    "sequential, history bf16": (ForwardOptions(history_precision="bf16"), False),
    "batched": (ForwardOptions("batched"), False),
    "frozen": (ForwardOptions("frozen"), False),
    "frozen, history bf16": (ForwardOptions("frozen", "bf16"), False),
}
SHARED_RUNS = (4, 8)
"""Lengths of the runs that are measured, as many runs a step as fill the batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training steps.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args()
    config = load_config(options.config)
    device = torch.device(options.device)
    print(f"{config.name}, {options.batch} samples a step on {options.device}, amp {options.amp}, "
          f"{torch.get_num_threads()} threads{', channels last' if options.channels_last else ''}")
    batch = synthetic_batch(config, options.batch).to(device)
    for name, (forward_options, checkpointing) in list(CASES.items())[: None if config.history.frames else 2]:
        if options.only not in name:
            continue
        network = BEVNeXt(config)
        if checkpointing:
            enable_checkpointing(network)
        measure(name, TrainingForward(network, forward_options), batch, options.batch, options)
    for length in SHARED_RUNS if config.history.frames else ():
        if options.batch % length == 0:
            name = f"shared, {options.batch // length} runs of {length}"
            if options.only not in name:
                continue
            runs = synthetic_runs(config, length, options.batch // length).to(device)
            measure(name, SharedForward(BEVNeXt(config)), runs, options.batch, options)


def measure(name: str, step: TrainingForward, batch: Batch | SharedBatch, samples: int,
            options: argparse.Namespace) -> None:
    """Print the median speed of a few optimiser steps, its range, and the memory."""
    device = torch.device(options.device)
    step.train().to(device, memory_format=torch.channels_last if options.channels_last else torch.preserve_format)
    parameters = list(step.network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        amp = torch.autocast(device.type, torch.bfloat16) if options.amp == "bf16" else nullcontext()
        with amp:
            losses = step(batch)  # type: ignore[arg-type]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    speeds = sorted(samples / value for value in seconds[1:])
    if device.type == "cuda":
        memory = f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    else:  # of the process up to now: one case a process (--only) gives that case's
        memory = f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    print(f"  {name:<28}{statistics.median(speeds):8.3f} samples/s ({speeds[0]:.3f} to {speeds[-1]:.3f})   "
          f"{memory}", flush=True)


if __name__ == "__main__":
    main()
