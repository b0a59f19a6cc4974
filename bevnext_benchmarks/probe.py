"""Time and memory by part of the network, measured from outside: hooks on modules, wrappers around functions."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Probe:
    """Collects spans of time by name, and the peak memory seen in each.

    On a GPU the device is waited for at both ends of each span.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peak: dict[str, int] = defaultdict(int)
        self._current: dict[str, float] = defaultdict(float)
        self._open: list[str] = ["rest"]
        self._stop = threading.Event()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory(self) -> int:
        """Bytes: resident memory of the process, or the peak of what PyTorch allocated on the GPU since last asked."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def note_memory(self) -> None:
        """What is in use now counts for every open span."""
        used = self.memory()
        for name in list(self._open):
            self.peak[name] = max(self.peak[name], used)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time ``name``; memory seen meanwhile counts as its."""
        self.synchronize()
        if self.device.type == "cuda":
            self.note_memory()
        self._open.append(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.synchronize()
            self._current[name] += time.perf_counter() - start
            self.note_memory()
            self._open.pop()

    def watch_module(self, module: nn.Module, name: str) -> None:
        spans: list[Any] = []

        def enter(*_: object) -> None:
            spans.append(self.span(name))
            spans[-1].__enter__()

        def leave(*_: object) -> None:
            spans.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def watch_method(self, owner: Any, method: str, name: str) -> None:
        """Time every call of ``owner.method``."""
        setattr(owner, method, self.wrapped(getattr(owner, method), name))

    def wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*args, **kwargs)

        return call

    def end_of_run(self, keep: bool) -> None:
        """Close one repetition; ``keep`` is false for those that only warm up."""
        if keep:
            for name, seconds in self._current.items():
                self.seconds[name].append(seconds)
        self._current.clear()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample memory from a thread while the block runs (the CPU has no peak counter to reset)."""

        def sample() -> None:
            while not self._stop.wait(0.004):
                self.note_memory()

        thread = threading.Thread(target=sample, daemon=True)
        if self.device.type == "cpu":
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if thread.is_alive():
                thread.join()


# -------------------------------------------------------------------------------------------- by operator
_CONVOLUTIONS = ("aten::conv", "aten::_conv", "aten::mkldnn_conv", "aten::cudnn_conv", "mkldnn::_convolution")
OPERATORS: dict[str, tuple[str, ...]] = {
    "convolution": _CONVOLUTIONS,
    "deformable convolution": ("torchvision::deform_conv2d", "torchvision::_deform_conv2d"),
    "matrix product": (
        "aten::linear",
        "aten::matmul",
        "aten::mm",
        "aten::bmm",
        "aten::addmm",
        "aten::baddbmm",
        "aten::einsum",
        "mkldnn::_linear",
    ),
    "normalisation": ("aten::batch_norm", "aten::layer_norm", "aten::native_"),
    "own operators": ("bevnext::",),
    "sampling": ("aten::grid_sampler", "aten::upsample", "aten::_upsample", "aten::max_pool"),
    "copies": ("aten::copy_", "aten::clone", "aten::contiguous", "aten::cat", "aten::to", "aten::_to_copy"),
}
"""Kinds of operators by the beginnings of their names; an operator counts with the outermost that has a kind."""


def operator_kind(name: str) -> str | None:
    return next((kind for kind, starts in OPERATORS.items() if name.startswith(starts)), None)


def operator_seconds(step: Callable[[], object], device: torch.device) -> tuple[float, dict[str, float]]:
    """Run ``step`` once under the profiler.

    Returns:
        seconds of the whole (wall clock), and by kind of operator: on the CPU the time in the operator, on a GPU the
        time of its kernels. What has no kind is not listed.
    """
    gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        start = time.perf_counter()
        step()
        if gpu:
            torch.cuda.synchronize(device)
        whole = time.perf_counter() - start
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        kind = operator_kind(event.name)
        if kind is None or _has_kind_above(event):
            continue
        seconds[kind] += (event.device_time_total if gpu else event.cpu_time_total) * 1e-6
    return whole, dict(seconds)


def _has_kind_above(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if operator_kind(parent.name) is not None:
            return True
        parent = parent.cpu_parent
    return False
