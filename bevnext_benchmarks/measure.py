"""One measurement, in a process of its own so that its peak memory is its own.

``python -m bevnext_benchmarks.measure CASE.json RESULT.json`` is what :mod:`bevnext_benchmarks.step` runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import bevnext_core.detector as detector_module
from bevnext_benchmarks.probe import Probe, operator_seconds
from bevnext_benchmarks.workload import drive_frame, random_network, rigs_step
from bevnext_core.config import config_from_mapping
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.errors import BevnextError, one_line
from bevnext_core.ops.bev_pool import plain as bev_pool
from bevnext_core.ops.crf import plain as crf

MODES = ("streaming", "window", "single")
STAGES = ("preprocess", "encode", "lift", "detect", "decode")
"""In the order of the step; what a step does beside them is its ``rest``."""
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
"""Parts of the network and what they are called in the result."""


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        mode: one of :data:`MODES`.
        checkpoint: path of the weights; empty: random ones for ``config`` (plain values, as in a checkpoint).
        compiled: path of the checkpoint's compiled package; empty: the network as it is.
        rigs: 0 measures the detector, from images to boxes; above, the network alone for so many rigs at once.
        plain: plain PyTorch instead of this project's operators and fused convolutions.
        options: ``own`` or ``key`` for the CRF's canvas and the camera parameters of history frames.
        threads: of the CPU; 0: PyTorch's choice.
        detail: also measure parts and operators.
    """

    mode: str
    config: dict[str, Any] | None = None
    checkpoint: str = ""
    compiled: str = ""
    rigs: int = 0
    plain: bool = False
    options: str = "own"
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 0
    warmup: int = 1
    repeats: int = 5
    detail: bool = True


def measure(case: Case) -> dict[str, Any]:
    """Run the case in this process; see :func:`spread` and ``docs/benchmark.md`` for what comes back."""
    if case.threads:
        torch.set_num_threads(case.threads)
    if case.plain:
        os.environ.update({bev_pool.VARIABLE: "plain", crf.VARIABLE: "plain"})
    options = DetectorOptions(
        fused=not case.plain,
        crf_canvas=case.options,  # type: ignore[arg-type]
        camera_params=case.options,  # type: ignore[arg-type]
        precision=case.precision,  # type: ignore[arg-type]
    )
    if case.checkpoint:
        compiled = case.compiled or None
        detector = Detector.from_checkpoint(case.checkpoint, case.device, options, compiled=compiled)
    else:
        model = random_network(config_from_mapping(case.config or {}, "case"))
        detector = Detector(model, case.device, options)
    before = Probe(detector.device).memory()
    step = _rigs_step(detector, case) if case.rigs else _detector_step(detector, case.mode)

    # Hooks cost a CPU nothing that can be seen; a GPU has to be waited for at each, so it runs without them first.
    together = case.detail and detector.device.type == "cpu"
    probe = Probe(detector.device)
    with watched(detector, probe) if together else nullcontext():
        boxes = _repeat(case, step, probe)
    result: dict[str, Any] = {
        "mode": case.mode,
        "threads": torch.get_num_threads(),
        "forms": {
            "BEV pooling": bev_pool.bev_pool_form(detector.device),
            "CRF": crf.mean_field_form(detector.device),
            "convolutions": "fused" if options.fused else "plain",
            "encode, detect": "compiled" if case.compiled else "eager",
        },
        "boxes": boxes,
        "before_bytes": before,
        "peak_bytes": probe.peak["whole"],
        **spread(probe.seconds["whole"]),
    }
    if case.rigs:
        result["rigs"] = case.rigs
    if case.detail:
        if together:  # before the profiler, whose memory would count as theirs
            result |= _parts(probe)
        result |= _operators(case, step, detector.device)
        if not together:
            probe = Probe(detector.device)
            with watched(detector, probe):
                _repeat(case, step, probe)
            result |= _parts(probe)
    return result


