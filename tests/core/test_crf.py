# SPDX-License-Identifier: Apache-2.0
"""The CRF's mean field: the compiled form against its definition, its gradients, and its registration."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from bevnext_core.network.crf import DepthCrf
from bevnext_core.ops.crf.plain import mean_field, mean_field_form, mean_field_plain

KERNELS = ("none", "all", "soft", "patches", "one pair")


@pytest.fixture(autouse=True)
def compiled_form() -> None:
    assert mean_field_form("cpu") == "c++", "the tests compare the compiled form: a C++ compiler is needed"


def kernel_of(kind: str, cameras: int, height: int, width: int, seed: int = 0) -> Tensor:
    """float64 ``[M, 9, h, w]``; nothing says that it is symmetric, and at the border it points outside."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.zeros(cameras, 9, height, width, dtype=torch.float64)
    kernel[:, 4] = 1
    if kind == "all":
        kernel[:] = 1
    elif kind == "soft":
        kernel = torch.rand(cameras, 9, height, width, generator=generator, dtype=torch.float64)
    elif kind == "patches":
        alike = torch.rand(cameras, 9, height, width, generator=generator) < 0.05
        kernel[alike] = torch.rand(int(alike.sum()), generator=generator, dtype=torch.float64)
    elif kind == "one pair":
        kernel[cameras // 2, 8, height // 2, width // 2] = 0.7
    return kernel


def case(
    kind: str, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    kernel = kernel_of(kind, shape[0], *shape[2:], seed=seed + 1)
    return logits.to(dtype), kernel.to(dtype), torch.full((1,), 0.3 / shape[1], dtype=dtype)


def by_loop(logits: Tensor, kernel: Tensor, weight: float, iterations: int) -> np.ndarray:
    """The definition, patch by patch."""
    z, k = logits.double().numpy(), kernel.double().numpy()
    cameras, bins, height, width = z.shape
    price = np.abs(np.arange(bins)[:, None] - np.arange(bins)[None, :])

    def softmax(row: np.ndarray) -> np.ndarray:
        e = np.exp(row - row.max())
        return e / e.sum()

    q = np.apply_along_axis(softmax, 1, z)
    for _ in range(iterations):
        new = np.empty_like(q)
        for m, y, x in np.ndindex(cameras, height, width):
            message = np.zeros(bins)
            for tap in range(9):
                v, u = y + tap // 3 - 1, x + tap % 3 - 1
                if 0 <= v < height and 0 <= u < width:
                    message += k[m, tap, y, x] * q[m, :, v, u]
            new[m, :, y, x] = softmax(z[m, :, y, x] - weight * price @ message)
        q = new
    return q


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 7), (1, 12, 1, 33), (1, 3, 19, 1), (2, 7, 4, 8)])
def test_against_a_loop(kind: str, shape: tuple[int, int, int, int]) -> None:
    logits, kernel, weight = case(kind, shape)
    for iterations in (0, 1, 5):
        expected = by_loop(logits, kernel, float(weight), iterations)
        for form in (mean_field, mean_field_plain):
            np.testing.assert_allclose(
                form(logits, kernel, weight, iterations), expected, rtol=1e-10, atol=1e-14
            )
            single = form(logits.float(), kernel.float(), weight.float(), iterations)
            assert single.dtype == torch.float32 and single.is_contiguous()
            np.testing.assert_allclose(single, expected, rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KERNELS)
def test_memory_that_is_not_contiguous(kind: str) -> None:
    logits, kernel, weight = case(kind, (3, 9, 6, 11), torch.float32)
    upstream = torch.randn_like(logits)

    def results(logits: Tensor, kernel: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.detach().requires_grad_()
        q = mean_field(logits, kernel, weight, 4)
        return q.detach(), torch.autograd.grad(q, logits, upstream)[0]

    expected = results(logits, kernel, upstream)
    last = [values.contiguous(memory_format=torch.channels_last) for values in (logits, kernel, upstream)]
    apart = [values.repeat_interleave(2, 3)[..., ::2] for values in (logits, kernel, upstream)]
    assert not any(values.is_contiguous() for values in last + apart)
    for inputs in (last, apart):
        for result, right in zip(results(*inputs), expected, strict=True):
            assert torch.equal(result, right)
    # An upstream gradient without memory of its own.
    constant = results(logits, kernel, torch.ones(1).expand(3, 9, 6, 11))[1]
    assert torch.equal(constant, results(logits, kernel, torch.ones(3, 9, 6, 11))[1])


def weighted_field(kernel: Tensor, iterations: int, logits: Tensor, weight: Tensor) -> Tensor:
    return mean_field(logits, kernel, weight, iterations)


@pytest.mark.parametrize("kind", KERNELS)
def test_gradients(kind: str) -> None:
    logits, kernel, weight = case(kind, (2, 4, 3, 5))
    inputs = (logits.requires_grad_(), weight.requires_grad_())
    for iterations in (0, 3):
        assert torch.autograd.gradcheck(partial(weighted_field, kernel, iterations), inputs)


@pytest.mark.parametrize("kind", KERNELS)
def test_gradients_over_many_blocks(kind: str) -> None:
    logits, kernel, weight = case(kind, (2, 30, 7, 13), seed=3)
    upstream = torch.randn_like(logits)
    results = []
    for form in (mean_field, mean_field_plain):
        inputs = (logits.detach().requires_grad_(), weight.detach().requires_grad_())
        results.append(torch.autograd.grad(form(inputs[0], kernel, inputs[1], 20), inputs, upstream))
    for result, right in zip(*results, strict=True):
        np.testing.assert_allclose(result, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "all"])
