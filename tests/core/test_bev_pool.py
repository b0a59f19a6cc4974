# SPDX-License-Identifier: Apache-2.0
"""BEV pooling against a loop over points, its gradients, and its memory."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from torch import Tensor

from bevnext_core.ops.bev_pool.plain import PoolPlan, bev_pool


def random_case(
    maps: int,
    cameras: int,
    bins: int,
    height: int,
    width: int,
    size: tuple[int, int],
    kind: str,
    seed: int = 0,
) -> tuple[PoolPlan, Tensor]:
    """A plan and the cell of every point; ``kind`` says how points spread over cells."""
    generator = torch.Generator().manual_seed(seed)
    count, total = cameras * bins * height * width, maps * size[0] * size[1]
    if kind == "random":
        cells = torch.randint(-1, total, (count,), generator=generator)
    elif kind == "one cell":
        cells = torch.full((count,), total // 2)
    elif kind == "none":
        cells = torch.full((count,), -1)
    elif kind == "one point a cell":
        cells = torch.full((count,), -1)
        chosen = torch.randperm(count, generator=generator)[: min(count, total)]
        cells[chosen] = torch.randperm(total, generator=generator)[: len(chosen)]
    else:  # a few cells hold everything, most are empty
        cells = torch.randint(0, 3, (count,), generator=generator) * (total // 4)
    return PoolPlan(cells, maps, size, (cameras, bins, height, width)), cells


def by_loop(depth: Tensor, context: Tensor, cells: Tensor, maps: int, size: tuple[int, int]) -> np.ndarray:
    """The definition, point by point, in float64."""
    cameras, bins, height, width = depth.shape
    out = np.zeros((maps * size[0] * size[1], context.shape[1]))
    d, c = depth.detach().double().numpy(), context.detach().double().numpy()
    for point, cell in enumerate(cells.tolist()):
        if cell >= 0:
            m, k, y, x = np.unravel_index(point, (cameras, bins, height, width))
            out[cell] += d[m, k, y, x] * c[m, :, y, x]
    return out.reshape(maps, *size, -1).transpose(0, 3, 1, 2)


KINDS = ("random", "one cell", "none", "one point a cell", "few cells")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 4, 5, 3, 7), (1, 3, 2, 5, 4)])
def test_against_a_loop(kind: str, shape: tuple[int, ...]) -> None:
    maps, cameras, bins, height, width = shape
    size = (3, 5)
    plan, cells = random_case(maps, cameras, bins, height, width, size, kind)
    torch.manual_seed(1)
    depth = torch.rand(cameras, bins, height, width)
    for channels in (1, 7):
        context = torch.randn(cameras, channels, height, width)
        expected = by_loop(depth, context, cells, maps, size)
        np.testing.assert_allclose(bev_pool(depth, context, plan), expected, atol=1e-5)
        # The same from memory that is not contiguous.
        loose_depth = depth.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        loose_context = context.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        np.testing.assert_allclose(bev_pool(loose_depth, loose_context, plan), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    plan, _ = random_case(2, 2, 3, 2, 3, (2, 3), kind)
    torch.manual_seed(2)
    depth = torch.rand(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d, c: bev_pool(d, c, plan), (depth, context))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_summed_in_fp32(dtype: torch.dtype) -> None:
    plan, cells = random_case(1, 2, 30, 6, 7, (2, 2), "one cell")
    torch.manual_seed(3)
    depth, context = torch.rand(2, 30, 6, 7).to(dtype), torch.randn(2, 3, 6, 7).to(dtype)
    out = bev_pool(depth, context, plan)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, by_loop(depth, context, cells, 1, (2, 2)), rtol=1e-5, atol=1e-3)


def test_wrong_shapes_are_named() -> None:
    plan, _ = random_case(1, 2, 3, 2, 3, (2, 2), "random")
    with pytest.raises(ValueError, match="the plan is for"):
        bev_pool(torch.rand(2, 4, 2, 3), torch.rand(2, 1, 2, 3), plan)
    with pytest.raises(ValueError, match="context is"):
        bev_pool(torch.rand(2, 3, 2, 3), torch.rand(2, 1, 3, 3), plan)


def test_memory_does_not_grow_with_points_times_channels() -> None:
    """Full size: the lifted frustum would take 6 * 118 * 32 * 88 * 160 * 4 bytes = 1.28 GB."""
    plan, _ = random_case(1, 6, 118, 32, 88, (128, 128), "random")
    depth, context = torch.rand(6, 118, 32, 88), torch.rand(6, 160, 32, 88)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bev_pool(depth, context, plan)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 200e6
