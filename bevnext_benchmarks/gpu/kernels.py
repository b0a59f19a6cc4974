# SPDX-License-Identifier: Apache-2.0
"""The kernels: equal to plain PyTorch, how fast, and clean under compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from bevnext_benchmarks import operators
from bevnext_benchmarks.gpu.__main__ import ROOT, program
from bevnext_benchmarks.gpu.baseline import baseline_backward, baseline_forward
from bevnext_benchmarks.gpu.part import Part, milliseconds
from bevnext_core.ops.bev_pool import PoolPlan, bev_pool_form
from bevnext_core.ops.bev_pool import operator as bev_pool_op
from bevnext_core.ops.bev_pool.plain import is_channels_last
from bevnext_core.ops.crf import mean_field_form
from bevnext_core.ops.crf import operator as crf_op
from bevnext_core.streaming.device_resize import resize_and_crop_on_device
from bevnext_core.streaming.preprocess import image_transform, resize_and_crop
from tests.core.emulation import emulated

TESTS = ("test_bev_pool_cuda", "test_crf_cuda", "test_device_resize", "test_step")
BASELINE = "BEVPoolv2"
FASTER, OF_FLOOR = 3.0, 0.6
"""What pooling shall reach: times the baseline, and of the floor."""


# -------------------------------------------------------------------------------------------- a
def right(part: Part) -> None:
    """Compile the operators for this device, and compare each with its plain form, forward and backward."""
    forms = {"BEV pooling": bev_pool_form, "CRF": mean_field_form}
    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        found = dict(zip(forms, pool.map(lambda form: form(part.device), forms.values())))
    part.note(f"compiled in {time.monotonic() - start:.1f} s (0 s: they were in the cache)")
    for name, form in found.items():
        part.check(form == ("cuda" if part.gpu else "c++"), f"{name} has no compiled form here: '{form}' is used")
    compare(part)
    difference = resize_difference(part)
    part.note(f"resize on the device: at most {difference} grey levels from PIL's")
    part.check(difference == 0, f"the resize on the device is off by {difference} grey levels from PIL's")
    if part.gpu and importlib.util.find_spec("pytest"):
        gpu_tests(part)


def compare(part: Part) -> None:
    """Each form against plain PyTorch; without a GPU the CUDA sources too, emulated."""
    config = part.config()
    types = (torch.float32, torch.float16, torch.bfloat16)
    cases = [operators.pooling(config, 2, dtype, part.device) for dtype in types]
    cases.append(operators.crf(config, part.device))
    part.table("compared with plain PyTorch", "form", "way", "largest difference / largest value")
    for case in cases:
        if not part.gpu and case.inputs[0].dtype != torch.float16:  # which the emulation does not know
            case.forms["cuda, emulated"] = emulated_pool if "plan" in case.fixed else emulated_mean_field
        for way, backward in operators.WAYS.items():
            for form, error in case.errors(backward).items():
                part.row(case.title, form, way, f"{error:.1e}")
                part.check(error <= case.limit, f"{case.title}, {way}: '{form}' is off by {error:.1e} of the largest")


class _Function(torch.autograd.Function):
    """``forward(*inputs)`` with ``backward(grad, *inputs)`` as its gradient."""

    @staticmethod
    def forward(ctx: Any, forward: Callable, backward: Callable, *inputs: Tensor) -> Tensor:
        ctx.back = backward
        ctx.save_for_backward(*inputs)
        return forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *ctx.back(grad, *ctx.saved_tensors)


def emulated_pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """The CUDA source of pooling on the CPU."""
    library, last, shape = pooling_library("cpu"), is_channels_last(context), (plan.maps, *plan.size)
    return _Function.apply(
        lambda depth, context: bev_pool_op.cuda_forward(library, 0, depth, context, *plan.sorted, shape, last),
        lambda grad, depth, context: bev_pool_op.cuda_backward(library, 0, grad, depth, context, plan.cells, last),
        *(depth, context),
    )


def emulated_mean_field(logits: Tensor, weight: Tensor, kernel: Tensor, iterations: int) -> Tensor:
    """The CUDA source of the CRF on the CPU."""
    library = emulated(crf_op.CUDA)
    return _Function.apply(
        lambda logits, weight: crf_op.cuda_forward(library, 0, logits, kernel, weight, iterations),
        lambda grad, logits, weight: crf_op.cuda_backward(library, 0, grad, logits, kernel, weight, iterations),
        *(logits, weight),
    )


def pooling_library(device: str) -> Any:
    """The pooling kernels, and the baseline's: for the card at hand, or emulated on the CPU."""
    return emulated(bev_pool_op.CUDA) if device == "cpu" else bev_pool_op.CUDA.library(torch.device(device))


def resize_difference(part: Part) -> int:
    """Largest difference to PIL's resize, in grey levels, of noise in some sizes."""
    worst, target = 0, part.config().image
    for size in ((1600, 900), (1282, 718), (400, 225)):
        images = np.random.default_rng(0).integers(0, 256, (2, size[1], size[0], 3), np.uint8)
        transform = image_transform(*size, target)
        ours = resize_and_crop_on_device(torch.from_numpy(images).to(part.device), transform).cpu().numpy()
        theirs = np.stack([resize_and_crop(image, transform) for image in images])
        worst = max(worst, int(np.abs(ours.astype(int) - theirs).max()))
    return worst


