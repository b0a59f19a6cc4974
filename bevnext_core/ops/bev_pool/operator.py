"""The BEV pooling operators ``bevnext::bev_pool`` and ``bevnext::bev_pool_backward``.

Registered with PyTorch: they have gradients and shape inference, and stand in traced, compiled and exported
programs as one node each. The work is done by ``bev_pool.cpp`` on the CPU and ``bev_pool.cu`` on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core.ops import native
from bevnext_core.ops.bev_pool.plan_operator import plan_library
from bevnext_core.ops.native import NativeBuildError

FOLDER = Path(__file__).parent

_NAMES = {torch.float32: "float", torch.float64: "double"}


def build(kind: str) -> str:
    """Compile the form for a type of device where that has not been done, and return its name.

    Raises:
        NativeBuildError: it cannot be built here, or the type of device has none.
    """
    if kind == "cpu":
        plan_library()
        _cpu_library()
        return "c++"
    if kind == "cuda":
        for index in range(torch.cuda.device_count()):
            with torch.cuda.device(index):
                code = cuda_library(index).bev_pool_cuda_check()
            if code:
                raise NativeBuildError(f"the kernels do not run on GPU {index} (CUDA error {code})")
        return "cuda"
    raise NativeBuildError(f"there is no compiled form for {kind}")


@functools.cache
def _cpu_library() -> ctypes.CDLL:
    library = native.load(FOLDER / "bev_pool.cpp")
    p, n, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for name in _NAMES.values():
        forward, backward = (getattr(library, f"bev_pool_{way}_{name}") for way in ("forward", "backward"))
        forward.argtypes = [p, p, i, p, n, n, n, n, n, n, n, p, i, i]
        backward.argtypes = [p, i, p, p, i, p, n, n, n, n, n, n, n, p, p, i]
    return library


@functools.cache
def _cuda_library(*capabilities: tuple[int, int]) -> ctypes.CDLL:
    return declare_cuda(native.load_cuda(FOLDER / "bev_pool.cu", capabilities))


def declare_cuda(library: ctypes.CDLL) -> ctypes.CDLL:
    """Argument types of ``bev_pool.cu``."""
    p, n, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.bev_pool_cuda_forward.argtypes = [p, i, p, i, p, p, p, i, i, i, i, i, p, i, p]
    library.bev_pool_cuda_backward.argtypes = [p, p, i, p, i, p, i, i, i, i, i, i, p, p, p]
    library.bev_pool_baseline_forward.argtypes = [p, p, p, p, p, n, i, p, p]
    library.bev_pool_baseline_backward.argtypes = [p, p, p, p, n, i, i, i, i, p, p, p]
    return library


def cuda_library(device: torch.device | int) -> ctypes.CDLL:
    """The kernels for one GPU, as a library with a C interface."""
    return _cuda_library(torch.cuda.get_device_capability(device))


def _call(name: str, *arguments: Tensor | int) -> None:
    values = [a.data_ptr() if isinstance(a, Tensor) else int(a) for a in arguments]
    if getattr(_cpu_library(), name)(*values, torch.get_num_threads()):
        raise MemoryError(f"{name}: not enough memory")


# -------------------------------------------------------------------------------------------- pooling
@torch.library.custom_op("bevnext::bev_pool", mutates_args=(), device_types="cpu")
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
    cameras, bins, height, width = depth.shape
    channels = context.shape[1]
    _check(depth, context, cells)
    dtype = _wide(depth, context)
    depth = depth.to(dtype).contiguous()
    context = context.to(dtype).contiguous(memory_format=_format(channels_last))
    out = _empty((maps, channels, rows, columns), depth, dtype, channels_last)
    _call(
        f"bev_pool_forward_{_NAMES[dtype]}",
        *(depth, context, channels_last, cells),
        *(cameras, bins, channels, height, width, maps, rows * columns, out, channels_last),
    )
    return out


@bev_pool.register_fake
def _(
    depth: Tensor,
    context: Tensor,
    cells: Tensor,
    points: Tensor | None,
    pixels: Tensor | None,
    cell_starts: Tensor | None,
    shape: Sequence[int],
    channels_last: bool,
) -> Tensor:
    size = (shape[0], context.shape[1], shape[1], shape[2])
    return _empty(size, depth, _wide(depth, context), channels_last)


@torch.library.custom_op("bevnext::bev_pool_backward", mutates_args=(), device_types="cpu")
def bev_pool_backward(
    grad: Tensor, depth: Tensor, context: Tensor, cells: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of depth (contiguous) and of context (laid out as ``channels_last`` says)."""
    maps, channels, rows, columns = grad.shape
    cameras, bins, height, width = depth.shape
    _check(depth, context, cells)
    dtype = _wide(depth, context)
    grad_last = not grad.is_contiguous() and grad.is_contiguous(memory_format=torch.channels_last)
    grad = grad.to(dtype).contiguous(memory_format=_format(grad_last))
    wide_depth = depth.to(dtype).contiguous()
    wide_context = context.to(dtype).contiguous(memory_format=_format(channels_last))
    depth_grad = _empty(depth.shape, depth, dtype, False)
    context_grad = _empty(context.shape, depth, dtype, channels_last)
    _call(
        f"bev_pool_backward_{_NAMES[dtype]}",
        *(grad, grad_last, wide_depth, wide_context, channels_last, cells),
        *(cameras, bins, channels, height, width, maps, rows * columns, depth_grad, context_grad),
    )
    return depth_grad.to(depth.dtype), context_grad.to(context.dtype)


