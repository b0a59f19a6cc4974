# SPDX-License-Identifier: Apache-2.0
"""Samples per second and memory of a training step on synthetic batches, for each way to encode the history.

    python -m bevnext_benchmarks.training --config config/model/bevnext_r50_stage2.yaml --batch 8 --device cuda

Needs the checkout. ``--only`` names one case; the CPU's peak memory holds what earlier cases left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.benchmark import Measurement, Timer

from bevnext_benchmarks.measure import peak_memory
from bevnext_benchmarks.synthetic_batches import synthetic_batch, synthetic_runs
from bevnext_core.config import ModelConfig, load_config
from bevnext_core.device import machine
from bevnext_core.files import Parser
from bevnext_core.network.bevnext import BEVNeXt
from training.run.gradient_checkpointing import enable_checkpointing
from training.run.shared_forward import SharedForward
from training.run.training_forward import TrainingForward


def cases(config: ModelConfig, batch: int) -> list[str]:
    """Names of the ways to train; shared ones where the batch holds whole runs."""
    lengths = [length for length in (4, 8) if config.history.frames and batch % length == 0]
    return ["published", "checkpointing", *(f"shared, {batch // length} runs of {length}" for length in lengths)]


def make(name: str, config: ModelConfig, batch: int) -> tuple[TrainingForward, Any]:
    """The step of a case of :func:`cases`, and its batch."""
    network = BEVNeXt(config)
    if name.startswith("shared"):
        length = int(name.split()[-1])
        return SharedForward(network), synthetic_runs(config, length, batch // length)
    if name == "checkpointing":
        enable_checkpointing(network)
    return TrainingForward(network), synthetic_batch(config, batch)


def measure(step: TrainingForward, batch: Any, device: str, bf16: bool, seconds: float) -> tuple[Measurement, int]:
    """Time of an optimiser's step, and its peak memory in bytes.

    Raises:
        ArithmeticError: the loss is not finite.
    """
    step.train().to(device, memory_format=torch.channels_last)
    batch = batch.to(device)
    parameters = list(step.network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    totals: list[torch.Tensor] = []

    def train() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            losses = step(batch)
        optimizer.zero_grad(set_to_none=True)
        totals[:] = [torch.stack(list(losses.values())).sum()]
        totals[0].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()

    with peak_memory(torch.device(device)) as peak:
        timer = Timer("train()", globals={"train": train}, num_threads=torch.get_num_threads())
        found = timer.blocked_autorange(min_run_time=seconds)
    if not totals[0].isfinite():
        raise ArithmeticError(f"the loss of a synthetic batch became {totals[0].item()}")
    return found, peak["peak_bytes"]


def main() -> None:
    parser = Parser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--seconds", type=float, default=10.0, help="measure each case at least so long")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    args = parser.parse_args()
    config = load_config(args.config)
    print(f"{config.name}, {args.batch} samples a step, {'bf16' if args.bf16 else 'fp32'}, {machine(args.device)}")
    for name in cases(config, args.batch):
        if args.only in name:
            found, peak = measure(*make(name, config, args.batch), args.device, args.bf16, args.seconds)
            speed, spread = args.batch / found.median, found.iqr / found.median
            print(f"  {name:<24}{speed:8.3f} samples/s (IQR {spread:.1%}), peak {peak / 2**30:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
