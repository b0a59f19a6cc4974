"""The operators ``bevnext::crf`` and ``bevnext::crf_backward``: mean field of the depth CRF.

Registered with PyTorch: they have gradients and shape inference, and stand in traced, compiled and exported
programs as one node each. The work is done by ``crf.cpp`` on the CPU and ``crf.cu`` on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core.ops import native
from bevnext_core.ops.native import NativeBuildError

FOLDER = Path(__file__).parent

MAX_CUDA_BINS = 512

_NAMES = {torch.float32: "float", torch.float64: "double"}


def build(kind: str) -> str:
    """Compile the form for a type of device where that has not been done, and return its name.

    Raises:
        NativeBuildError: it cannot be built here, or the type of device has none.
    """
    if kind == "cpu":
        _cpu_library()
        return "c++"
    if kind == "cuda":
        for index in range(torch.cuda.device_count()):
            with torch.cuda.device(index):
                code = cuda_library(index).crf_cuda_check()
            if code:
                raise NativeBuildError(f"the kernels do not run on GPU {index} (CUDA error {code})")
        return "cuda"
    raise NativeBuildError(f"there is no compiled form for {kind}")


@functools.cache
def _cpu_library() -> ctypes.CDLL:
    library = native.load(FOLDER / "crf.cpp")
    p, n, i, d = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
    for name in _NAMES.values():
        getattr(library, f"crf_forward_{name}").argtypes = [p, p, p, d, p, n, p, i]
        getattr(library, f"crf_backward_{name}").argtypes = [p, p, p, p, p, d, p, n, p, p, i]
    return library


@functools.cache
def _cuda_library(*capabilities: tuple[int, int]) -> ctypes.CDLL:
    return declare_cuda(native.load_cuda(FOLDER / "crf.cu", capabilities))


def declare_cuda(library: ctypes.CDLL) -> ctypes.CDLL:
    """Argument types of ``crf.cu``."""
    p, i = ctypes.c_void_p, ctypes.c_int
    for name in _NAMES.values():
        getattr(library, f"crf_cuda_forward_{name}").argtypes = [p, p, p, p, p, i, i, p, p, p, p]
        getattr(library, f"crf_cuda_backward_{name}").argtypes = [p, p, p, p, p, p, p, i, i, p, p, p, p, p, p]
    return library


def cuda_library(device: torch.device | int) -> ctypes.CDLL:
    """The kernels for one GPU, as a library with a C interface."""
    return _cuda_library(torch.cuda.get_device_capability(device))


# -------------------------------------------------------------------------------------------- on the CPU
@torch.library.custom_op("bevnext::crf", mutates_args=(), device_types="cpu")
def crf(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Distribution ``[M, D, h, w]``, contiguous; arguments as in ``bevnext_core.ops.crf.plain.mean_field``."""
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
    _check(logits, kernel, weight, iterations, grad)
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


# -------------------------------------------------------------------------------------------- on a GPU
@crf.register_kernel("cuda")
def _(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> Tensor:
    _check(logits, kernel, weight, iterations)
    with torch.cuda.device(logits.device):
        stream = torch.cuda.current_stream(logits.device).cuda_stream
        return cuda_forward(cuda_library(logits.device), stream, logits, kernel, weight, iterations)


@crf_backward.register_kernel("cuda")
def _(grad: Tensor, logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    _check(logits, kernel, weight, iterations, grad)
    with torch.cuda.device(logits.device):
        stream = torch.cuda.current_stream(logits.device).cuda_stream
        return cuda_backward(cuda_library(logits.device), stream, grad, logits, kernel, weight, iterations)


def cuda_forward(
    library: ctypes.CDLL, stream: int, logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int
) -> Tensor:
    """What the operator does on a GPU; arguments as there. Nothing waits for the device."""
    per_lane, patches = _row(logits)
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _launch(
        getattr(library, f"crf_cuda_forward_{_NAMES[logits.dtype]}"),
        *(
            logits,
            logits.stride(),
            _kernel(kernel, logits),
            _weight(weight, logits),
            logits.shape,
            iterations,
        ),
        *(per_lane, logits.new_empty(2, patches, 32 * per_lane), _flags(logits, patches), out, stream),
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
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    shares = logits.new_empty(patches)
    _launch(
        getattr(library, f"crf_cuda_backward_{_NAMES[logits.dtype]}"),
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
    per_lane = 1
    while 32 * per_lane < bins:
        per_lane *= 2
    return per_lane, cameras * height * width


def _flags(logits: Tensor, patches: int) -> Tensor:
    return torch.empty(patches, dtype=torch.uint8, device=logits.device)


def _weight(weight: Tensor, logits: Tensor) -> Tensor:
    return weight.to(logits.device, logits.dtype).contiguous()


def _launch(function: Callable[..., int], *arguments: Tensor | Sequence[int] | int) -> None:
    if code := function(*_values(arguments)):
        raise RuntimeError(f"the depth CRF on the GPU failed: CUDA error {code}")


# -------------------------------------------------------------------------------------------- gradients
def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    logits, kernel, weight, ctx.iterations = inputs
    ctx.save_for_backward(logits, kernel, weight)


def _backward(ctx, grad: Tensor) -> tuple:
    gradients = torch.ops.bevnext.crf_backward(grad, *ctx.saved_tensors, ctx.iterations)
    return gradients[0], None, gradients[1], None


crf.register_autograd(_backward, setup_context=_setup_context)


def _check(
    logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int, grad: Tensor | None = None
) -> None:
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
    if grad is not None and (grad.shape, grad.dtype, grad.device) != (
        logits.shape,
        logits.dtype,
        logits.device,
    ):
        raise ValueError(
            f"gradient: {tuple(grad.shape)} {grad.dtype} on {grad.device}, expected as the logits, "
            f"{tuple(logits.shape)} {logits.dtype} on {logits.device}"
        )


def _kernel(kernel: Tensor, logits: Tensor) -> Tensor:
    return kernel.to(logits.dtype).contiguous()


def _call(name: str, *arguments: Tensor | Sequence[int] | float) -> None:
    if getattr(_cpu_library(), name)(*_values(arguments), torch.get_num_threads()):
        raise MemoryError(f"{name}: not enough memory")


def _values(arguments: Sequence[Tensor | Sequence[int] | float]) -> list:
    """As the C interface takes them: addresses of tensors, and of arrays of integers."""
    values: list = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            values.append(argument.data_ptr())
        elif isinstance(argument, Sequence):
            values.append((ctypes.c_int64 * len(argument))(*argument))
        else:
            values.append(argument)
    return values
