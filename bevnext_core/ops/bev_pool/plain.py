# SPDX-License-Identifier: Apache-2.0
"""BEV pooling: each BEV cell sums depth x context over the frustum points that fall into it.

``bev_pool(depth, context, plan)`` is the one entry; the plan (which point goes to which cell) is built once
per calibration and relative pose. No form ever holds the lifted frustum (points x channels). There are three:

- ``c++`` on the CPU and ``cuda`` on a GPU: registered operators (:mod:`bevnext_core.ops.bev_pool.operator`), compiled
  on first use. Deterministic, the gradients too.
- ``plain``: a weighted embedding bag in plain PyTorch, for any device. It is the oracle of the others, and what
  is used (with one line in the log) where there is no compiler.

``bev_pool_form(device)`` tells which one is in use. The environment variable ``BEVNEXT_BEV_POOL`` decides:
``auto`` (as above), ``plain``, or ``native`` (an error rather than the plain form).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bevnext_core.ops.bev_pool.operator import FORMS, is_channels_last, memory_format

bev_pool_form = FORMS.of
"""The form that :func:`bev_pool` takes on a device: ``c++``, ``cuda`` or ``plain``."""


@dataclass
class PoolPlan:
    """Which frustum points are summed into which BEV cells.

    Attributes:
        cells: ``[M*D*h*w]`` int32 (made so from any integers), the cell of every point of a flattened depth tensor
            ``[M, D, h, w]``, of G maps row-major, ``0 .. G*Y*X - 1``; negative: none.
        maps: G; size: (Y, X); depth_shape: (M, D, h, w).
    """

    cells: Tensor
    maps: int
    size: tuple[int, int]
    depth_shape: tuple[int, int, int, int]
    _sorted: tuple[Tensor, Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        self.cells = self.cells.int().contiguous()

    @property
    def sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points, pixels, cell starts; sorted on first use (the C++ form goes along the image's columns without).

        ``points [P]`` int32: all points, grouped by cell and in rising order within one; those in no cell come
        last. ``pixels [P]`` int32: the pixel of each, index into ``[M, h, w]``. ``cell_starts [G*Y*X + 1]`` int32:
        where each cell's points begin, and where the last one's end. All shapes are known beforehand: on a GPU
        nothing waits for the device.
        """
        if self._sorted is None:
            _, bins, height, width = self.depth_shape
            total = self.maps * self.size[0] * self.size[1]
            native = FORMS.on(self.cells.device.type) == "c++"
            sort = torch.ops.bevnext.bev_pool_plan if native else sorted_points
            self._sorted = sort(self.cells, bins, height * width, total)
        return self._sorted

    def counts(self) -> Tensor:
        """Points per cell, ``[G, Y, X]``."""
        return self.sorted[2].diff().view(self.maps, *self.size)

    def to(self, device: torch.device | str) -> PoolPlan:
        return PoolPlan(self.cells.to(device), self.maps, self.size, self.depth_shape)


def sorted_points(cells: Tensor, bins: int, plane: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """What :attr:`PoolPlan.sorted` holds, in plain PyTorch."""
    # Points in no cell sort to the end. Narrow keys sort several times faster on the CPU.
    keys = torch.where(cells < 0, total, cells).to(torch.int16 if total < 2**15 else torch.int32)
    keys, order = torch.sort(keys, stable=True)
    starts = torch.searchsorted(keys.int(), torch.arange(total + 1, dtype=torch.int32, device=cells.device))
    points = order.int()
    pixels = points // (bins * plane) * plane + points % plane
    return points, pixels, starts.int()


def bev_pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """Sum ``depth * context`` over each cell's points, in float32 or wider.

    Args:
        depth: ``[M, D, h, w]`` depth distribution; context: ``[M, C, h, w]``, read as it lies in memory when
            contiguous or channels-last.

    Returns:
        ``[G, C, Y, X]`` (row = y, column = x, both growing), channels-last when context is.

    Raises:
        ValueError: when the shapes are not those of the plan.
    """
    if tuple(depth.shape) != plan.depth_shape:
        raise ValueError(f"depth is {tuple(depth.shape)}, the plan is for {plan.depth_shape}")
    cameras, _, height, width = plan.depth_shape
    if context.shape[0] != cameras or tuple(context.shape[2:]) != (height, width):
        raise ValueError(f"context is {tuple(context.shape)}, expected ({cameras}, C, {height}, {width})")
    form = FORMS.on(depth.device.type)
    if form == "plain":
        return bev_pool_plain(depth, context, plan)
    order = plan.sorted if form == "cuda" else (None, None, None)
    shape = (plan.maps, *plan.size)
    return torch.ops.bevnext.bev_pool(depth, context, plan.cells, *order, shape, is_channels_last(context))


def bev_pool_plain(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """:func:`bev_pool` in plain PyTorch, whatever form is in use; takes the same arguments."""
    dtype = torch.promote_types(torch.float32, torch.promote_types(depth.dtype, context.dtype))
    points, pixels, starts = plan.sorted
    total = starts.numel() - 1
    if depth.device.type == "cpu":
        used = int(starts[-1])
        points, pixels = points[:used], pixels[:used]
    with torch.autocast(depth.device.type, enabled=False):
        table = context.permute(0, 2, 3, 1).reshape(-1, context.shape[1]).to(dtype)
        weights = depth.reshape(-1).to(dtype).index_select(0, points)
        # The points in no cell make one more bag, where there are any; its sum is dropped.
        bev = F.embedding_bag(pixels, table, starts, mode="sum", per_sample_weights=weights)[:total]
    bev = bev.view(plan.maps, *plan.size, -1).permute(0, 3, 1, 2)
    return bev.contiguous(memory_format=memory_format(is_channels_last(context)))
