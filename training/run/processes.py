# SPDX-License-Identifier: Apache-2.0
"""One process or many (started by torchrun): the same calls."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bevnext_core.device import find_device
from bevnext_core.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process among all; ``restarts`` counts torchrun's restarts of the group."""

    rank: int
    local_rank: int
    count: int
    restarts: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average over all ranks."""
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.count

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks."""
        return self.mean(values) * self.count

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()


def join_processes(device: str = "auto") -> Processes:
    """Read torchrun's environment and join the group (NCCL on GPUs, gloo on CPUs).

    Args:
        device: ``auto`` (a GPU where there is one), ``cuda`` or ``cpu``.

    Raises:
        ConfigError: a GPU was asked for and there is none, or fewer than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = find_device(device).type
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"process {local} of this machine has no GPU: {torch.cuda.device_count()} are there")
        torch.cuda.set_device(local)
    if count > 1:
        # torchrun's store may outlive a restart of the group: without a prefix of its own, a restarted process
        # can read the address of a dead one.
        store, rank, size = next(rendezvous("env://"))
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    return Processes(
        int(os.environ.get("RANK", 0)),
        local,
        count,
        int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
        torch.device(device, local) if device == "cuda" else torch.device(device),
    )


def leave_processes() -> None:
    """Leave the group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
