#!/usr/bin/env python3
"""Measure the depth CRF on the CPU: the compiled form beside the plain one and one of cumulative sums.

Forward, and forward with backward, at the size of R50 stage 2 (6 cameras, 118 bins, 32 x 88 patches, 20
iterations), a quarter of the image one colour. The forms take turns, so that whatever else the machine does
hits them alike; medians and the range of wall time, and the median of the processor time.

    OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2 python -m scripts.measure_crf --threads 1 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from bevnext_benchmarks.environment import machine
from bevnext_core.network.crf import color_kernel
from bevnext_core.ops.crf.plain import WINDOW, mean_field, mean_field_form, mean_field_plain

SIZE = (6, 118, 32, 88)
ITERATIONS = 20


def mean_field_cumulative(logits: Tensor, kernel: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """The product with |a - b| as two cumulative sums, messages added in place of gathered: what PyTorch offers."""
    unary = logits.permute(0, 2, 3, 1).contiguous()
    taps = kernel.permute(0, 2, 3, 1)
    height, width = unary.shape[1:3]
    q = unary.softmax(-1)
    for _ in range(iterations):
        padded = torch.nn.functional.pad(q, (0, 0, 1, 1, 1, 1))
        message = sum(
            taps[..., tap, None] * padded[:, dy : dy + height, dx : dx + width]
            for tap, (dy, dx) in enumerate(WINDOW)
        )
        below = message.cumsum(-1)
        slope = 2 * below - below[..., -1:]
        # The price of bin 0 is a constant that softmax does not see.
        price = torch.nn.functional.pad(slope.cumsum(-1)[..., :-1], (1, 0))
        q = (unary - weight * price).softmax(-1)
    return q.permute(0, 3, 1, 2).contiguous()


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "compiled": mean_field,
    "plain": mean_field_plain,
    "cumulative sums": mean_field_cumulative,
}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, kernel and weight."""
    cameras, _, height, width = SIZE
    generator = torch.Generator().manual_seed(0)
    colors = torch.randint(0, 255 * 64, (cameras, 3, height, width), generator=generator) / 64
    colors[:, :, : height // 4] = 255
    logits = 2 * torch.randn(SIZE, generator=generator)
    return logits, color_kernel(colors, 0.001), torch.full((1,), 0.015)


def run(name: str, logits: Tensor, kernel: Tensor, weight: Tensor, upstream: Tensor | None) -> Tensor:
    if upstream is None:
        with torch.inference_mode():
            return FORMS[name](logits, kernel, weight, ITERATIONS)
    leaf, weight = logits.detach().requires_grad_(), weight.detach().requires_grad_()
    q = FORMS[name](leaf, kernel, weight, ITERATIONS)
    return torch.autograd.grad(q, (leaf, weight), upstream)[0]


def measure(threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    tensors = inputs()
    upstream = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    for title, gradient in (("forward", None), ("forward and backward", upstream)):
        expected = run("plain", *tensors, gradient)
        for name in FORMS:
            error = (run(name, *tensors, gradient) - expected).abs().max() / expected.abs().max()
            assert error < 1e-4, f"{name}: off by {error}"
        wall: dict[str, list[float]] = {name: [] for name in FORMS}
        busy: dict[str, list[float]] = {name: [] for name in FORMS}
        for _ in range(repeats):
            for name in FORMS:
                start, start_busy = time.perf_counter(), time.process_time()
                run(name, *tensors, gradient)
                wall[name].append(1e3 * (time.perf_counter() - start))
                busy[name].append(1e3 * (time.process_time() - start_busy))
        print(f"\n{title}, {threads} thread(s), {repeats} repetitions")
        print(f"{'':16}{'wall ms':>9}{'min':>9}{'max':>9}{'CPU ms':>9}{'times':>8}{'CPU times':>11}")
        for name in FORMS:
            ratio = median(wall[name]) / median(wall["compiled"])
            busy_ratio = median(busy[name]) / median(busy["compiled"])
            print(
                f"{name:16}{median(wall[name]):9.1f}{min(wall[name]):9.1f}{max(wall[name]):9.1f}"
                f"{median(busy[name]):9.1f}{ratio:8.1f}{busy_ratio:11.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="one table for each")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    assert mean_field_form("cpu") == "c++"
    print(machine("cpu"))
    for threads in options.threads:
        measure(threads, options.repeats)


if __name__ == "__main__":
    main()
