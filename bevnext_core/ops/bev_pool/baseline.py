"""The published pooling algorithm (BEVPoolv2) on a GPU: what the benchmark compares the kernels with.

One thread per cell and channel, fp32, and tables whose copies are not counted: they are made before.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bevnext_core.ops.bev_pool.plain import PoolPlan


def baseline_forward(library: ctypes.CDLL, depth: Tensor, table: Tensor, plan: PoolPlan) -> Tensor:
    """``depth [M, D, h, w]``, ``table [M*h*w, C]`` fp32, contiguous -> ``[G*Y*X, C]``.

    ``library``: ``bev_pool_op.cuda_library(device)``. Runs on the current stream.
    """
    points, pixels, starts = plan.sorted
    total, channels = starts.numel() - 1, table.shape[1]
    out = torch.empty(total, channels, device=depth.device)
    pointers = [t.data_ptr() for t in (depth, table, points, pixels, starts)]
    _check(library.bev_pool_baseline_forward(*pointers, total, channels, out.data_ptr(), _stream(depth)))
    return out


def baseline_backward(
    library: ctypes.CDLL, grad: Tensor, depth: Tensor, table: Tensor, plan: PoolPlan
) -> tuple[Tensor, Tensor]:
    """Gradients of ``depth`` and ``table`` from ``grad [G*Y*X, C]``; arguments as above."""
    _, bins, height, width = plan.depth_shape
    depth_grad, table_grad = torch.empty_like(depth), torch.empty_like(table)
    pointers = [t.data_ptr() for t in (grad, depth, table, plan.cells)]
    sizes = (len(table), bins, height * width, len(grad), table.shape[1])
    results = (depth_grad.data_ptr(), table_grad.data_ptr(), _stream(depth))
    _check(library.bev_pool_baseline_backward(*pointers, *sizes, *results))
    return depth_grad, table_grad


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"the baseline's kernel failed: CUDA error {code}")
