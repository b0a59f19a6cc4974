# SPDX-License-Identifier: Apache-2.0
"""``bevnext precisions``: the streaming step in fp32 and in what ``auto`` stands for here, taking turns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from bevnext_benchmarks.measure import step_function
from bevnext_benchmarks.random_network import add_network_arguments, chosen_network
from bevnext_benchmarks.report import quartiles, spread
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.device import find_device, machine
from bevnext_core.errors import BevnextError
from bevnext_core.precision import PRECISIONS, precision_text

COMPUTES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_network_arguments(parser)
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "auto"], help="(default: fp32 auto)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure and print a table."""
    if args.rounds < 1:
        raise BevnextError(f"--rounds must be at least 1, got {args.rounds}")
    device, model = find_device(args.device), chosen_network(args)
    steps = {
        precision_text(precision, device): step_function(
            Detector(model, device, DetectorOptions(precision=precision)), "streaming"
        )
        for precision in args.precisions
    }
    about = f"{machine(device)}, {torch.get_num_threads()} threads, {args.rounds} rounds"
    print(f"{about}; ms: median (quartiles)\n")
    print(f"| streaming step | {' | '.join(steps)} | ratio |\n|---{'|---' * len(steps)}|---|")
    found = measure(steps, args.rounds)
    ratio = quartiles(found[0])[1] / quartiles(found[-1])[1]
    print(f"| {model.config.name} | {' | '.join(map(spread, found))} | {ratio:.2f} |")
    return 0


def measure(steps: dict[str, Callable[[], int]], rounds: int) -> list[list[float]]:
    """Seconds of each step in each round, in turns, after one that does not count; its boxes end on the host."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds + 1):
        for step, seconds in zip(steps.values(), times, strict=True):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
    return [seconds[1:] for seconds in times]
