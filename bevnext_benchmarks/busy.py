# SPDX-License-Identifier: Apache-2.0
"""The streaming step while other processes keep the processor busy, with threads that wait actively and passively.

    python -m bevnext_benchmarks.busy --checkpoint weights/demo_stage2.safetensors

Each measurement runs in a process of its own, since the OpenMP runtime reads its settings when it is loaded: ``unset``
leaves them to the runtime, ``active`` is what a user may set, ``passive`` what every program here sets. The last column
is what passive waiting gains over the first way; below 1 it costs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from bevnext_benchmarks.report import quartiles, spread
from bevnext_core.files import Parser
from bevnext_tools.threads import WAITING, usable_cores

WAYS: dict[str, dict[str, str]] = {"unset": {}, "active": {"OMP_WAIT_POLICY": "active"}, "passive": WAITING}


def main() -> None:
    parser = Parser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 2, 4, 8], help="busy processes")
    parser.add_argument("--ways", nargs="+", default=["unset"], choices=[*WAYS][:-1], help="beside passive")
    parser.add_argument("--steps", type=int, default=30, help="at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="and no longer (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=10, help="steps before, which fill the history")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(*steps(args.checkpoint, args.warmup, args.steps, args.seconds))
        return
    from bevnext_core.device import machine

    ways = [*args.ways, "passive"]
    print(f"{machine('cpu')}, {args.threads} threads, {args.steps} steps at most; ms: median (quartiles)\n")
    print(f"| busy processes | {' | '.join(ways)} | ratio |\n|---{'|---' * len(ways)}|---|")
    for count in args.beside:
        found = []
        for way in ways:
            with busy(count):
                found.append(measured(args, WAYS[way]))
        ratio = quartiles(found[0])[1] / quartiles(found[-1])[1]
        print(f"| {count} | {' | '.join(map(spread, found))} | {ratio:.2f} |", flush=True)


def measured(args: argparse.Namespace, settings: dict[str, str]) -> list[float]:
    """Seconds of each step in a process with these settings."""
    env = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-m", "bevnext_benchmarks.busy", "--here", "--checkpoint", args.checkpoint]
    command += ["--warmup", str(args.warmup), "--steps", str(args.steps)]
    command += ["--seconds", str(args.seconds)]
    env |= {**settings, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def steps(checkpoint: str, warmup: int, count: int, seconds: float) -> Iterator[float]:
    """Seconds of each of ``count`` steps after the first ``warmup``; none begins after so many ``seconds`` of them."""
    from bevnext_core.detector import Detector
    from bevnext_tools.export.noise_drive import drive_frame

    detector = Detector.from_checkpoint(checkpoint)
    total = 0.0
    for index in range(warmup + count):
        frame = drive_frame(detector.config, index)
        begin = time.perf_counter()
        detector.step(frame)
        if index >= warmup:
            took = time.perf_counter() - begin
            total += took
            yield took
        if total >= seconds:
            return


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