def gpu_tests(part: Part) -> None:
    """``pytest -m gpu``; what torch.compile does is part d's."""
    files = [str(ROOT / "tests" / "core" / f"{name}.py") for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", "not default and not overhead", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if re.match(r"FAILED|ERROR|\d+ \w+", line)]
    part.note(f"pytest -m gpu: {said[-1] if said else 'nothing said'}")
    part.check(done.returncode == 0, f"pytest -m gpu: {'; '.join(said) or done.stderr[-300:]}")


# -------------------------------------------------------------------------------------------- c
def speed(part: Part) -> None:
    """Pooling beside BEVPoolv2's algorithm, and the CRF beside plain PyTorch."""
    bandwidth, own = memory_bandwidth(part), bev_pool_form(part.device)
    part.note(f"memory: {bandwidth / 1e9:.0f} GB/s, read and written by a large copy; at that speed the floor is moved")
    part.table("", "form", "ms", "MiB moved", "of the floor", f"{BASELINE}, fp32 / this")
    for frames in (9, 1):
        types = (torch.float32, torch.float16)
        cases = [operators.pooling(part.config(), frames, dtype, part.device) for dtype in types]
        cases[0].forms[BASELINE] = baseline_pool(part.device)
        moved = {case.title: bytes_moved(case) for case in cases}
        found = [m for case in cases for m in timed(part, case)]
        baseline = {m.sub_label: m.median for m in found if m.description == BASELINE}
        for m in found:
            size, ratio = moved[m.label][m.sub_label], baseline[m.sub_label] / m.median
            share = size / bandwidth / m.median
            cells = (milliseconds(m), f"{size / 2**20:.1f}", f"{share:.0%}", f"{ratio:.2f}")
            part.row(f"{m.label}, {m.sub_label}", m.description, *cells)
            if m.description == own and part.full:
                reached = "reached" if ratio >= FASTER and share >= OF_FLOOR else "not reached"
                target = f"{FASTER:g} times {BASELINE} and {OF_FLOOR:.0%} of the floor"
                part.note(f"{m.label}, {m.sub_label}: target {target} {reached}")
    part.table("", "form", "ms")
    for m in timed(part, operators.crf(part.config(), part.device)):
        part.row(f"{m.label}, {m.sub_label}", m.description, milliseconds(m))


def timed(part: Part, case: operators.Case) -> list[Any]:
    """A case's measurements; on a GPU of CUDA graphs, so that launching costs nothing."""
    seconds, prepared = (0.7 if part.full else 0.0), (recorded if part.gpu else None)
    return operators.measure(case, seconds, torch.get_num_threads(), prepared)


def baseline_pool(device: str) -> Callable[..., Tensor]:
    """Takes the place of ``bev_pool``: the published algorithm (BEVPoolv2), in fp32, with gradients."""
    library = pooling_library(device)

    def rows(values: Tensor) -> Tensor:
        return values.permute(0, 2, 3, 1).flatten(0, 2).float().contiguous()

    def pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
        cameras, _, height, width = plan.depth_shape

        def forward(depth: Tensor, context: Tensor) -> Tensor:
            out = baseline_forward(library, depth.float().contiguous(), rows(context), plan)
            return out.view(plan.maps, *plan.size, -1).permute(0, 3, 1, 2)

        def backward(grad: Tensor, depth: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
            found = baseline_backward(library, rows(grad), depth.float().contiguous(), rows(context), plan)
            table = found[1].view(cameras, height, width, -1).permute(0, 3, 1, 2)
            return found[0].to(depth.dtype), table.to(context.dtype)

        return _Function.apply(forward, backward, depth, context)

    return pool


def bytes_moved(case: operators.Case) -> dict[str, int]:
    """What pooling has to move through memory once, by way: inputs, indices, outputs."""
    points, _, starts = case.fixed["plan"].sorted
    depth, context, grad = (tensor.numel() * tensor.element_size() for tensor in (*case.inputs, case.grad))
    forward = depth + context + grad + 8 * int(starts[-1]) + 4 * starts.numel()
    return dict(zip(operators.WAYS, (forward, forward + 2 * (depth + context) + grad + 4 * points.numel())))


def recorded(work: Callable[[], object]) -> Callable[[], object]:
    """``work`` as a CUDA graph."""
    work(), work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def memory_bandwidth(part: Part) -> float:
    """Bytes a second of a large copy on the device, read and written."""
    block = torch.zeros(2**28 if part.full else 2**20, device=part.device)
    copy = {"block": block, "other": torch.empty_like(block)}
    return 2 * 4 * block.numel() / Timer("other.copy_(block)", globals=copy).blocked_autorange().median


# -------------------------------------------------------------------------------------------- f
def sanitizer(part: Part) -> None:
    """memcheck and racecheck over :func:`compare` with small cases."""
    tool = program("compute-sanitizer")
    if tool is None:
        part.state = "left out"
        part.note("compute-sanitizer is not installed")
        return
    # PyTorch's own pool of memory would hide what lies outside of a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    arguments = ["--device", part.device, "--size", "tiny"]
    part.table("tool", "seconds", "result")
    for name in ("memcheck", "racecheck"):
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-m", "bevnext_benchmarks.gpu.part"]
        start = time.monotonic()
        done = subprocess.run(
            [*command, "kernels:compare", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        said = [line.strip("= ") for line in done.stdout.splitlines() if line.startswith("=====")]
        end = said[-1] if said else done.stderr[-300:]
        part.row(name, f"{time.monotonic() - start:.1f}", end)
        part.check(done.returncode == 0, f"{name} ended with {done.returncode}: {end}")
