"""``bevnext benchmark``: time and peak memory of a streaming step, a window and a single frame, by component.

Each mode runs in a process of its own, so that its peak memory is its own. Inputs are a six-camera rig on a
curved drive with noise images; weights are random unless a checkpoint is given (the time does not depend on
them, except for the number of candidate boxes).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from bevnext_core.checkpoint import load_checkpoint
from bevnext_core.config import ModelConfig, load_config, published_config
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.errors import BevnextError
from bevnext_core.frame import CameraFrame
from bevnext_core.network.bevnext import BEVNeXt

MODES = ("streaming", "window", "single")
SOURCE_SIZE = (1600, 900)
MODULES = {
    "backbone": "backbone",
    "neck": "neck",
    "crf": "CRF",
    "view_transform": "BEV pooling",
    "pre_process": "pre-process net",
    "bev_backbone": "BEV backbone",
    "bev_neck": "BEV neck",
    "proposal_head": "proposal head",
    "depth_embedding": "depth embedding",
    "refinement": "refinement",
    "box_head": "box head",
}


class Probe:
    """Time and peak memory by component, measured from outside: hooks on modules, wrappers around functions."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peak: dict[str, int] = defaultdict(int)
        self._current: dict[str, float] = defaultdict(float)
        self._open = "other"
        self._stop = threading.Event()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _resident(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time ``name``; memory seen meanwhile counts as its."""
        self._synchronize()
        outer, self._open = self._open, name
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self._current[name] += time.perf_counter() - start
            self._note()
            self._open = outer

    def _note(self) -> None:
        self.peak[self._open] = max(self.peak[self._open], self._resident())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def watch_module(self, module: nn.Module, name: str) -> None:
        spans: list[Any] = []

        def enter(*_: object) -> None:
            spans.append(self.span(name))
            spans[-1].__enter__()

        def leave(*_: object) -> None:
            spans.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*args, **kwargs)

        return call

    def end_of_run(self) -> None:
        """Close one repetition."""
        for name, seconds in self._current.items():
            self.seconds[name].append(seconds)
        self._current.clear()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample memory from a thread while the block runs (the CPU has no peak counter to reset)."""

        def sample() -> None:
            while not self._stop.wait(0.004):
                self.peak[self._open] = max(self.peak[self._open], self._resident())

        thread = threading.Thread(target=sample, daemon=True)
        if self.device.type == "cpu":
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if thread.is_alive():
                thread.join()


def rig_frames(config: ModelConfig, count: int) -> Iterator[CameraFrame]:
    """A car on a curve, 0.5 s apart: 1600x900 noise with flat areas, six cameras all around."""
    cameras = config.cameras
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    anchor = cameras.index(config.anchor_camera)
    ego_from_camera = np.tile(np.eye(4), (len(cameras), 1, 1))
    for index in range(len(cameras)):
        yaw = 2 * np.pi * (anchor - index) / len(cameras)
        c, s = np.cos(yaw), np.sin(yaw)
        ego_from_camera[index, :3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ optical
        ego_from_camera[index, :3, 3] = 1.0 + 0.6 * c, 0.5 * s, 1.5
    intrinsics = np.tile([[1266.0, 0, 816], [0, 1266, 491], [0, 0, 1]], (len(cameras), 1, 1))
    for frame in range(count):
        rng = np.random.default_rng(frame)
        yaw, pose = 0.06 * frame, np.eye(4)
        c, s = np.cos(yaw), np.sin(yaw)
        pose[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
        pose[:2, 3] = 60 * s, 60 * (1 - c)
        images = []
        for _ in cameras:
            coarse = rng.integers(0, 256, (45, 80, 3), np.uint8).repeat(20, 0).repeat(20, 1)
            image = (coarse // 2 + rng.integers(0, 128, coarse.shape, np.uint8)).astype(np.uint8)
            image[:300, 500:1000] = 255
            images.append(image)
        yield CameraFrame(
            cameras=cameras,
            images=tuple(images),
            intrinsics=intrinsics,
            ego_from_camera=ego_from_camera,
            global_from_camera_ego=np.tile(pose, (len(cameras), 1, 1)),
            global_from_ego=pose,
            stamp_ns=frame * round(config.history.interval * 1e9) + 1,
        )


def random_network(config: ModelConfig) -> BEVNeXt:
    """A network whose activations keep their size through the layers, as a trained one's do."""
    torch.manual_seed(0)
    model = BEVNeXt(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.eval()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One mode, in this process."""
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_checkpoint(args.checkpoint) if args.checkpoint else random_network(_config(args))
    options = DetectorOptions(crf_canvas=args.options, camera_params=args.options, precision=args.precision)
    detector = Detector(model, args.device, options)
    config = detector.config
    probe = Probe(detector.device)
    slots = config.history.frames
    frames = list(rig_frames(config, slots + 1))
    extra = list(rig_frames(config, slots + 1 + args.warmup + args.repeats))[slots + 1 :]
    if args.mode == "streaming":
        for frame in frames:
            detector.step(frame)
    for name, title in MODULES.items():
        probe.watch_module(getattr(model, name), title)
    probe.watch_module(model.depth_net.reduce, "depth network")
    model.depth_net.branches = probe.wrapped(model.depth_net.branches, "depth network")  # type: ignore[method-assign]
    model.view_transform.plan = probe.wrapped(model.view_transform.plan, "plan")  # type: ignore[method-assign]
    detector._prepare = probe.wrapped(detector._prepare, "preprocess")  # type: ignore[method-assign]
    totals, boxes = [], 0
    with probe.sampling():
        for index, frame in enumerate(extra):
            if args.mode == "single":
                detector.reset()
            with probe.span("total"):
                result = detector.window(frames[::-1]) if args.mode == "window" else detector.step(frame)
            if index < args.warmup:
                probe._current.clear()
                continue
            totals.append(probe._current["total"])
            probe.end_of_run()
            boxes = len(result)
    components = {
        name: {
            "median_s": median(values),
            "min_s": min(values),
            "max_s": max(values),
            "peak_bytes": probe.peak[name],
        }
        for name, values in probe.seconds.items()
    }
    components.pop("total")
    return {
        "mode": args.mode,
        "median_s": median(totals),
        "min_s": min(totals),
        "max_s": max(totals),
        "peak_bytes": max(probe.peak.values()),
        "boxes": boxes,
        "components": components,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--config", metavar="FILE", help="model configuration (default: R50 stage 2)")
    network.add_argument("--checkpoint", metavar="FILE", help="measure this checkpoint's network")
    parser.add_argument(
        "--modes", default=",".join(MODES), help="which, comma-separated (default: %(default)s)"
    )
    parser.add_argument(
        "--options", choices=("own", "key"), default="own", help="crf_canvas and camera_params"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument(
        "--warmup", type=int, default=1, help="repetitions before measuring (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repetitions measured (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measure each mode in a process of its own and print the table."""
    if args.repeats < 1 or args.warmup < 0 or args.threads < 0:
        raise BevnextError("--repeats must be at least 1, --warmup and --threads not negative")
    if args.mode:
        Path(args.out).write_text(json.dumps(measure(args)))
        return 0
    modes = args.modes.split(",")
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise BevnextError(f"--modes: unknown {', '.join(unknown)}; known are {', '.join(MODES)}")
    name = str(args.checkpoint or _config(args).name)
    results: dict[str, Any] = {
        "machine": machine(args.device),
        "network": name,
        "precision": args.precision,
        "modes": {},
    }
    for mode in modes:
        print(
            f"measuring {mode} ({args.warmup} + {args.repeats} repetitions) ...", file=sys.stderr, flush=True
        )
        results["modes"][mode] = _in_own_process(args, mode)
    print(table(results))
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1))
    return 0


def _in_own_process(args: argparse.Namespace, mode: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "bevnext_core.cli", "benchmark", "--mode", mode, "--out", str(out)]
        for option in (
            "config",
            "checkpoint",
            "options",
            "precision",
            "device",
            "threads",
            "warmup",
            "repeats",
        ):
            value = getattr(args, option)
            if value:
                command += [f"--{option}", str(value)]
            elif option == "warmup":
                command += ["--warmup", "0"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise BevnextError(f"measuring {mode} failed: {lines[-1]}")
        return json.loads(out.read_text())


def _config(args: argparse.Namespace) -> ModelConfig:
    return load_config(args.config) if args.config else published_config(2)


def machine(device: str) -> str:
    """What the numbers were measured on."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(torch.device(device))}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def table(results: dict[str, Any]) -> str:
    """The results as text: milliseconds (share of the total) and peak MiB per component and mode."""
    modes = results["modes"]
    lines = [f"{results['network']}, {results['precision']}, {results['machine']}", ""]
    names: list[str] = []
    for result in modes.values():
        names += [name for name in result["components"] if name not in names]
    lines.append(f"{'':18}" + "".join(f"{mode + ' ms':>16}{'MiB':>8}" for mode in modes))
    for name in names:
        row = f"{name:18}"
        for result in modes.values():
            part = result["components"].get(name)
            if part is None:
                row += f"{'-':>16}{'':>8}"
                continue
            share = part["median_s"] / result["median_s"]
            row += f"{part['median_s'] * 1e3:>9.1f} ({share:>4.0%}){part['peak_bytes'] / 2**20:>8.0f}"
        lines.append(row)
    row = f"{'whole':18}"
    for result in modes.values():
        row += f"{result['median_s'] * 1e3:>9.1f}       {result['peak_bytes'] / 2**20:>8.0f}"
    lines += [row, ""]
    for mode, result in modes.items():
        low, high = result["min_s"] * 1e3, result["max_s"] * 1e3
        lines.append(
            f"{mode}: {result['median_s'] * 1e3:.1f} ms (min {low:.1f}, max {high:.1f}), {result['boxes']} boxes"
        )
    if {"streaming", "window"} <= set(modes):
        lines.append(
            f"window / streaming: {modes['window']['median_s'] / modes['streaming']['median_s']:.2f}"
        )
    if {"single", "window"} <= set(modes):
        lines.append(f"window / single: {modes['window']['median_s'] / modes['single']['median_s']:.2f}")
    return "\n".join(lines)
