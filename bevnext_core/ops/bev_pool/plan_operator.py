"""The operators ``bevnext::frustum_cells`` and ``bevnext::bev_pool_plan``: what a pooling plan is made of, on the CPU.

Both give what the plain PyTorch forms give, bit for bit. The work is done by ``bev_pool_plan.cpp``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core.ops import native


@functools.cache
def plan_library() -> ctypes.CDLL:
    """``bev_pool_plan.cpp``, compiled. Without fused multiply-adds: it has to round as PyTorch does.

    Raises:
        NativeBuildError: no compiler, or it failed.
    """
    source = Path(__file__).parent / "bev_pool_plan.cpp"
    library = native.load(source, flags=("-ffp-contract=off", "-fno-trapping-math"))
    p, n, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.bev_pool_plan.argtypes = [p, n, n, n, n, p, p, p, i]
    library.bev_pool_frustum_cells.argtypes = [p, p, p, p, n, n, i, i, p, i]
    return library


def _run(function, *arguments: Tensor | int) -> None:
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if function(*values, torch.get_num_threads()):
        raise MemoryError(f"{function.__name__}: not enough memory")


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
    _run(plan_library().bev_pool_plan, cells, cameras, bins, plane, total, points, pixels, starts)
    return points, pixels, starts


@bev_pool_plan.register_fake
def _(cells: Tensor, bins: int, plane: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
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
    values = (frustum, projections, map_of_camera, grid, cameras, count, *size, cells)
    _run(plan_library().bev_pool_frustum_cells, *values)
    return cells


@frustum_cells.register_fake
def _(
    frustum: Tensor,
    projections: Tensor,
    map_of_camera: Tensor,
    lower: Sequence[float],
    interval: Sequence[float],
    size: Sequence[int],
) -> Tensor:
    return frustum.new_empty(projections.shape[0] * frustum.shape[1], dtype=torch.int32)
