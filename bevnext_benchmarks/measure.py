# SPDX-License-Identifier: Apache-2.0
"""One measurement of the detector: time, peak memory, and where the time goes."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.benchmark import Timer

import bevnext_core.detector as detector_module
from bevnext_benchmarks.random_network import random_network
from bevnext_core.config import ModelConfig
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.ops.bev_pool import plain as bev_pool
from bevnext_core.ops.crf import plain as crf
from bevnext_core.precision import AnyPrecision
from bevnext_tools.export.noise_drive import drive_frame

MODES = ("streaming", "window", "single")
STAGES = ("encode", "plan", "lift", "detect", "decode")
"""In the order of the step; what a step does beside them (images, poses) is its ``rest``."""
COMPONENTS = {
    "backbone, neck": ("backbone", "neck"),
    "depth network": ("depth_net",),
    "CRF": ("crf",),
    "BEV pooling": ("view_transform",),
    "pre-process net": ("pre_process",),
    "BEV backbone, neck": ("bev_backbone", "bev_neck"),
    "heads": ("proposal_head", "box_head"),
    "refinement": ("depth_embedding", "refinement"),
}
"""Parts of the stages, and the network's modules that each of them is."""
CONVOLUTIONS = ("aten::convolution", "mkldnn::_convolution")
"""Beginnings of the names of the operators that are one convolution each, with all that they call."""
PROFILED = 3
"""Repetitions under the profiler."""


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        mode: one of :data:`MODES`.
        checkpoint: path of the weights; None: random ones for ``config``.
        compiled: path of the checkpoint's compiled package; None: the network as it is.
        compile: a :data:`~bevnext_core.streaming.acceleration.CompileMode`; None: not compiled.
        plain: plain PyTorch instead of this project's operators and fused convolutions.
        seconds: measure at least so long, after one repetition to warm up.
    """

    mode: str
    config: ModelConfig
    checkpoint: str | None = None
    compiled: str | None = None
    compile: str | None = None
    plain: bool = False
    precision: AnyPrecision = "fp32"
    device: str = "cpu"
    threads: int = 1
    seconds: float = 15.0


def measure(case: Case) -> dict[str, Any]:
    """Run the case in this process, whose peak memory is part of the answer; docs/benchmark.md says what comes back."""
    torch.set_num_threads(case.threads)
    if case.plain:
        os.environ |= {"BEVNEXT_BEV_POOL": "plain", "BEVNEXT_CRF": "plain"}
    given: dict[str, Any] = {"compile": True, "compile_mode": case.compile} if case.compile else {}
    options = DetectorOptions(fused=not case.plain, precision=case.precision, **given)
    if case.checkpoint:
        detector = Detector.from_checkpoint(case.checkpoint, case.device, options, compiled=case.compiled)
    else:
        detector = Detector(random_network(case.config), case.device, options)
    device, step = detector.device, step_function(detector, case.mode)
    step()
    with peak_memory(device) as peak:
        timer = Timer("step()", globals={"step": step}, num_threads=case.threads)
        times = timer.blocked_autorange(min_run_time=case.seconds).times
    forms = {"BEV pooling": bev_pool.bev_pool_form(device), "CRF": crf.mean_field_form(device)}
    forms["convolutions"] = case.compile or ("package" if case.compiled else "fused" if options.fused else "plain")
    components = component_seconds(detector, step)
    return {"times_s": times, **peak, "boxes": step(), "forms": forms, "components_s": components}


def step_function(detector: Detector, mode: str) -> Callable[[], int]:
    """A function that runs the detector on the next frame of a drive and returns the number of boxes."""
    config = detector.config
    frames = (drive_frame(config, index) for index in itertools.count())
    past = [next(frames) for _ in range(config.history.frames + 1)]
    if mode == "window":
        return lambda: len(detector.window(past[::-1], published=False))
    for frame in past:
        detector.step(frame)

    def step() -> int:
        if mode == "single":
            detector.reset()
        return len(detector.step(next(frames)))

    return step


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """``peak_bytes`` of the block: resident memory of the process, or what PyTorch allocated on the GPU."""
    peak: dict[str, int] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # where the system forbids it, the peak is that since the process's start
            Path("/proc/self/clear_refs").write_text("5")
    yield peak
    if device.type == "cuda":
        peak["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    else:
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        peak["peak_bytes"] = 1024 * int(kilobytes)


def component_seconds(detector: Detector, step: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each part in each of a few repetitions under the profiler; on a GPU of its kernels."""
    gpu = detector.device.type == "cuda"
    found: dict[str, list[float]] = {}
    for _ in range(PROFILED):
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        with _named(detector), profile(activities=activities, acc_events=True) as profiler:
            with record_function("whole"):
                step()
        seconds = dict.fromkeys(("whole", *STAGES, *COMPONENTS, "convolutions"), 0.0)
        for event in profiler.key_averages():
            name = "convolutions" if event.key.startswith(CONVOLUTIONS) else event.key
            if name in seconds and event.device_type == DeviceType.CPU:
                seconds[name] += 1e-6 * (event.device_time_total if gpu else event.cpu_time_total)
        for name, value in seconds.items():
            found.setdefault(name, []).append(value)
    return {name: values for name, values in found.items() if any(values)}


@contextmanager
def _named(detector: Detector) -> Iterator[None]:
    """The parts of the detector under their names in the profile, while the block runs."""
    model: Any = detector.model
    parts = [(attrgetter(path)(model), "forward", name) for name, paths in COMPONENTS.items() for path in paths]
    parts += [(model, name, name) for name in ("encode", "plan", "lift", "detect")]
    parts += [(detector_module, "boxes_from_maps", "decode")]

    def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return function(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for owner, attribute, name in parts:
            if owner is not None:
                stack.enter_context(patch.object(owner, attribute, named(getattr(owner, attribute), name)))
        yield
