"""Batch norms whose statistics come from one set of frames and normalise another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
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
            assert (
                norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
            )
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
            norm.running_mean, norm.running_var = (
                mean.lerp_(norm.running_mean, momentum),
                variance.lerp_(norm.running_var, momentum),
            )

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

    @contextmanager
    def joint(self) -> Iterator[None]:
        """Normalise a part of what the pass before was made of, with gradients through the part's share in them."""
        for norm in self.norms:
            norm.forward = self._joint_forward(norm)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in self.norms:
                del norm.forward

    def _joint_forward(self, norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
        count, mean, variance = self.counts[norm], norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        biased = variance * ((count - 1) / count)
        return lambda x: _JointNorm.apply(x, norm.weight, norm.bias, mean, biased, norm.eps, count)

    def _count(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        if norm.training:
            self.counts[norm] = inputs[0].numel() // inputs[0].shape[1]


def synchronise_batch_norms(network: nn.Module) -> None:
    """Give the batch norms inside ``network`` the statistics of all ranks; weights and buffers stay the same objects,
    so that the optimiser and the names of the state dict go on as they were."""
    nn.SyncBatchNorm.convert_sync_batchnorm(network)


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


class _JointNorm(torch.autograd.Function):
    """Batch norm of a part of a batch with the mean and variance of the whole, which has ``count`` values a channel.

    The other part is without gradients: what of the statistics depends on this part takes its share.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, count
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, variance = ctx.saved_tensors
        shape = (1, -1) + (1,) * (x.dim() - 2)
        others = [dim for dim in range(x.dim()) if dim != 1]
        scale = (variance + ctx.eps).rsqrt()
        normal = (x - mean.view(shape)) * scale.view(shape)
        for_bias, for_weight = gradient.sum(others), (gradient * normal).sum(others)
        for_x = gradient - (for_bias.view(shape) + normal * for_weight.view(shape)) / ctx.count
        return (
            (for_x * (weight * scale).view(shape)).to(x.dtype),
            for_weight,
            for_bias,
            None,
            None,
            None,
            None,
        )
