#!/usr/bin/env python3
"""Samples per second and memory of a training step on synthetic batches, for each way to encode the history.

    python training/benchmark.py --config config/model/bevnext_r50_stage2.yaml --batch 8 --device cuda
"""

from __future__ import annotations

import argparse
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
from bevnext_core.training.gradient_checkpointing import enable_checkpointing  # noqa: E402
from bevnext_core.training.memory import synthetic_batch  # noqa: E402
from bevnext_core.training.training_forward import ForwardOptions, TrainingForward  # noqa: E402

CASES = {
    "sequential (published)": (ForwardOptions(), False),
    "sequential, checkpointing": (ForwardOptions(), True),
    "sequential, history bf16": (ForwardOptions(history_precision="bf16"), False),
    "batched": (ForwardOptions("batched"), False),
    "frozen": (ForwardOptions("frozen"), False),
    "frozen, history bf16": (ForwardOptions("frozen", "bf16"), False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training steps.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    options = parser.parse_args()
    config = load_config(options.config)
    device = torch.device(options.device)
    batch = synthetic_batch(config, options.batch).to(device)
    cases = list(CASES.items())[: None if config.history.frames else 2]
    print(f"{config.name}, {options.batch} samples a step on {options.device}, amp {options.amp}")
    for name, (forward_options, checkpointing) in cases:
        network = BEVNeXt(config).to(device)
        if checkpointing:
            enable_checkpointing(network)
        step = TrainingForward(network, forward_options).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        seconds = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(options.steps + 1):
            start = time.perf_counter()
            amp = torch.autocast(device.type, torch.bfloat16) if options.amp == "bf16" else nullcontext()
            with amp:
                losses = step(batch)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        speed = options.batch / statistics.median(seconds[1:])
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if device.type == "cuda" else "-"
        print(f"  {name:<28}{speed:8.3f} samples/s   peak GPU memory {memory}", flush=True)


if __name__ == "__main__":
    main()
