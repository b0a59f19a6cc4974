"""BEV pooling: each BEV cell sums depth x context over the frustum points that fall into it.

``bev_pool(depth, context, plan)`` is the one entry; the plan (which point goes to which cell) is built once
per calibration and relative pose. This form is plain PyTorch: a weighted embedding bag whose table is the
context of every pixel and whose bags are the cells. It never holds the lifted frustum (points x channels),
runs on any device, has gradients, and is the oracle for every faster form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class PoolPlan:
    """Which frustum points are summed into which BEV cells.

    Attributes:
        points: ``[P]`` int32, indices into a flattened depth tensor ``[M, D, h, w]``, grouped by cell and in
            rising order within one.
        pixels: ``[P]`` int32, the pixel of each point: index into ``[M, h, w]``.
        cell_starts: ``[G*Y*X + 1]`` int32, where each cell's points begin; cells of G maps, row-major.
        maps: G; size: (Y, X); depth_shape: (M, D, h, w).
    """

    points: Tensor
    pixels: Tensor
    cell_starts: Tensor
    maps: int
    size: tuple[int, int]
    depth_shape: tuple[int, int, int, int]

    def counts(self) -> Tensor:
        """Points per cell, ``[G, Y, X]``."""
        return self.cell_starts.diff().view(self.maps, *self.size)

    def to(self, device: torch.device | str) -> PoolPlan:
        return PoolPlan(
            self.points.to(device),
            self.pixels.to(device),
            self.cell_starts.to(device),
            self.maps,
            self.size,
            self.depth_shape,
        )


def make_plan(
    cells: Tensor, maps: int, size: tuple[int, int], depth_shape: tuple[int, int, int, int]
) -> PoolPlan:
    """Group points by cell.

    Args:
        cells: ``[M*D*h*w]`` integer cell of every frustum point in ``0 .. maps*Y*X - 1``; negative: in no cell.
        maps, size, depth_shape: see :class:`PoolPlan`.
    """
    _, bins, height, width = depth_shape
    total = maps * size[0] * size[1]
    # Points in no cell sort to the end. Narrow keys sort several times faster on the CPU.
    keys = torch.where(cells < 0, total, cells).to(torch.int16 if total < 2**15 else torch.int32)
    keys, order = torch.sort(keys, stable=True)
    starts = torch.searchsorted(keys.int(), torch.arange(total + 1, dtype=torch.int32, device=cells.device))
    points = order[: int(starts[-1])].int()
    pixels = points // (bins * height * width) * (height * width) + points % (height * width)
    return PoolPlan(points, pixels, starts.int(), maps, size, depth_shape)


def bev_pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """Sum ``depth * context`` over each cell's points, in float32 or wider.

    Args:
        depth: ``[M, D, h, w]`` depth distribution; context: ``[M, C, h, w]``.

    Returns:
        ``[G, C, Y, X]`` (row = y, column = x, both growing).

    Raises:
        ValueError: when the shapes are not those of the plan.
    """
    if tuple(depth.shape) != plan.depth_shape:
        raise ValueError(f"depth is {tuple(depth.shape)}, the plan is for {plan.depth_shape}")
    cameras, _, height, width = plan.depth_shape
    if context.shape[0] != cameras or tuple(context.shape[2:]) != (height, width):
        raise ValueError(f"context is {tuple(context.shape)}, expected ({cameras}, C, {height}, {width})")
    dtype = torch.promote_types(torch.float32, torch.promote_types(depth.dtype, context.dtype))
    with torch.autocast(depth.device.type, enabled=False):
        table = context.permute(0, 2, 3, 1).reshape(-1, context.shape[1]).to(dtype)
        weights = depth.reshape(-1).to(dtype).index_select(0, plan.points)
        bev = F.embedding_bag(
            plan.pixels,
            table,
            plan.cell_starts,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )
    return bev.view(plan.maps, *plan.size, -1).permute(0, 3, 1, 2).contiguous()
