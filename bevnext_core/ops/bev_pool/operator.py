# SPDX-License-Identifier: Apache-2.0
"""The BEV pooling operators ``bevnext::bev_pool`` and ``bevnext::bev_pool_backward``.

The work is done by ``bev_pool.cpp`` on the CPU and ``bev_pool.cu`` on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core.ops.bev_pool.plan_operator import PLAN
from bevnext_core.ops.compiled import (
    INT,
    INT64,
    POINTER,
    TYPES,
    CudaCode,
    Forms,
    HostCode,
    by_type,
    launch,
    register_gradients,
)

_NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}

HOST = HostCode(
    Path(__file__).with_name("bev_pool.cpp"),
    by_type(
        bev_pool_forward=[POINTER, POINTER, INT, POINTER, *[INT64] * 7, POINTER, INT],
        bev_pool_backward=[POINTER, INT, POINTER, POINTER, INT, POINTER, *[INT64] * 7, POINTER, POINTER],
    ),
)
CUDA = CudaCode(
    Path(__file__).with_name("bev_pool.cu"),
    {
        "bev_pool_cuda_forward": [*[POINTER, INT] * 2, *[POINTER] * 3, *[INT] * 5, POINTER, INT, POINTER],
        "bev_pool_cuda_backward": [POINTER, *[POINTER, INT] * 2, POINTER, *[INT] * 6, *[POINTER] * 3],
        "bev_pool_baseline_forward": [*[POINTER] * 5, INT64, INT, POINTER, POINTER],
        "bev_pool_baseline_backward": [*[POINTER] * 4, INT64, *[INT] * 4, *[POINTER] * 3],
    },
    check="bev_pool_cuda_check",
)
FORMS = Forms("BEV pooling", "BEVNEXT_BEV_POOL", [PLAN, HOST], CUDA)


@torch.library.custom_op("bevnext::bev_pool", mutates_args=(), device_types=("cpu", "cuda"))
def bev_pool(
    depth: Tensor,
    context: Tensor,
    cells: Tensor,
    points: Tensor | None,
    pixels: Tensor | None,
    cell_starts: Tensor | None,
    shape: Sequence[int],
    channels_last: bool,
) -> Tensor:
    """``[G, C, Y, X]``; ``shape`` is (G, Y, X), the rest as in ``bevnext_core.ops.bev_pool.plain``.

    A GPU needs points, pixels and cell_starts, the CPU does not.
    """
    maps, rows, columns = shape
    _check(depth, context, cells)
    if depth.is_cuda:
        if points is None or pixels is None or cell_starts is None:
            raise ValueError("on a GPU, points, pixels and cell_starts are needed")
        _check_indices("points", points, depth.numel(), depth.device)
        _check_indices("pixels", pixels, depth.numel(), depth.device)
        _check_indices("cell_starts", cell_starts, maps * rows * columns + 1, depth.device)
        with CUDA.on(depth.device) as (library, stream):
            return cuda_forward(
                library, stream, depth, context, points, pixels, cell_starts, shape, channels_last
            )
    dtype, inputs = _host_inputs(depth, context, cells, maps, rows * columns, channels_last)
    out = _empty((maps, context.shape[1], rows, columns), depth, dtype, channels_last)
    HOST(f"bev_pool_forward_{TYPES[dtype]}", *inputs, out, channels_last)
    return out


@bev_pool.register_fake
def _(depth, context, cells, points, pixels, cell_starts, shape, channels_last):
    size = (shape[0], context.shape[1], shape[1], shape[2])
    return _empty(size, depth, _wide(depth, context), channels_last)


@torch.library.custom_op("bevnext::bev_pool_backward", mutates_args=(), device_types=("cpu", "cuda"))
def bev_pool_backward(
    grad: Tensor, depth: Tensor, context: Tensor, cells: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of depth (contiguous) and of context (laid out as ``channels_last`` says)."""
    _check(depth, context, cells)
    if depth.is_cuda:
        with CUDA.on(depth.device) as (library, stream):
            return cuda_backward(library, stream, grad, depth, context, cells, channels_last)
    maps, _, rows, columns = grad.shape
    dtype, inputs = _host_inputs(depth, context, cells, maps, rows * columns, channels_last)
    grad_last = is_channels_last(grad)
    grad = _laid_out(grad.to(dtype), grad_last)
    depth_grad = _empty(depth.shape, depth, dtype, False)
    context_grad = _empty(context.shape, depth, dtype, channels_last)
    HOST(f"bev_pool_backward_{TYPES[dtype]}", grad, grad_last, *inputs, depth_grad, context_grad)
    return depth_grad.to(depth.dtype), context_grad.to(context.dtype)


@bev_pool_backward.register_fake
def _(grad, depth, context, cells, channels_last):
    context_grad = _empty(context.shape, depth, context.dtype, channels_last)
    return _empty(depth.shape, depth, depth.dtype, False), context_grad


