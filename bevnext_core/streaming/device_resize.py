# SPDX-License-Identifier: Apache-2.0
"""PIL's antialiased bicubic resize where the images are, in PIL's own integer arithmetic.

PIL resizes 8-bit images in two passes, first along rows, then along columns. Weights are rounded to multiples of
2^-22; a pass sums weight times pixel in int32, adds one half, drops the 22 bits and clamps to 0..255. The same
is done here, so the result equals PIL's bit for bit, on any device and in any order of summation. (Where PIL was
compiled with fused multiply-adds, as on ARM, a weight may differ in its last bit and a pixel by one level.)
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from bevnext_core.streaming.preprocess import ImageTransform

BITS = 22
"""Fractional bits of a weight: what 8 bits of a pixel, a sign and a bit for overshoot leave of 32."""
SUPPORT = 2.0
"""Half the width of the bicubic kernel, in pixels of the smaller image."""
SHARPNESS = -0.5
"""The bicubic kernel's parameter a (slope at 1)."""


def resize_and_crop_on_device(images: Tensor, transform: ImageTransform) -> Tensor:
    """Canvases as :func:`bevnext_core.streaming.preprocess.resize_and_crop` makes them, of N images of one size.

    Args:
        images: ``[N, H, W, 3]`` uint8.

    Returns:
        ``[N, H', W', 3]`` uint8 at the network's size; what the crop takes from outside of the image is black.
    """
    left, top, right, bottom = transform.crop
    width, height = transform.resized
    canvas = images.new_zeros(len(images), bottom - top, right - left, images.shape[3])
    columns, rows = slice(max(left, 0), min(right, width)), slice(max(top, 0), min(bottom, height))
    if columns.start >= columns.stop or rows.start >= rows.stop:
        return canvas
    # Only what the crop keeps is computed, and of the first pass only the rows that the second one reads.
    read, weights = _taps(images.shape[1], height, rows.start, rows.stop)
    used = read[weights != 0]
    first, last = int(used.min()), int(used.max()) + 1
    where = str(images.device)
    part = _pass(images[:, first:last], 2, _tables(images.shape[2], width, columns.start, columns.stop, 0, where))
    part = _pass(part, 1, _tables(images.shape[1], height, rows.start, rows.stop, first, where))
    canvas[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = part
    return canvas


def _pass(images: Tensor, dim: int, tables: tuple[Tensor, Tensor]) -> Tensor:
    """One pass of ``[N, H, W, 3]`` uint8 along ``dim``: 1, columns, or 2, rows."""
    total: Tensor | int = 1 << (BITS - 1)
    for index, factor in zip(*tables, strict=True):
        total = (images.index_select(dim, index).int() * factor.view(-1, *[1] * (3 - dim))).add_(total)
    assert isinstance(total, Tensor)
    return (total >> BITS).clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _tables(size: int, resized: int, start: int, stop: int, first: int, device: str) -> tuple[Tensor, Tensor]:
    """:func:`_taps` on the device, ``[taps, stop - start]``, with indices from ``first`` on; copied there once."""
    read, weights = _taps(size, resized, start, stop)
    # A tap that is not used weighs 0 and may read anything.
    indices = np.where(weights != 0, read - first, 0)
    with torch.inference_mode(False):
        return tuple(torch.from_numpy(table.T.copy()).to(device) for table in (indices, weights))  # type: ignore[return-value]


@functools.lru_cache(maxsize=64)
def _taps(size: int, resized: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """What pixels ``start`` to ``stop`` of a line of ``size`` pixels, resized to ``resized``, are made of.

    Returns:
        indices into the line and their weights times 2^22, ``[stop - start, taps]`` int32 each; unused taps weigh 0.
    """
    if size == resized:  # PIL leaves the pass out, which is what these do
        pixels = np.arange(start, stop, dtype=np.int32)[:, None]
        return pixels, np.full_like(pixels, 1 << BITS)
    scale = size / resized
    stretch = max(scale, 1.0)
    reach = SUPPORT * stretch
    center = (np.arange(start, stop) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), size)
    read = first[:, None] + np.arange(math.ceil(reach) * 2 + 1)
    used = read < last[:, None]
    weights = np.where(used, _bicubic((read - center[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    # One by one from the first, as cumsum adds: another order of summation may round otherwise.
    weights /= weights.cumsum(1)[:, -1:]
    fixed = np.trunc(weights * (1 << BITS) + np.where(weights < 0, -0.5, 0.5))
    used_taps = max(1, int(used.sum(1).max()))
    indices = np.where(used, read, 0)[:, :used_taps]
    return indices.astype(np.int32), fixed[:, :used_taps].astype(np.int32)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """The kernel at ``x``, with the operations in PIL's order."""
    x, a = np.abs(x), SHARPNESS
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))
