# SPDX-License-Identifier: Apache-2.0
"""In what the convolutions compute: what ``auto`` stands for on a device, and fp32 that is not TF32.

Imports torch when it is needed: a command's options name the choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
AnyPrecision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(AnyPrecision)


def resolve_precision(precision: AnyPrecision, device: str | torch.device) -> Precision:
    """What ``auto`` stands for: fp16 on CUDA, bf16 on a processor that computes in it, else fp32; others stay."""
    import torch

    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "fp16"
    return "bf16" if bf16_unit() else "fp32"


def precision_text(precision: AnyPrecision, device: str | torch.device) -> str:
    """The precision asked for and what it stands for, as ``bf16 (auto: AMX)``."""
    import torch

    resolved = resolve_precision(precision, device)
    why = "CUDA" if torch.device(device).type == "cuda" else bf16_unit() or "no AVX512-BF16, no AMX"
    return f"{resolved} (auto: {why})" if precision == "auto" else resolved


def bf16_unit() -> str:
    """``AMX`` or ``AVX512-BF16``, with which this processor computes in bf16 and oneDNN makes use of it, or ``""``."""
    import torch

    units = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    if not torch.backends.mkldnn.is_available():
        return ""
    return next((unit for unit, ask in units.items() if getattr(torch.cpu, ask, bool)()), "")


@contextmanager
def ieee_fp32(device: str | torch.device) -> Iterator[None]:
    """On CUDA, convolutions and products of fp32 in IEEE fp32: PyTorch's convolutions use TF32 (10 bits) by default.

    The settings are the process's: they are put back at the end, and other threads meet them until then.
    """
    import torch

    if torch.device(device).type != "cuda":
        yield
        return
    backends = torch.backends
    settings = (backends.cuda.matmul, backends.cudnn.conv)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