register_gradients(bev_pool, bev_pool_backward, of=(0, 1), needs=(0, 1, 2, 7))


def cuda_forward(
    library: ctypes.CDLL,
    stream: int,
    depth: Tensor,
    context: Tensor,
    points: Tensor,
    pixels: Tensor,
    cell_starts: Tensor,
    shape: Sequence[int],
    channels_last: bool,
) -> Tensor:
    """What the operator does on a GPU; arguments as there. Nothing waits for the device."""
    maps, rows, columns = shape
    dtype = _wide(depth, context)
    table, vectors = _table(context, dtype)
    depth = depth.contiguous()
    out = _empty((maps, context.shape[1], rows, columns), depth, dtype, channels_last)
    launch(
        library.bev_pool_cuda_forward,
        *(depth, _NUMBERS[depth.dtype], table, _NUMBERS[table.dtype], points, pixels, cell_starts),
        *(vectors, context.shape[1], maps, rows, columns, out, channels_last, stream),
    )
    return out


def cuda_backward(
    library: ctypes.CDLL,
    stream: int,
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    cells: Tensor,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """What the operator of the gradients does on a GPU; arguments as there."""
    cameras, bins, height, width = depth.shape
    maps, channels, rows, columns = grad.shape
    dtype = _wide(depth, context)
    table, vectors = _table(context, dtype)
    if vectors > 128 or (table.element_size() == 2 and vectors > 64):
        raise ValueError(f"{channels} channels: gradients on a GPU take at most 512 (256 in float64)")
    grad_table = _rows(grad.to(dtype), table.shape[-1])
    depth = depth.contiguous()
    depth_grad, table_grad = torch.empty_like(depth), torch.empty_like(table)
    launch(
        library.bev_pool_cuda_backward,
        *(grad_table, depth, _NUMBERS[depth.dtype], table, _NUMBERS[table.dtype], cells, vectors),
        *(cameras, bins, height, width, maps * rows * columns, depth_grad, table_grad, stream),
    )
    context_grad = table_grad[..., :channels].permute(0, 3, 1, 2).to(context.dtype)
    return depth_grad, _laid_out(context_grad, channels_last)


def _table(context: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """``[M, h, w, C]`` padded to whole vectors of 16 bytes, and how many a row has. Halves stay halves."""
    if dtype == torch.float64:
        context = context.to(dtype)
    lanes = 16 // context.element_size()
    vectors = (context.shape[1] + lanes - 1) // lanes
    return _rows(context, vectors * lanes), vectors


def _rows(values: Tensor, width: int) -> Tensor:
    """Channels-last rows of ``width``, zeros after the last channel; aligned to 16 bytes; no copy where it fits."""
    rows = values.permute(0, 2, 3, 1)
    if width != values.shape[1]:
        rows = torch.nn.functional.pad(rows, (0, width - values.shape[1]))
    rows = rows.contiguous()
    return rows.clone() if rows.data_ptr() % 16 else rows


def _check(depth: Tensor, context: Tensor, cells: Tensor) -> None:
    """The compiled code trusts these."""
    cameras, _, height, width = depth.shape
    if context.shape[0] != cameras or tuple(context.shape[2:]) != (height, width):
        raise ValueError(f"depth {tuple(depth.shape)} and context {tuple(context.shape)} do not fit together")
    if context.device != depth.device:
        raise ValueError(f"depth is on {depth.device}, context on {context.device}")
    _check_indices("cells", cells, depth.numel(), depth.device)


def _check_indices(name: str, tensor: Tensor, size: int, device: torch.device) -> None:
    right = tensor.dtype == torch.int32 and tensor.is_contiguous() and tensor.numel() == size
    if not right or tensor.device != device:
        raise ValueError(
            f"{name}: {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, "
            f"expected {size} int32 on {device}, contiguous"
        )


def _wide(depth: Tensor, context: Tensor) -> torch.dtype:
    return torch.promote_types(torch.float32, torch.promote_types(depth.dtype, context.dtype))


def _host_inputs(
    depth: Tensor, context: Tensor, cells: Tensor, maps: int, map_plane: int, channels_last: bool
) -> tuple[torch.dtype, tuple[Tensor | int, ...]]:
    """The type that is computed in, and what both C++ functions take."""
    dtype = _wide(depth, context)
    tables = (depth.to(dtype).contiguous(), _laid_out(context.to(dtype), channels_last), channels_last, cells)
    cameras, bins, height, width = depth.shape
    return dtype, (*tables, cameras, bins, context.shape[1], height, width, maps, map_plane)


def is_channels_last(values: Tensor) -> bool:
    """Whether ``[M, C, h, w]`` lies channels-last in memory, and not also contiguous."""
    return values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous()


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _laid_out(values: Tensor, channels_last: bool) -> Tensor:
    return values.contiguous(memory_format=memory_format(channels_last))


def _empty(size: Sequence[int], like: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=memory_format(channels_last))