def _repeat(case: Case, step: Callable[[], int], probe: Probe) -> int:
    """Warm up and measure; the number of boxes of the last repetition."""
    boxes = 0
    with probe.sampling():
        for index in range(case.warmup + case.repeats):
            with probe.span("whole"):
                boxes = step()
            probe.end_of_run(keep=index >= case.warmup)
    return boxes


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, minimum and maximum, and all values in the order they were measured; seconds."""
    return {
        "median_s": median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "values_s": [round(value, 7) for value in seconds],
    }


def _detector_step(detector: Detector, mode: str) -> Callable[[], int]:
    """A function that runs the detector on the next frame of a drive and returns the number of boxes."""
    config = detector.config
    window = [drive_frame(config, index) for index in range(config.history.frames, -1, -1)]
    if mode == "window":
        return lambda: len(detector.window(window))
    frames = (drive_frame(config, index) for index in range(config.history.frames + 1, sys.maxsize))
    if mode == "streaming":
        for frame in reversed(window):
            detector.step(frame)
        return lambda: len(detector.step(next(frames)))

    def single() -> int:
        detector.reset()
        return len(detector.step(next(frames)))

    return single


def _rigs_step(detector: Detector, case: Case) -> Callable[[], int]:
    network = rigs_step(detector.model, case.rigs, case.mode, detector.device, detector._autocast)

    def step() -> int:
        network()
        return 0

    return step


def _operators(case: Case, step: Callable[[], int], device: torch.device) -> dict[str, Any]:
    profiled = [operator_seconds(step, device) for _ in range(min(case.repeats, 3))]
    wall = median(seconds for seconds, _ in profiled)
    kinds = sorted({kind for _, seconds in profiled for kind in seconds})
    # Shares run by run: a run that was disturbed is disturbed in all of its parts.
    shares = [seconds.get("convolution", 0.0) / whole for whole, seconds in profiled]
    return {
        "profiled_s": wall,
        "operators": {kind: median(seconds.get(kind, 0.0) for _, seconds in profiled) for kind in kinds},
        "convolution_share": median(shares),
        "convolution_shares": [round(share, 4) for share in shares],
    }


def _parts(probe: Probe) -> dict[str, Any]:
    """Stages with their rest, and components, each with its spread."""
    whole = probe.seconds["whole"]
    stages = {name: probe.seconds[name] for name in STAGES if name in probe.seconds}
    rest = [total - sum(values) for total, *values in zip(whole, *stages.values(), strict=True)]
    parts = {
        name: {**spread(values), "peak_bytes": probe.peak[name]} for name, values in probe.seconds.items()
    }
    return {
        "watched_s": median(whole),
        "stages": {
            **{name: parts[name] for name in stages},
            "rest": {**spread(rest), "peak_bytes": probe.peak["whole"]},
        },
        "components": {name: part for name, part in parts.items() if name not in stages and name != "whole"},
    }


@contextmanager
def watched(detector: Detector, probe: Probe) -> Iterator[None]:
    """Attach the probe to the detector's stages and to the parts of its network. Not taken off the network again."""
    model: Any = detector.model
    for name, title in MODULES.items():
        if getattr(model, name) is not None:
            probe.watch_module(getattr(model, name), title)
    probe.watch_module(model.depth_net.reduce, "depth network")
    probe.watch_method(model.depth_net, "branches", "depth network")
    probe.watch_method(model.view_transform, "plan", "plan")
    probe.watch_method(detector, "_prepare", "preprocess")
    for stage in ("encode", "lift", "detect"):
        probe.watch_method(model, stage, stage)
    decode = detector_module.boxes_from_maps
    detector_module.boxes_from_maps = probe.wrapped(decode, "decode")
    try:
        yield
    finally:
        detector_module.boxes_from_maps = decode


def main(arguments: list[str]) -> int:
    case, result = map(Path, arguments)
    try:
        text = json.dumps(measure(Case(**json.loads(case.read_text()))))
    except (BevnextError, torch.cuda.OutOfMemoryError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    result.write_text(text)
    return 0


def case_to_json(case: Case) -> str:
    return json.dumps(dataclasses.asdict(case))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
