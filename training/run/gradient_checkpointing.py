# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing of the blocks that the published code checkpoints: trades a second forward for memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from bevnext_core.network.bevnext import BEVNeXt


def enable_checkpointing(network: BEVNeXt, update_statistics_twice: bool = False) -> None:
    """Checkpoint the backbone's bottlenecks and the depth branch's blocks, whenever gradients are on.

    Args:
        update_statistics_twice: let the second forward update the running statistics of batch norm once more,
            as the published code does. Off, a step updates them once, as without checkpointing.
    """
    backbone = network.backbone
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4, network.depth_net.depth_layers):
        assert isinstance(stage, nn.Sequential)
        for block in stage:
            block.forward = _checkpointed(block, block.forward, update_statistics_twice)


def _checkpointed(block: nn.Module, forward: Callable[[Tensor], Tensor], twice: bool) -> Callable[[Tensor], Tensor]:
    def contexts() -> tuple[Any, Any]:
        return nullcontext(), nullcontext() if twice else _frozen_statistics(block)

    def run(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return forward(x)
        return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)

    return run


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms go on using batch statistics, and leave their running ones alone."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
