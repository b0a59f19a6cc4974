# SPDX-License-Identifier: Apache-2.0
"""The CRF's kernels: emulated on the CPU, compiled for every architecture, and, where there is one, on a GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bevnext_core.ops import native
from bevnext_core.ops.crf import operator as crf_op
from bevnext_core.ops.crf.plain import mean_field, mean_field_form, mean_field_plain
from bevnext_core.ops.native import NativeBuildError
from tests.core import emulation
from tests.core.test_crf import KERNELS, case

SOURCE = crf_op.CUDA.source


@pytest.fixture(scope="module")
def emulated() -> ctypes.CDLL:
    return emulation.emulated(crf_op.CUDA)


def with_gradients(
    form, logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int, grad: Tensor
) -> tuple[Tensor, ...]:
    inputs = (logits.detach().requires_grad_(), weight.detach().requires_grad_())
    q = form(inputs[0], kernel, inputs[1], iterations)
    return q.detach(), *torch.autograd.grad(q, inputs, grad, materialize_grads=True)


def through_emulation(
    library: ctypes.CDLL, logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int, grad: Tensor
) -> tuple[Tensor, ...]:
    q = crf_op.cuda_forward(library, 0, logits, kernel, weight, iterations)
    return q, *crf_op.cuda_backward(library, 0, grad, logits, kernel, weight, iterations)


def assert_equal_to_plain(found: tuple[Tensor, ...], *arguments) -> None:
    """Against the plain form in double precision.

    The weight's gradient is one sum over all patches and bins of either sign, which may nearly cancel: what
    rounding does to it goes with the terms, gradients of logits times prices of up to ``bins``, not with the sum.
    """
    wide = [value.double() if isinstance(value, Tensor) else value for value in arguments]
    rounding = 1e-11 if found[0].dtype == torch.float64 else 3e-5
    expected = with_gradients(mean_field_plain, *wide)
    for value, right in zip(found, expected, strict=True):
        assert value.shape == right.shape
    for value, right in zip(found[:2], expected[:2], strict=True):
        if value.numel():
            assert (value.double() - right).abs().max() <= rounding * right.abs().max().clamp(min=1e-3)
    terms = expected[1].abs().sum() * expected[1].shape[1]
    assert (found[2].double() - expected[2]).abs().max() <= rounding / 30 * terms


def upstream_of(logits: Tensor) -> Tensor:
    """The gradient that comes from above; the same in every run."""
    return torch.randn(logits.shape, generator=torch.Generator().manual_seed(7)).to(logits)


# -------------------------------------------------------------------------------------------- emulated
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_emulated_kernels(kind: str, dtype: torch.dtype, emulated: ctypes.CDLL) -> None:
    """Odd sizes, every kind of kernel, no, one and several iterations, in both memory layouts."""
    logits, kernel, weight = case(kind, (2, 35, 3, 5), dtype)
    grad = upstream_of(logits)
    for iterations in (0, 1, 4):
        found = through_emulation(emulated, logits, kernel, weight, iterations, grad)
        assert found[0].is_contiguous() and found[1].is_contiguous()
        assert_equal_to_plain(found, logits, kernel, weight, iterations, grad)
    last = [values.contiguous(memory_format=torch.channels_last) for values in (logits, grad)]
    again = through_emulation(emulated, last[0], kernel, weight, 4, last[1])
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


@pytest.mark.parametrize("bins", [1, 32, 33, 118, 200, 300])
def test_emulated_kernels_by_bins(bins: int, emulated: ctypes.CDLL) -> None:
    logits, kernel, weight = case("patches", (1, bins, 3, 4), torch.float32)
    grad = upstream_of(logits)
    found = through_emulation(emulated, logits, kernel, weight, 3, grad)
    assert_equal_to_plain(found, logits, kernel, weight, 3, grad)


def test_more_bins_than_a_warp_holds(emulated: ctypes.CDLL) -> None:
    logits, kernel, weight = case("none", (1, 513, 1, 1), torch.float32)
    with pytest.raises(ValueError, match="513 depth bins: the GPU form takes at most 512"):
        crf_op.cuda_forward(emulated, 0, logits, kernel, weight, 1)


def test_no_patches(emulated: ctypes.CDLL) -> None:
    logits, kernel = torch.zeros(0, 4, 3, 5), torch.zeros(0, 9, 3, 5)
    found = through_emulation(emulated, logits, kernel, torch.ones(1), 2, logits)
    assert found[0].shape == logits.shape and found[2].item() == 0


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


# -------------------------------------------------------------------------------------------- on a GPU
@pytest.fixture
def gpu() -> str:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    assert mean_field_form("cuda") == "cuda"
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gpu_against_plain(kind: str, dtype: torch.dtype, gpu: str) -> None:
    for shape in ((2, 35, 3, 5), (6, 118, 16, 44), (1, 300, 9, 7)):
        logits, kernel, weight = (values.to(gpu) for values in case(kind, shape, dtype))
        grad = upstream_of(logits)
        for iterations in (0, 1, 20):
            found = with_gradients(mean_field, logits, kernel, weight, iterations, grad)
            assert_equal_to_plain(found, logits, kernel, weight, iterations, grad)
            again = with_gradients(mean_field, logits, kernel, weight, iterations, grad)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.gpu
def test_gpu_graph(gpu: str) -> None:
    logits, kernel, weight = (values.to(gpu) for values in case("patches", (2, 35, 3, 5), torch.float32))
    mean_field(logits, kernel, weight, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q = mean_field(logits, kernel, weight, 4)
    logits.mul_(2)
    graph.replay()
    torch.testing.assert_close(q, mean_field_plain(logits, kernel, weight, 4))


@pytest.mark.gpu
def test_gpu_opcheck(gpu: str) -> None:
    logits, kernel, weight = (values.to(gpu) for values in case("patches", (2, 4, 3, 5)))
    arguments = (logits.requires_grad_(), kernel, weight.requires_grad_(), 3)
    torch.library.opcheck(torch.ops.bevnext.crf.default, arguments)
