# SPDX-License-Identifier: Apache-2.0
"""The pooling operators: against the plain form, in traced programs, and the choice of a form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bevnext_core.config import published_config
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.view_transform import ViewTransform
from bevnext_core.ops.bev_pool import plain as pooling
from bevnext_core.ops.bev_pool.plain import (
    PoolPlan,
    bev_pool,
    bev_pool_form,
    bev_pool_plain,
    is_channels_last,
    sorted_points,
)
from tests.core.test_bev_pool import KINDS, random_case


def case(kind: str = "random", channels: int = 7) -> tuple[PoolPlan, Tensor, Tensor]:
    plan, _ = random_case(2, 4, 5, 3, 17, (9, 19), kind)
    torch.manual_seed(5)
    return plan, torch.rand(4, 5, 3, 17), torch.randn(4, channels, 3, 17)


def gradients(pool, depth: Tensor, context: Tensor, plan: PoolPlan, grad: Tensor) -> tuple[Tensor, ...]:
    depth, context = depth.detach().requires_grad_(), context.detach().requires_grad_()
    out = pool(depth, context, plan)
    out.backward(grad)
    return out.detach(), depth.grad, context.grad


def test_the_cpu_has_a_compiled_form() -> None:
    assert bev_pool_form("cpu") == "c++"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 16, 35, 160, 250])
def test_against_plain(kind: str, channels: int) -> None:
    """Values and gradients, in both memory layouts of context and of the incoming gradient."""
    plan, depth, context = case(kind, channels)
    for layout in (torch.contiguous_format, torch.channels_last):
        context = context.contiguous(memory_format=layout)
        grad = torch.randn(2, channels, 9, 19).contiguous(memory_format=layout)
        found = gradients(bev_pool, depth, context, plan, grad)
        expected = gradients(bev_pool_plain, depth, context, plan, grad)
        assert is_channels_last(found[0]) == is_channels_last(expected[0]) == is_channels_last(context)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_plan_is_that_of_a_stable_sort(kind: str) -> None:
    for shape, size in (((4, 5, 3, 17), (9, 19)), ((3, 2, 64, 81), (2, 3))):  # the latter in several parts
        plan, cells = random_case(2, *shape, size, kind)
        torch.set_num_threads(3)
        try:
            parts = PoolPlan(cells, 2, size, shape).sorted
        finally:
            torch.set_num_threads(1)
        expected = sorted_points(cells, shape[1], shape[2] * shape[3], 2 * size[0] * size[1])
        for found in (plan.sorted, parts):
            assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_cameras_that_share_maps() -> None:
    """Cameras in any order of maps, two of them in the same, one that sees nothing, and maps that none sees."""
    shape, size = (6, 3, 4, 18), (5, 7)
    cells = torch.randint(0, 35, (6, 3 * 4 * 18))
    cells += 35 * torch.tensor([4, 1, 1, 0, 6, 4])[:, None]
    cells[3] = -1
    plan = PoolPlan(cells.flatten(), 8, size, shape)
    depth, context = torch.rand(shape), torch.randn(6, 33, 4, 18)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        torch.testing.assert_close(bev_pool(depth, context, plan), bev_pool_plain(depth, context, plan))
    torch.set_num_threads(1)


def test_results_do_not_depend_on_threads() -> None:
    plan, depth, context = case("random", 40)
    grad = torch.randn(2, 40, 9, 19)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(gradients(bev_pool, depth, context, plan, grad))
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("types", [(torch.float16, torch.float16), (torch.float32, torch.bfloat16)])
def test_half_gradients_have_the_inputs_types(types: tuple[torch.dtype, torch.dtype]) -> None:
    plan, depth, context = case()
    depth, context = depth.to(types[0]), context.to(types[1])
    grad = torch.randn(2, 7, 9, 19)
    found = gradients(bev_pool, depth, context, plan, grad)
    expected = gradients(bev_pool_plain, depth, context, plan, grad)
    assert (found[1].dtype, found[2].dtype) == types
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool) -> None:
    """Schema, shape inference, gradients, tracing with dynamic shapes."""
    plan, depth, context = case()
    if channels_last:
        context = context.contiguous(memory_format=torch.channels_last)
    depth.requires_grad_()
    context.requires_grad_()
    operator = torch.ops.bevnext.bev_pool.default
    torch.library.opcheck(operator, (depth, context, plan.cells, *[None] * 3, [2, 9, 19], channels_last))
    with torch.no_grad():
        values = (torch.randn(2, 7, 9, 19), depth.detach(), context.detach(), plan.cells, channels_last)
        torch.library.opcheck(torch.ops.bevnext.bev_pool_backward.default, values)
        torch.library.opcheck(torch.ops.bevnext.bev_pool_plan.default, (plan.cells, 5, 51, 342))


class Pool(torch.nn.Module):
    def forward(self, depth: Tensor, context: Tensor, cells: Tensor) -> Tensor:
        plan = PoolPlan(cells, 2, (9, 19), (4, 5, 3, 17))
        return bev_pool(depth.softmax(1), context, plan) * 2


def test_compile_without_graph_break() -> None:
    plan, depth, context = case()
    compiled = torch.compile(Pool(), backend="aot_eager", fullgraph=True)
    results = []
    for module in (Pool(), compiled):
        d, c = depth.clone().requires_grad_(), context.clone().requires_grad_()
        out = module(d, c, plan.cells)
        out.sum().backward()
        results.append((out.detach(), d.grad, c.grad))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    plan, depth, context = case()
    program = torch.export.export(Pool(), (depth, context, plan.cells), strict=strict)
    assert "bevnext.bev_pool" in str(program.graph)
    other = torch.randn_like(context)
    torch.testing.assert_close(program.module()(depth, other, plan.cells), Pool()(depth, other, plan.cells))


def test_autocast_keeps_fp32() -> None:
    plan, depth, context = case()
    with torch.autocast("cpu", torch.bfloat16):
        out = bev_pool(depth, context, plan)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, bev_pool_plain(depth, context, plan))


def test_wrong_indices_are_refused() -> None:
    plan, depth, context = case()
    for wrong in (plan.cells[:-1], plan.cells.long()):
        with pytest.raises(ValueError, match=r"cells.*expected"):
            torch.ops.bevnext.bev_pool(depth, context, wrong, None, None, None, [2, 9, 19], False)
    with pytest.raises(ValueError, match=r"cells.*expected"):
        torch.ops.bevnext.bev_pool_backward(torch.rand(2, 7, 9, 19), depth, context, plan.cells[:-1], False)


# -------------------------------------------------------------------------------------------- geometry
def random_geometry(samples: int, frames: int, cameras: int) -> tuple[ViewTransform, CameraGeometry]:
    """Cameras that look anywhere, images that are turned and scaled, some of them missing."""
    generator = torch.Generator().manual_seed(6)

    def turn(angles: Tensor) -> Tensor:
        axes = torch.zeros(*angles.shape[:-1], 3, 3)
        axes[..., 0, 1], axes[..., 0, 2], axes[..., 1, 2] = angles.unbind(-1)
        return torch.linalg.matrix_exp(axes - axes.mT)

    def random(*shape: int) -> Tensor:
        return torch.rand(samples, frames, cameras, *shape, generator=generator) - 0.5

    config = published_config(2)
    view = ViewTransform(config.image, config.depth, config.bev)
    intrinsics = torch.diag_embed(torch.tensor([1000.0, 1000.0, 1.0])).repeat(samples, frames, cameras, 1, 1)
    intrinsics[..., :2, 2] = torch.tensor([800.0, 450.0]) + 40 * random(2)
    image_rotation = (
        turn(random(3) * torch.tensor([0.2, 0.0, 0.0])) * torch.tensor([0.44, 0.44, 1.0])[:, None]
    )
    bda = turn(torch.rand(samples, 3, generator=generator) * torch.tensor([0.8, 0.0, 0.0]))
    upright = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    rotation = turn(random(3) * torch.tensor([6.0, 0.2, 0.2])) @ upright
    shift = torch.tensor([0.0, -140.0, 0.0]) + 20 * random(3) * torch.tensor([1.0, 1.0, 0.0])
    geometry = CameraGeometry(rotation, 4 * random(3), intrinsics, image_rotation, shift, bda)
    geometry.valid[-1, -1, 0] = False
    return view, geometry


def test_cells_of_points() -> None:
    """One pass in C++ and the network's formula agree, but for points that rounding puts across a border."""
    view, geometry = random_geometry(2, 2, 3)
    found, expected = view.plan(geometry).cells, view.cell_of_points(geometry)
    assert found.dtype == expected.dtype == torch.int32
    assert 0.1 < (expected >= 0).float().mean() < 0.9
    assert (expected.view(2, 2, 3, -1)[1, 1, 0] == -1).all()
    # None on the machine on which this was written; other libraries may use fused multiply-adds.
    assert (found != expected).sum() <= 8 * 12


