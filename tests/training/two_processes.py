# SPDX-License-Identifier: Apache-2.0
"""What each of two processes does in test_distributed.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bevnext_benchmarks.synthetic_batches import synthetic_batch
from bevnext_core.config import ModelConfig, load_config
from bevnext_core.network.bevnext import BEVNeXt
from training.data.dataset import Batch
from training.run.processes import join_processes, leave_processes
from training.run.training_forward import TrainingForward

STEPS = 20
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01),
}


def half_batch(config: ModelConfig, step: int, rank: int) -> Batch:
    """The samples of one rank; the second has fewer objects and less lidar, so that the normalisers differ."""
    batch = synthetic_batch(config, 2, seed=10 * step + rank)
    if rank:
        batch.boxes = [boxes[:5] for boxes in batch.boxes]
        batch.labels = [labels[:5] for labels in batch.labels]
        batch.depth[:, 2:] = 0
    return batch


def frozen_network(config: ModelConfig) -> BEVNeXt:
    """Batch norms with running statistics, no dropout; gradients flow all the same."""
    torch.manual_seed(0)
    return BEVNeXt(config).eval()


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


def work(rank: int, config_file: Path, port: int, out: Path) -> None:
    """Gradients of the first step and the weights after 20 steps of each optimiser; rank 0 writes them."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    config = load_config(config_file)
    processes = join_processes("cpu")
    result: dict[str, dict[str, torch.Tensor]] = {}
    for name, make in OPTIMIZERS.items():
        network = frozen_network(config)
        model = DistributedDataParallel(
            TrainingForward(network, mean_over_ranks=processes.mean).eval(), broadcast_buffers=False
        )
        optimizer = make(network.parameters())
        for step in range(STEPS):
            optimizer.zero_grad()
            total(model(half_batch(config, step, rank))).backward()
            if step == 0:
                result["gradient"] = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
        result[name] = {n: p.detach().clone() for n, p in network.named_parameters()}
    if rank == 0:
        torch.save(result, out)
    leave_processes()
