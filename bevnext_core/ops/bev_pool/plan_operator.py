# SPDX-License-Identifier: Apache-2.0
"""The operators ``bevnext::frustum_cells`` and ``bevnext::bev_pool_plan``: what a pooling plan is made of, on the CPU.

Both give what the plain PyTorch forms give, bit for bit. The work is done by ``bev_pool_plan.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core.ops.compiled import INT, INT64, POINTER, HostCode

# Without fused multiply-adds: it has to round as PyTorch does.
PLAN = HostCode(
    Path(__file__).with_name("bev_pool_plan.cpp"),
    {
        "bev_pool_plan": [POINTER, *[INT64] * 4, *[POINTER] * 3],
        "bev_pool_frustum_cells": [*[POINTER] * 4, INT64, INT64, INT, INT, POINTER],
    },
    flags=("-ffp-contract=off", "-fno-trapping-math"),
)


@torch.library.custom_op("bevnext::bev_pool_plan", mutates_args=(), device_types="cpu")
def bev_pool_plan(cells: Tensor, bins: int, plane: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """``points``, ``pixels`` and ``cell_starts`` of a plan from ``cells [M*bins*plane]`` int32, contiguous."""
    if cells.dtype != torch.int32 or not cells.is_contiguous() or cells.numel() % (bins * plane):
        expected = f"M*{bins}*{plane} int32, contiguous"
        raise ValueError(f"cells: {tuple(cells.shape)} {cells.dtype}, expected {expected}")
    if max(cells.numel(), total) >= 2**31 - 1:
        raise ValueError(f"{cells.numel()} points, {total} cells: int32 cannot count them")
    points, pixels, starts = torch.empty_like(cells), torch.empty_like(cells), cells.new_empty(total + 1)
    cameras = cells.numel() // (bins * plane)
    PLAN("bev_pool_plan", cells, cameras, bins, plane, total, points, pixels, starts)
    return points, pixels, starts


@bev_pool_plan.register_fake
def _(cells, bins, plane, total):
    return torch.empty_like(cells), torch.empty_like(cells), cells.new_empty(total + 1)


@torch.library.custom_op("bevnext::frustum_cells", mutates_args=(), device_types="cpu")
def frustum_cells(
    frustum: Tensor,
    projections: Tensor,
    map_of_camera: Tensor,
    lower: Sequence[float],
    interval: Sequence[float],
    size: Sequence[int],
) -> Tensor:
    """The cell of every frustum point, ``[M*P]`` int32; -1: in none.

    Args:
        frustum: ``[3, P]``: u, v in pixels of the network's input, depth in metres.
        projections: ``[M, 33]``: inverse image rotation (9 values), image translation (3), ego_from_camera
            rotation x inverse intrinsics (9), translation (3), BEV augmentation (9).
        map_of_camera: ``[M]`` int32; negative: the camera has no image.
        lower, interval: x, y, z in metres, of a grid with one cell in z; size: (Y, X).
    """
    frustum, projections = frustum.float().contiguous(), projections.float().contiguous()
    map_of_camera = map_of_camera.int().contiguous()
    cameras, count = len(projections), frustum.shape[1]
    if frustum.shape[0] != 3 or tuple(projections.shape[1:]) != (33,) or len(map_of_camera) != cameras:
        shapes = [tuple(t.shape) for t in (frustum, projections, map_of_camera)]
        raise ValueError(
            f"frustum, projections and map_of_camera are {shapes}, expected [3, P], [M, 33], [M]"
        )
    grid = torch.tensor([*lower, *interval], dtype=torch.float32)
    cells = torch.empty(cameras * count, dtype=torch.int32)
    inputs = (frustum, projections, map_of_camera, grid)
    PLAN("bev_pool_frustum_cells", *inputs, cameras, count, *size, cells)
    return cells


@frustum_cells.register_fake
def _(frustum, projections, map_of_camera, lower, interval, size):
    return frustum.new_empty(projections.shape[0] * frustum.shape[1], dtype=torch.int32)