class Waits(TorchDispatchMode):
    """Notes each operation for which the host would have to hear from a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::_linalg_check_errors", "aten::_local_scalar_dense", "aten::nonzero"):
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_a_plan_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU makes it: from the geometry to the sorted points."""
    view, geometry = random_geometry(2, 2, 3)
    monkeypatch.setenv("BEVNEXT_BEV_POOL", "plain")
    with Waits() as waits:
        _ = view.plan(geometry).sorted
    assert not waits.found
    with Waits() as waits:
        torch.inverse(geometry.intrinsics)
    assert waits.found == ["aten::_linalg_check_errors"]


def test_opcheck_cells() -> None:
    frustum, projections = torch.rand(3, 50) * 10, torch.randn(4, 33)
    maps = torch.tensor([0, 1, -1, 1], dtype=torch.int32)
    values = (frustum, projections, maps, (-5.0, -5.0, -5.0), (1.0, 2.0, 10.0), (5, 10))
    torch.library.opcheck(torch.ops.bevnext.frustum_cells.default, values)
    with pytest.raises(ValueError, match=r"\[M, 33\]"):
        torch.ops.bevnext.frustum_cells(frustum, projections[:, :32], *values[2:])


# -------------------------------------------------------------------------------------------- choice
def test_forcing_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, depth, context = case()
    monkeypatch.setenv("BEVNEXT_BEV_POOL", "plain")
    assert bev_pool_form("cpu") == "plain"
    monkeypatch.setattr(pooling.torch.ops.bevnext, "bev_pool", None)
    assert torch.equal(bev_pool(depth, context, plan), bev_pool_plain(depth, context, plan))
