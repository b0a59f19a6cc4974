# SPDX-License-Identifier: Apache-2.0
"""The pooling kernels: emulated on the CPU, compiled for every architecture, and, where there is one, on a GPU."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bevnext_benchmarks.gpu.baseline import baseline_backward, baseline_forward
from bevnext_core.ops import native
from bevnext_core.ops.bev_pool import operator as bev_pool_op
from bevnext_core.ops.bev_pool.plain import (
    PoolPlan,
    bev_pool,
    bev_pool_form,
    bev_pool_plain,
    is_channels_last,
)
from bevnext_core.ops.native import NativeBuildError
from tests.core import emulation
from tests.core.test_bev_pool import KINDS, random_case

SOURCE = bev_pool_op.CUDA.source


@pytest.fixture(scope="module")
def emulated() -> ctypes.CDLL:
    return emulation.emulated(bev_pool_op.CUDA)


def with_gradients(pool, depth: Tensor, context: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    depth, context = depth.detach().requires_grad_(), context.detach().requires_grad_()
    out = pool(depth, context)
    out.backward(grad)
    return out.detach(), depth.grad, context.grad


def through_emulation(
    library: ctypes.CDLL, depth: Tensor, context: Tensor, grad: Tensor, plan: PoolPlan
) -> tuple[Tensor, ...]:
    last = is_channels_last(context)
    out = bev_pool_op.cuda_forward(library, 0, depth, context, *plan.sorted, (plan.maps, *plan.size), last)
    return out, *bev_pool_op.cuda_backward(library, 0, grad, depth, context, plan.cells, last)


def assert_equal_to_plain(
    found: tuple[Tensor, ...], depth: Tensor, context: Tensor, grad: Tensor, plan: PoolPlan
) -> None:
    """Against the plain form in double precision, to the rounding of the inputs' types."""
    wide = with_gradients(
        lambda d, c: bev_pool_plain(d, c, plan), depth.double(), context.double(), grad.double()
    )
    types = (torch.promote_types(torch.float32, depth.dtype), depth.dtype, context.dtype)
    for value, expected, dtype in zip(found, wide, types):
        rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-12}.get(dtype, 2e-6)
        largest = expected.abs().max().clamp(min=1e-6)
        assert (value.double() - expected).abs().max() <= rounding * largest, dtype


