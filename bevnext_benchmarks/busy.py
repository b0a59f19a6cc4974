"""The streaming step while other processes keep the processor busy, with threads that wait actively and passively.

    python -m bevnext_benchmarks.busy --checkpoint weights/demo_stage2.safetensors

Each measurement runs in a process of its own, since the OpenMP runtime reads its settings when it is loaded; ``spin``
is the runtimes' default (what was measured before these settings came), ``passive`` what every program sets now.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from bevnext_core.files import Parser
from bevnext_core.threads import WAITING, usable_cores

WAYS: dict[str, dict[str, str]] = {"spin": {}, "passive": WAITING}


def main() -> None:
    parser = Parser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 2, 4, 8], help="busy processes")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=10, help="steps before, which fill the history")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(*steps(args.checkpoint, args.warmup, args.steps))
        return
    from bevnext_core.device import machine

    print(f"{machine('cpu')}, {args.threads} threads, {args.steps} steps; ms: median (quartiles)")
    print("| busy processes | " + " | ".join(WAYS) + " |\n|---" + "|---" * len(WAYS) + "|")
    for count in args.beside:
        cells = []
        for settings in WAYS.values():
            with busy(count):
                cells.append(measured(args, settings))
        print(f"| {count} | " + " | ".join(cells) + " |", flush=True)


def measured(args: argparse.Namespace, settings: dict[str, str]) -> str:
    """Median and quartiles of the step in a process with these settings."""
    env = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-m", "bevnext_benchmarks.busy", "--here", "--checkpoint", args.checkpoint]
    command += ["--warmup", str(args.warmup), "--steps", str(args.steps)]
    env |= {**settings, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    low, middle, high = np.percentile([float(word) for word in done.stdout.split()], (25, 50, 75))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def steps(checkpoint: str, warmup: int, count: int) -> Iterator[float]:
    """Milliseconds of each of ``count`` steps after the first ``warmup``."""
    from bevnext_core.detector import Detector
    from bevnext_core.export.noise_drive import drive_frame

    detector = Detector.from_checkpoint(checkpoint)
    for index in range(warmup + count):
        frame = drive_frame(detector.config, index)
        begin = time.perf_counter()
        detector.step(frame)
        if index >= warmup:
            yield 1e3 * (time.perf_counter() - begin)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
