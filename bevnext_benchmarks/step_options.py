"""The streaming step with each of the detector's ways to do it, taking turns: what each of them is worth.

    python -m bevnext_benchmarks.step_options --device cuda --precision fp16

Random weights, a noise drive and a full history, as in ``bevnext benchmark``. Times are from images to boxes, with
nothing in between that waits for the device; the last column is the largest relative L2 difference of a head map to
the first way's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bevnext_benchmarks.workload import drive_frame, random_network
from bevnext_core.config import load_config, published_config
from bevnext_core.detector import Detector, DetectorOptions

WAYS: dict[str, dict[str, Any]] = {
    "frame by frame, PIL": {"batched_lift": False, "device_resize": False},
    "batched lift": {"batched_lift": True, "device_resize": False},
    "batched lift, device resize": {"batched_lift": True, "device_resize": True},
    "CUDA graphs": {"compile": True, "compile_mode": "graphs"},
    "torch.compile": {"compile": True},
    "torch.compile, CUDA graphs": {"compile": True, "compile_mode": "reduce-overhead"},
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The streaming step with each of the detector's options.")
    parser.add_argument("--config", metavar="FILE", help="model configuration (default: R50 stage 2)")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--ways", type=int, nargs="+", default=range(len(WAYS)), help=f"which of {[*WAYS]}, from 0")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args(arguments)
    config = load_config(Path(args.config)) if args.config else published_config(2)
    model = random_network(config)
    chosen = [list(WAYS)[index] for index in args.ways]
    detectors = {}
    for way in chosen:
        options: dict[str, Any] = {"precision": args.precision, **WAYS[way]}
        detectors[way] = Detector(model, args.device, DetectorOptions(**options))
    history = config.history.frames + 1
    maps: dict[str, list[torch.Tensor]] = {}
    for way, detector in detectors.items():
        for index in range(history):
            detector.step(drive_frame(config, index))
        tasks = detector.step_maps(drive_frame(config, history)).tasks
        maps[way] = [value.float().cpu() for task in tasks for value in task.values()]
    seconds: dict[str, list[float]] = {way: [] for way in chosen}
    for repeat in range(args.repeats + 2):
        frame = drive_frame(config, history + 1 + repeat)
        for way, detector in detectors.items():
            start = time.perf_counter()
            detector.step(frame)  # ends with the boxes on the host
            if repeat >= 2:
                seconds[way].append(time.perf_counter() - start)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    print(f"{config.name}, {args.precision}, {device}, torch {torch.__version__}; milliseconds, {args.repeats} steps")
    print(f"{'':30}{'median':>10}{'least':>10}{'most':>10}{'difference':>12}")
    for way in chosen:
        values = [1e3 * value for value in seconds[way]]
        difference = max(
            float((a - b).norm() / b.norm()) for a, b in zip(maps[way], maps[chosen[0]], strict=True)
        )
        print(f"{way:30}{median(values):10.1f}{min(values):10.1f}{max(values):10.1f}{difference:12.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
