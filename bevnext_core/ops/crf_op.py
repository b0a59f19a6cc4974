"""The operators ``bevnext::crf`` and ``bevnext::crf_backward``: mean field of the depth CRF.

Registered with PyTorch: they have gradients and shape inference, and stand in traced, compiled and exported
programs as one node each. The work is done by ``crf.cpp`` on the CPU.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core import native
from bevnext_core.native import NativeBuildError

FOLDER = Path(__file__).parent

_NAMES = {torch.float32: "float", torch.float64: "double"}


def build(kind: str) -> str:
    """Compile the form for a type of device where that has not been done, and return its name.

    Raises:
        NativeBuildError: it cannot be built here, or the type of device has none.
    """
    if kind == "cpu":
        _cpu_library()
        return "c++"
    raise NativeBuildError(f"there is no compiled form for {kind}")


@functools.cache
def _cpu_library() -> ctypes.CDLL:
    library = native.load(FOLDER / "crf.cpp")
    p, n, i, d = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
    for name in _NAMES.values():
        getattr(library, f"crf_forward_{name}").argtypes = [p, p, p, d, p, n, p, i]
        getattr(library, f"crf_backward_{name}").argtypes = [p, p, p, p, p, d, p, n, p, p, i]
    return library


@torch.library.custom_op("bevnext::crf", mutates_args=(), device_types="cpu")
def crf(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Distribution ``[M, D, h, w]``, contiguous; arguments as in ``bevnext_core.ops.crf.mean_field``."""
    _check(logits, kernel, weight, iterations)
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _call(
        f"crf_forward_{_NAMES[logits.dtype]}",
        *(logits, logits.stride(), _kernel(kernel, logits), float(weight), logits.shape, iterations, out),
    )
    return out


@crf.register_fake
def _(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@torch.library.custom_op("bevnext::crf_backward", mutates_args=(), device_types="cpu")
def crf_backward(
    grad: Tensor, logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits (contiguous) and of the weight. The iterations are computed again, in the cache."""
    _check(logits, kernel, weight, iterations)
    if grad.shape != logits.shape or grad.dtype != logits.dtype:
        raise ValueError(f"gradient {tuple(grad.shape)} {grad.dtype} of {tuple(logits.shape)} {logits.dtype}")
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    weight_grad = torch.empty(1, dtype=torch.float64)
    _call(
        f"crf_backward_{_NAMES[logits.dtype]}",
        *(grad, grad.stride(), logits, logits.stride(), _kernel(kernel, logits), float(weight)),
        *(logits.shape, iterations, out, weight_grad),
    )
    return out, weight_grad.to(weight.dtype).reshape(weight.shape)


@crf_backward.register_fake
def _(grad: Tensor, logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    return out, torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    logits, kernel, weight, ctx.iterations = inputs
    ctx.save_for_backward(logits, kernel, weight)


def _backward(ctx, grad: Tensor) -> tuple:
    gradients = torch.ops.bevnext.crf_backward(grad, *ctx.saved_tensors, ctx.iterations)
    return gradients[0], None, gradients[1], None


crf.register_autograd(_backward, setup_context=_setup_context)


def _check(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> None:
    """The compiled code trusts these."""
    if logits.dim() != 4 or logits.dtype not in _NAMES or not logits.shape[1]:
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


def _kernel(kernel: Tensor, logits: Tensor) -> Tensor:
    return kernel.to(logits.dtype).contiguous()


def _call(name: str, *arguments: Tensor | Sequence[int] | float) -> None:
    values: list = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            values.append(argument.data_ptr())
        elif isinstance(argument, Sequence):
            values.append((ctypes.c_int64 * len(argument))(*argument))
        else:
            values.append(argument)
    if getattr(_cpu_library(), name)(*values, torch.get_num_threads()):
        raise MemoryError(f"{name}: not enough memory")
