# SPDX-License-Identifier: Apache-2.0
"""The published pooling algorithm (BEVPoolv2) on a GPU: what the benchmark compares the kernels with.

One thread per cell and channel, fp32, and tables whose copies are not counted: they are made before.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bevnext_core.ops.bev_pool.plain import PoolPlan
from bevnext_core.ops.compiled import launch


def baseline_forward(library: ctypes.CDLL, depth: Tensor, table: Tensor, plan: PoolPlan) -> Tensor:
    """``depth [M, D, h, w]``, ``table [M*h*w, C]`` fp32, contiguous -> ``[G*Y*X, C]``.

    ``library``: ``bev_pool.operator.CUDA.library(device)``. Runs on the current stream.
    """
    points, pixels, starts = plan.sorted
    total, channels = starts.numel() - 1, table.shape[1]
    out = torch.empty(total, channels, device=depth.device)
    inputs = (depth, table, points, pixels, starts)
    launch(library.bev_pool_baseline_forward, *inputs, total, channels, out, _stream(depth))
    return out


def baseline_backward(
    library: ctypes.CDLL, grad: Tensor, depth: Tensor, table: Tensor, plan: PoolPlan
) -> tuple[Tensor, Tensor]:
    """Gradients of ``depth`` and ``table`` from ``grad [G*Y*X, C]``; arguments as above."""
    _, bins, height, width = plan.depth_shape
    depth_grad, table_grad = torch.empty_like(depth), torch.empty_like(table)
    sizes = (len(table), bins, height * width, len(grad), table.shape[1])
    inputs = (grad, depth, table, plan.cells)
    launch(library.bev_pool_baseline_backward, *inputs, *sizes, depth_grad, table_grad, _stream(depth))
    return depth_grad, table_grad


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
