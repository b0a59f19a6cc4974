# SPDX-License-Identifier: Apache-2.0
"""Batch norms whose statistics come from one set of frames and normalise another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


class BatchStatistics:
    """Lets a second pass use the batch statistics of the first.

    Inside the context each batch norm in training mode runs with momentum 1 on buffers of its own, which so become
    the statistics of the batch; under :meth:`applied` it normalises with them. At the end the running statistics are
    what one ordinary update would have made of them.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self.norms = [m for part in parts for m in part.modules() if isinstance(m, _BatchNorm) and m.training]
        self.kept: list[tuple[float, Tensor, Tensor]] = []
        self.counts: dict[nn.Module, int] = {}
        self.hooks: list[RemovableHandle] = []

    def __enter__(self) -> BatchStatistics:
        for norm in self.norms:
            assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
            self.kept.append((norm.momentum, norm.running_mean, norm.running_var))
            norm.momentum = 1.0
            # New tensors, since autograd keeps what a batch norm was called with, unchanged.
            norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()
            self.hooks.append(norm.register_forward_pre_hook(self._count))
        return self

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        for norm, (momentum, mean, variance) in zip(self.norms, self.kept, strict=True):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.momentum = momentum
            norm.running_mean = mean.lerp_(norm.running_mean, momentum)
            norm.running_var = variance.lerp_(norm.running_var, momentum)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Normalise with the statistics of the pass before."""
        unbiased = [norm.running_var for norm in self.norms]
        for norm in self.norms:
            count = self.counts.get(norm, 0)
            if count > 1:  # a norm divides by n, and keeps the variance with n - 1
                norm.running_var = norm.running_var * ((count - 1) / count)  # type: ignore[operator]
        with evaluating(self.norms):
            yield
        for norm, variance in zip(self.norms, unbiased, strict=True):
            norm.running_var = variance

    def _count(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        if norm.training:
            self.counts[norm] = inputs[0].numel() // inputs[0].shape[1]


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    training = [module for module in modules if module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()

