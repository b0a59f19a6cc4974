# SPDX-License-Identifier: Apache-2.0
"""Time BEV pooling and the depth CRF, forward and backward: the compiled forms beside plain PyTorch.

    OMP_WAIT_POLICY=PASSIVE python -m bevnext_benchmarks.operators --threads 1 2

At the size of R50 stage 2: pooling of one frame and of the nine of a window, each with its own pose; the CRF with a
quarter of the image one colour. The forms are compared before they are timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Compare, Measurement, Timer

from bevnext_core.config import ModelConfig, published_config
from bevnext_core.device import machine
from bevnext_core.network.crf import color_kernel
from bevnext_core.network.view_transform import ViewTransform
from bevnext_core.ops.bev_pool import bev_pool, bev_pool_form, bev_pool_plain
from bevnext_core.ops.crf import mean_field, mean_field_form, mean_field_plain
from bevnext_tools.export.noise_drive import network_inputs

WAYS = {"forward": False, "forward and backward": True}
METRES_PER_FRAME = 5.0  # half a second at 10 m/s


@dataclass
class Case:
    """An operator at one size.

    Attributes:
        inputs: those that take gradients; fixed: the other arguments; grad: of the output.
        forms: functions of inputs and fixed, by name; ``plain`` is what the others are compared with.
    """

    title: str
    inputs: tuple[Tensor, ...]
    fixed: dict[str, Any]
    grad: Tensor
    forms: dict[str, Callable[..., Tensor]]

    def run(self, form: str, backward: bool) -> tuple[Tensor, ...]:
        """The output, or the inputs' gradients."""
        if not backward:
            with torch.no_grad():
                return (self.forms[form](*self.inputs, **self.fixed),)
        inputs = [value.detach().requires_grad_() for value in self.inputs]
        return torch.autograd.grad(self.forms[form](*inputs, **self.fixed), inputs, self.grad)

    def errors(self, backward: bool) -> dict[str, float]:
        """Largest difference of each form to plain PyTorch, in parts of the largest value; :attr:`limit` is allowed."""
        expected = [right.float() for right in self.run("plain", backward)]
        return {
            form: max(
                float((value.float() - right).abs().max() / right.abs().max())
                for value, right in zip(self.run(form, backward), expected, strict=True)
            )
            for form in self.forms
            if form != "plain"
        }

    @property
    def limit(self) -> float:
        return 1e-4 if self.inputs[0].dtype == torch.float32 else 1e-2


def pooling(config: ModelConfig, frames: int, dtype: torch.dtype, device: str) -> Case:
    """``frames`` maps of a rig that drives straight on."""
    torch.manual_seed(0)
    view = ViewTransform(config.image, config.depth, config.bev).to(device)
    _, _, geometry = network_inputs(config, device, rigs=frames)
    geometry.translation[..., 0] -= METRES_PER_FRAME * torch.arange(frames, device=device).view(-1, 1, 1)
    plan = view.plan(geometry)
    cameras, bins, height, width = plan.depth_shape
    depth = torch.randn(cameras, bins, height, width).softmax(1).to(device, dtype)
    context = torch.randn(cameras, config.channels, height, width).to(device, dtype, memory_format=torch.channels_last)
    grad = torch.randn(plan.maps, config.channels, *plan.size).to(device, memory_format=torch.channels_last)
    title = f"BEV pooling, {frames} frame(s), {str(dtype).removeprefix('torch.')}"
    forms = {bev_pool_form(device): bev_pool, "plain": bev_pool_plain}
    return Case(title, (depth, context), {"plan": plan}, grad, forms)


def crf(config: ModelConfig, device: str) -> Case:
    """One frame's cameras."""
    torch.manual_seed(0)
    size = (len(config.cameras), config.depth.bins, *config.image.feature_size)
    colors = torch.randint(0, 255 * 64, (size[0], 3, *size[2:])) / 64
    colors[:, :, : size[2] // 4] = 255
    kernel, iterations = color_kernel(colors, config.depth.crf_zeta).to(device), config.depth.crf_iterations
    inputs = (2 * torch.randn(size).to(device), torch.full((1,), 0.015, device=device))
    forms = {mean_field_form(device): _kernel_second(mean_field), "plain": _kernel_second(mean_field_plain)}
    fixed = {"kernel": kernel, "iterations": iterations}
    return Case(f"CRF, {iterations} iterations", inputs, fixed, torch.randn(size).to(device), forms)


def _kernel_second(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda logits, weight, kernel, iterations: form(logits, kernel, weight, iterations)


def measure(
    case: Case, seconds: float, threads: int = 1, prepared: Callable[[Callable[[], object]], Any] | None = None
) -> list[Measurement]:
    """Compare each form with plain PyTorch and time it, forward, and forward and backward.

    Args:
        prepared: what is done to the compared forms before they are timed, such as recording a CUDA graph.

    Raises:
        AssertionError: a form does not give what plain PyTorch gives.
    """
    found = []
    for way, backward in WAYS.items():
        for name, error in case.errors(backward).items():
            assert error <= case.limit, f"{case.title}, {way}: '{name}' is off by {error:.1e} of the largest value"
        for name in case.forms:
            work: Any = partial(case.run, name, backward)
            work = prepared(work) if prepared and name != "plain" else work
            labels = {"label": case.title, "sub_label": way, "description": name}
            timer = Timer("work()", globals={"work": work}, num_threads=threads, **labels)
            found.append(timer.blocked_autorange(min_run_time=seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--seconds", type=float, default=3.0, help="measure each form at least so long")
    args = parser.parse_args()
    config = published_config(2)
    cases = [*(pooling(config, frames, torch.float32, args.device) for frames in (1, 9)), crf(config, args.device)]
    print(machine(args.device))
    for case in cases:
        Compare([m for threads in args.threads for m in measure(case, args.seconds, threads)]).print()


if __name__ == "__main__":
    main()