@bev_pool_backward.register_fake
def _(
    grad: Tensor, depth: Tensor, context: Tensor, cells: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    return (
        _empty(depth.shape, depth, depth.dtype, False),
        _empty(context.shape, depth, context.dtype, channels_last),
    )


# -------------------------------------------------------------------------------------------- on a GPU
@bev_pool.register_kernel("cuda")
def _(
    depth: Tensor,
    context: Tensor,
    cells: Tensor,
    points: Tensor | None,
    pixels: Tensor | None,
    cell_starts: Tensor | None,
    shape: Sequence[int],
    channels_last: bool,
) -> Tensor:
    maps, rows, columns = shape
    _check(depth, context, cells)
    if points is None or pixels is None or cell_starts is None:
        raise ValueError("on a GPU, points, pixels and cell_starts are needed")
    _check_indices("points", points, depth.numel(), depth.device)
    _check_indices("pixels", pixels, depth.numel(), depth.device)
    _check_indices("cell_starts", cell_starts, maps * rows * columns + 1, depth.device)
    with torch.cuda.device(depth.device):
        library = cuda_library(depth.device)
        stream = torch.cuda.current_stream(depth.device).cuda_stream
        return cuda_forward(
            library, stream, depth, context, points, pixels, cell_starts, shape, channels_last
        )


@bev_pool_backward.register_kernel("cuda")
def _(
    grad: Tensor, depth: Tensor, context: Tensor, cells: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    _check(depth, context, cells)
    with torch.cuda.device(depth.device):
        library = cuda_library(depth.device)
        stream = torch.cuda.current_stream(depth.device).cuda_stream
        return cuda_backward(library, stream, grad, depth, context, cells, channels_last)


_NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


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
    _launch(
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
    _launch(
        library.bev_pool_cuda_backward,
        *(grad_table, depth, _NUMBERS[depth.dtype], table, _NUMBERS[table.dtype], cells, vectors),
        *(cameras, bins, height, width, maps * rows * columns, depth_grad, table_grad, stream),
    )
    context_grad = table_grad[..., :channels].permute(0, 3, 1, 2).to(context.dtype)
    return depth_grad, context_grad.contiguous(memory_format=_format(channels_last))


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


def _launch(function: Callable[..., int], *arguments: Tensor | int) -> None:
    code = function(*(a.data_ptr() if isinstance(a, Tensor) else int(a) for a in arguments))
    if code:
        raise RuntimeError(f"BEV pooling on the GPU failed: CUDA error {code}")


# -------------------------------------------------------------------------------------------- gradients
def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    depth, context, cells, _, _, _, _, ctx.channels_last = inputs
    ctx.save_for_backward(depth, context, cells)


def _backward(ctx, grad: Tensor) -> tuple:
    gradients = torch.ops.bevnext.bev_pool_backward(grad, *ctx.saved_tensors, ctx.channels_last)
    return *gradients, None, None, None, None, None, None


bev_pool.register_autograd(_backward, setup_context=_setup_context)


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


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _empty(size: Sequence[int], like: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(tuple(size), dtype=dtype, device=like.device, memory_format=_format(channels_last))