@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_accuracy_over_many_bins(kind: str, scale: float) -> None:
    """118 bins in float32 lose nothing against the matrix product: running sums without cancellation."""
    logits, kernel, _ = case(kind, (1, 118, 9, 17))
    logits, weight = logits * scale / 2, torch.full((1,), 0.015, dtype=torch.float64)
    exact = mean_field_plain(logits, kernel, weight, 20)
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    errors, gradient_errors = [], []
    inputs = (logits.requires_grad_(), weight.requires_grad_())
    exact_gradients = torch.autograd.grad(
        mean_field_plain(inputs[0], kernel, inputs[1], 20), inputs, upstream
    )
    for form in (mean_field, mean_field_plain):
        singles = tuple(values.detach().float().requires_grad_() for values in inputs)
        q = form(singles[0], kernel.float(), singles[1], 20)
        gradients = torch.autograd.grad(q, singles, upstream.float())
        errors.append(float((q - exact).detach().abs().max()))
        gradient_errors.append(
            [float((a - b).norm() / b.norm()) for a, b in zip(gradients, exact_gradients, strict=True)]
        )
    assert errors[0] <= max(3 * errors[1], 2e-7), errors
    for own, plain in zip(*gradient_errors, strict=True):
        assert own <= max(3 * plain, 1e-5), gradient_errors


def test_far_apart_logits() -> None:
    """Where exp is below the smallest float there is 0, not a NaN; the gradient is finite too."""
    logits, kernel, weight = case("patches", (1, 20, 5, 9), torch.float32)
    logits = (logits * 100).requires_grad_()
    q = mean_field(logits, kernel, weight, 3)
    assert (q == 0).any() and torch.isfinite(q).all()
    np.testing.assert_allclose(q.detach(), mean_field_plain(logits, kernel, weight, 3).detach(), atol=2e-5)
    assert torch.isfinite(torch.autograd.grad(q.square().sum(), logits)[0]).all()


def test_a_nan_stays_in_its_camera() -> None:
    logits, kernel, weight = case("patches", (4, 6, 5, 9), torch.float32)
    expected = mean_field(logits, kernel, weight, 3)
    logits[1, 2, 3, 4] = torch.nan
    for _ in range(3):
        q = mean_field(logits, kernel, weight, 3)
        assert q[1, :, 3, 4].isnan().all()
        assert torch.equal(q[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.usefixtures("threads")
def test_a_nan_does_not_stay_in_the_memory_of_a_thread() -> None:
    """One camera's linked patches are read, with weight 0, by the next camera's in the same memory."""
    torch.set_num_threads(1)
    logits, kernel, weight = case("none", (2, 4, 4, 16), torch.float32)
    kernel[0, 5, 0, 3] = 1
    kernel[1, 3, 1, 5] = 1
    logits[0, 0, 0, 15] = torch.nan
    assert torch.isfinite(mean_field(logits, kernel, weight, 3)[1]).all()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", KERNELS)
def test_the_number_of_threads_does_not_matter(kind: str) -> None:
    logits, kernel, weight = case(kind, (3, 10, 9, 20), torch.float32)
    inputs = (logits.requires_grad_(), weight.requires_grad_())
    upstream, results = torch.randn_like(logits), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        q = mean_field(inputs[0], kernel, inputs[1], 4)
        results.append((q.detach(), *torch.autograd.grad(q, inputs, upstream)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_no_patches() -> None:
    for shape in ((0, 4, 3, 5), (2, 4, 0, 5)):
        q = mean_field(torch.zeros(shape), torch.zeros(shape[0], 9, *shape[2:]), torch.ones(1), 2)
        assert q.shape == shape


def test_wrong_inputs() -> None:
    logits, kernel, weight = case("soft", (2, 4, 3, 5), torch.float32)
    for wrong in (
        (logits.half(), kernel, weight, 2),
        (logits[0], kernel, weight, 2),
        (logits, kernel[:, :8], weight, 2),
        (logits, kernel[:1], weight, 2),
        (logits, kernel, weight.repeat(2), 2),
        (logits, kernel, weight, -1),
    ):
        with pytest.raises(ValueError, match=r"expected|must have"):
            mean_field(*wrong)


# ------------------------------------------------------------------------------------------ registration
def test_opcheck() -> None:
    for kind in ("patches", "none"):
        logits, kernel, weight = case(kind, (2, 4, 3, 5))
        opcheck(torch.ops.bevnext.crf, (logits.requires_grad_(), kernel, weight.requires_grad_(), 3))
        arguments = (torch.randn_like(logits), logits.detach(), kernel, weight.detach(), 3)
        opcheck(torch.ops.bevnext.crf_backward, arguments)


def test_compiled_and_exported_programs() -> None:
    logits, _, _ = case("none", (2, 6, 4, 5), torch.float32)
    colors = torch.randint(0, 3, (2, 3, 4, 5)).float()
    crf = DepthCrf(iterations=4)
    expected = crf(logits, colors)
    expected.square().sum().backward()
    gradient, crf.weight.grad = crf.weight.grad, None
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    result = compiled(logits, colors)
    assert torch.equal(result, expected)
    result.square().sum().backward()
    assert torch.equal(crf.weight.grad, gradient)
    program = torch.export.export(crf, (logits, colors))
    nodes = [str(node.target) for part in program.graph_module.modules() for node in part.graph.nodes]
    assert nodes.count("bevnext.crf.default") == 1 and not any("softmax" in name for name in nodes)
    assert torch.equal(program.module()(logits, colors), expected)


# ------------------------------------------------------------------------------------------ choice of form
def test_forcing_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, kernel, weight = case("soft", (1, 4, 3, 5))
    monkeypatch.setenv("BEVNEXT_CRF", "plain")
    assert mean_field_form() == "plain"
    assert torch.equal(mean_field(logits, kernel, weight, 2), mean_field_plain(logits, kernel, weight, 2))
