# SPDX-License-Identifier: Apache-2.0
"""The operators ``bevnext::crf`` and ``bevnext::crf_backward``: mean field of the depth CRF.

The work is done by ``crf.cpp`` on the CPU and ``crf.cu`` on a GPU.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core.ops.compiled import (
    DOUBLE,
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

MAX_CUDA_BINS = 512

HOST = HostCode(
    Path(__file__).with_name("crf.cpp"),
    by_type(
        crf_forward=[*[POINTER] * 3, DOUBLE, POINTER, INT64, POINTER],
        crf_backward=[*[POINTER] * 5, DOUBLE, POINTER, INT64, POINTER, POINTER],
    ),
)
CUDA = CudaCode(
    Path(__file__).with_name("crf.cu"),
    by_type(
        crf_cuda_forward=[*[POINTER] * 5, INT, INT, *[POINTER] * 4],
        crf_cuda_backward=[*[POINTER] * 7, INT, INT, *[POINTER] * 6],
    ),
    check="crf_cuda_check",
)
FORMS = Forms("the depth CRF", "BEVNEXT_CRF", [HOST], CUDA)


@torch.library.custom_op("bevnext::crf", mutates_args=(), device_types=("cpu", "cuda"))
def crf(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Distribution ``[M, D, h, w]``, contiguous; arguments as in ``bevnext_core.ops.crf.plain.mean_field``."""
    _check(logits, kernel, weight, iterations)
    if logits.is_cuda:
        with CUDA.on(logits.device) as (library, stream):
            return cuda_forward(library, stream, logits, kernel, weight, iterations)
    out = _like(logits)
    values = (logits, logits.stride(), _kernel(kernel, logits), float(weight))
    HOST(f"crf_forward_{TYPES[logits.dtype]}", *values, logits.shape, iterations, out)
    return out


@crf.register_fake
def _(logits, kernel, weight, iterations):
    return _like(logits)


@torch.library.custom_op("bevnext::crf_backward", mutates_args=(), device_types=("cpu", "cuda"))
def crf_backward(
    grad: Tensor, logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits (contiguous) and of the weight. The iterations are computed again, in the cache."""
    _check(logits, kernel, weight, iterations, grad)
    if logits.is_cuda:
        with CUDA.on(logits.device) as (library, stream):
            return cuda_backward(library, stream, grad, logits, kernel, weight, iterations)
    out, weight_grad = _like(logits), torch.empty(1, dtype=torch.float64)
    values = (grad, grad.stride(), logits, logits.stride(), _kernel(kernel, logits), float(weight))
    HOST(f"crf_backward_{TYPES[logits.dtype]}", *values, logits.shape, iterations, out, weight_grad)
    return out, weight_grad.to(weight.dtype).reshape(weight.shape)


@crf_backward.register_fake
def _(grad, logits, kernel, weight, iterations):
    return _like(logits), torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


register_gradients(crf, crf_backward, of=(0, 2), needs=(0, 1, 2, 3))


def cuda_forward(
    library: ctypes.CDLL, stream: int, logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int
) -> Tensor:
    """What the operator does on a GPU; arguments as there. Nothing waits for the device."""
    per_lane, patches = _row(logits)
    out = _like(logits)
    launch(
        getattr(library, f"crf_cuda_forward_{TYPES[logits.dtype]}"),
        *(logits, logits.stride(), _kernel(kernel, logits), _weight(weight, logits), logits.shape),
        *(iterations, per_lane, logits.new_empty(2, patches, 32 * per_lane), _flags(logits, patches)),
        *(out, stream),
    )
    return out


def cuda_backward(
    library: ctypes.CDLL,
    stream: int,
    grad: Tensor,
    logits: Tensor,
    kernel: Tensor,
    weight: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """What the operator of the gradients does on a GPU; arguments as there."""
    per_lane, patches = _row(logits)
    out, shares = _like(logits), logits.new_empty(patches)
    launch(
        getattr(library, f"crf_cuda_backward_{TYPES[logits.dtype]}"),
        *(grad, grad.stride(), logits, logits.stride(), _kernel(kernel, logits), _weight(weight, logits)),
        *(logits.shape, iterations, per_lane, logits.new_empty(iterations + 1, patches, 32 * per_lane)),
        *(logits.new_empty(3, patches, 32 * per_lane), _flags(logits, patches), out, shares, stream),
    )
    return out, shares.sum(dtype=torch.float64).to(weight.dtype).reshape(weight.shape)


def _row(logits: Tensor) -> tuple[int, int]:
    """How many bins a lane of the patch's warp holds, and how many patches there are."""
    cameras, bins, height, width = logits.shape
    if bins > MAX_CUDA_BINS:
        raise ValueError(f"{bins} depth bins: the GPU form takes at most {MAX_CUDA_BINS}")
    warps = max(1, -(-bins // 32))
    return 1 << (warps - 1).bit_length(), cameras * height * width


def _like(logits: Tensor) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _flags(logits: Tensor, patches: int) -> Tensor:
    return torch.empty(patches, dtype=torch.uint8, device=logits.device)


def _weight(weight: Tensor, logits: Tensor) -> Tensor:
    return weight.to(logits.device, logits.dtype).contiguous()


def _check(
    logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int, grad: Tensor | None = None
) -> None:
    """The compiled code trusts these."""
    if logits.dim() != 4 or logits.dtype not in TYPES or not logits.shape[1]:
        raise ValueError(
            f"logits: {tuple(logits.shape)} {logits.dtype}, expected [M, D, h, w] in float32 or float64"
        )
    cameras, _, height, width = logits.shape
    expected = (cameras, 9, height, width)
    if tuple(kernel.shape) != expected or kernel.device != logits.device:
        raise ValueError(
            f"kernel: {tuple(kernel.shape)} on {kernel.device}, expected {expected} on {logits.device}"
        )
    if weight.numel() != 1 or iterations < 0:
        raise ValueError(
            f"weight must have one element, not {weight.numel()}; iterations {iterations} not be negative"
        )
    kinds = [(value.shape, value.dtype, value.device) for value in (logits, grad) if value is not None]
    if grad is not None and kinds[0] != kinds[1]:
        raise ValueError(
            f"gradient: {tuple(grad.shape)} {grad.dtype} on {grad.device}, expected as the logits, "
            f"{tuple(logits.shape)} {logits.dtype} on {logits.device}"
        )


def _kernel(kernel: Tensor, logits: Tensor) -> Tensor:
    return kernel.to(logits.dtype).contiguous()