def inputs(
    plan: PoolPlan, channels: int, depth_type: torch.dtype, context_type: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    cameras, _, height, width = plan.depth_shape
    depth = torch.rand(*plan.depth_shape, generator=generator).to(device, depth_type)
    context = torch.randn(cameras, channels, height, width, generator=generator).to(device, context_type)
    wide = torch.promote_types(torch.float32, torch.promote_types(depth_type, context_type))
    grad = torch.randn(plan.maps, channels, *plan.size, generator=generator).to(device, wide)
    return depth, context, grad


F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


# -------------------------------------------------------------------------------------------- emulated
@pytest.mark.parametrize("kind", KINDS)
def test_emulated_kernels(kind: str, emulated: ctypes.CDLL) -> None:
    """Odd sizes, two maps, every kind of plan, in both memory layouts."""
    plan, _ = random_case(2, 2, 5, 3, 9, (5, 9), kind)
    depth, context, grad = inputs(plan, 7, F32, F32)
    assert_equal_to_plain(through_emulation(emulated, depth, context, grad, plan), depth, context, grad, plan)
    context = context.contiguous(memory_format=torch.channels_last)
    found = through_emulation(emulated, depth, context, grad, plan)
    assert is_channels_last(found[0]) and is_channels_last(found[2])
    assert_equal_to_plain(found, depth, context, grad, plan)


@pytest.mark.parametrize(
    ("channels", "depth_type", "context_type"),
    [
        (160, F32, F32),  # four vectors a lane, three points side by side
        (80, F32, BF16),  # mixed types, as under autocast
        (150, BF16, BF16),  # two vectors a lane, the last one half empty
        (300, F32, F32),  # two blocks of channels
        (36, F64, F64),
        (130, F64, F64),
    ],
)
def test_emulated_kernels_by_type(
    channels: int, depth_type: torch.dtype, context_type: torch.dtype, emulated: ctypes.CDLL
) -> None:
    plan, _ = random_case(1, 2, 35, 2, 3, (2, 3), "random")  # more depth bins than a warp has lanes
    depth, context, grad = inputs(plan, channels, depth_type, context_type)
    assert_equal_to_plain(through_emulation(emulated, depth, context, grad, plan), depth, context, grad, plan)


def test_emulated_heavy_cells(emulated: ctypes.CDLL) -> None:
    """Cells with so many points that all warps of a block sum them together."""
    plan, _ = random_case(1, 2, 40, 5, 6, (3, 4), "few cells")
    assert plan.counts().max() > 512
    depth, context, grad = inputs(plan, 20, F32, F32)
    assert_equal_to_plain(through_emulation(emulated, depth, context, grad, plan), depth, context, grad, plan)


def test_emulated_baseline(emulated: ctypes.CDLL) -> None:
    plan, _ = random_case(2, 2, 5, 3, 4, (3, 5), "random")
    depth, context, grad = inputs(plan, 6, F32, F32)
    table, rows = context.permute(0, 2, 3, 1).reshape(-1, 6), grad.permute(0, 2, 3, 1).reshape(-1, 6)
    out = baseline_forward(emulated, depth, table, plan)
    depth_grad, table_grad = baseline_backward(emulated, rows, depth, table, plan)
    found = (
        out.view(2, 3, 5, 6).permute(0, 3, 1, 2),
        depth_grad,
        table_grad.view(2, 3, 4, 6).permute(0, 3, 1, 2),
    )
    assert_equal_to_plain(found, depth, context, grad, plan)


# -------------------------------------------------------------------------------------------- compiled
@pytest.mark.slow
def test_compiles_for_every_architecture() -> None:
    try:
        native.cuda_compiler()
    except NativeBuildError as error:
        pytest.skip(str(error))
    library = native.load_cuda(SOURCE, native.CUDA_CAPABILITIES)
    content = Path(library._name).read_bytes()
    for major, minor in native.CUDA_CAPABILITIES:
        assert f"sm_{major}{minor}".encode() in content


def test_an_unknown_card_gets_older_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed:
        stdout = "compute_75\ncompute_80\ncompute_90\n"

    monkeypatch.setattr(native.subprocess, "run", lambda *_, **__: Listed)
    assert native._cuda_targets(("nvcc",), [(9, 0)]) == ["-gencode", "arch=compute_90,code=sm_90"]
    assert native._cuda_targets(("nvcc",), [(12, 1)]) == ["-gencode", "arch=compute_90,code=compute_90"]
    with pytest.raises(NativeBuildError, match=r"7\.0"):
        native._cuda_targets(("nvcc",), [(7, 0)])


# -------------------------------------------------------------------------------------------- on a GPU
@pytest.fixture
def gpu() -> str:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    assert bev_pool_form("cuda") == "cuda"
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("types", [(F32, F32), (F32, F16), (F16, F16), (BF16, BF16), (F64, F64)])
def test_gpu_against_plain(kind: str, types: tuple[torch.dtype, torch.dtype], gpu: str) -> None:
    for size, channels in (((5, 9), 7), ((16, 16), 160)):
        plan = random_case(2, 4, 37, 3, 9, size, kind)[0].to(gpu)
        depth, context, grad = inputs(plan, channels, *types, gpu)
        pool = partial(bev_pool, plan=plan)
        for layout in (torch.contiguous_format, torch.channels_last):
            context = context.contiguous(memory_format=layout)
            found = with_gradients(pool, depth, context, grad)
            assert_equal_to_plain(found, depth, context, grad, plan)
            again = with_gradients(pool, depth, context, grad)
            assert all(torch.equal(a, b) for a, b in zip(found, again))


@pytest.mark.gpu
def test_gpu_plan_needs_no_synchronisation(gpu: str) -> None:
    expected, cells = random_case(2, 4, 5, 3, 9, (5, 9), "random")
    cells = cells.to(gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        order = PoolPlan(cells, 2, (5, 9), (4, 5, 3, 9)).sorted
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for found, right in zip(order, expected.sorted):
        assert torch.equal(found.cpu(), right)


@pytest.mark.gpu
def test_gpu_graph(gpu: str) -> None:
    plan = random_case(1, 2, 5, 3, 9, (5, 9), "random")[0].to(gpu)
    depth, context, _ = inputs(plan, 16, F32, F16, gpu)
    bev_pool(depth, context, plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = bev_pool(depth, context, plan)
    context.mul_(2)
    graph.replay()
    torch.testing.assert_close(out, bev_pool_plain(depth, context, plan))


@pytest.mark.gpu
def test_gpu_opcheck(gpu: str) -> None:
    plan = random_case(1, 2, 5, 3, 9, (5, 9), "random")[0].to(gpu)
    depth, context, _ = inputs(plan, 6, F32, F32, gpu)
    depth.requires_grad_(), context.requires_grad_()
    arguments = (depth, context, plan.cells, *plan.sorted, [1, 5, 9], False)
    torch.library.opcheck(torch.ops.bevnext.bev_pool.default, arguments)
