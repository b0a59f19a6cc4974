# SPDX-License-Identifier: Apache-2.0
"""``bevnext benchmark``: time and memory of a streaming step, a window and a single frame, and of their parts.

Each mode runs in a process of its own, so that its peak memory is its own. Inputs are a rig on a curved drive
with noise images; weights are random unless a checkpoint is given (the time does not depend on them, except for
the number of candidate boxes). docs/benchmark.md explains the result.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, get_args

import torch

from bevnext_benchmarks.environment import environment
from bevnext_benchmarks.measure import MODES, Case, measure
from bevnext_benchmarks.random_network import add_network_arguments
from bevnext_benchmarks.report import FORMAT, compare, read_results, table
from bevnext_core.checkpoint import read_checkpoint
from bevnext_core.config import ModelConfig, load_config, published_config
from bevnext_core.device import find_device
from bevnext_core.errors import BevnextError, one_line
from bevnext_core.files import atomic_path
from bevnext_core.precision import PRECISIONS, precision_text, resolve_precision
from bevnext_core.streaming.acceleration import CompileMode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_network_arguments(parser)
    add = parser.add_argument
    add("--compiled", metavar="FILE.pt2", help="with --checkpoint: measure its package of 'bevnext export'")
    add("--compile", nargs="?", const="default", choices=get_args(CompileMode), help="as of 'bevnext detect'")
    add("--modes", default=",".join(MODES), help="which, comma-separated (default: %(default)s)")
    add("--plain", action="store_true", help="plain PyTorch in place of this project's own operators")
    add("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add("--seconds", type=float, default=15, help="measure each mode at least so long (default: %(default)s)")
    add("--out", metavar="FILE", help="also write the results as JSON")
    ratios = "measure nothing: print how many times faster B is than A"
    add("--compare", nargs=2, metavar=("A.json", "B.json"), help=ratios)


def run(args: argparse.Namespace) -> int:
    """Measure each mode in a process of its own and print the tables."""
    if args.compare:
        print(compare(*(read_results(path) for path in args.compare)))
        return 0
    if args.seconds < 0 or args.threads < 0:
        raise BevnextError("--seconds and --threads must not be negative")
    modes = args.modes.split(",")
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise BevnextError(f"--modes: unknown {', '.join(unknown)}; known are {', '.join(MODES)}")
    if args.compiled and not args.checkpoint:
        raise BevnextError("--compiled needs --checkpoint, the weights that the package was made from")
    device = find_device(args.device)
    config = _config(args)
    threads = args.threads or torch.get_num_threads()
    results: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment(args.device),
        "network": config.name,
        "precision": resolve_precision(args.precision, device),
        "precision_asked": precision_text(args.precision, device),
        "threads": threads,
        "modes": {},
    }
    names = ("checkpoint", "compiled", "compile", "plain", "precision", "device", "seconds")
    given = {name: getattr(args, name) for name in names}
    for mode in modes:
        case = Case(mode, config, threads=threads, **given)
        print(f"measuring {mode} ...", file=sys.stderr, flush=True)
        results["modes"][mode] = in_own_process(case)
        results["forms"] = results["modes"][mode].pop("forms")
    print(table(results))
    if args.out:
        with atomic_path(args.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1))
    return 0


def in_own_process(case: Case) -> dict[str, Any]:
    """:func:`~bevnext_benchmarks.measure.measure` in a fresh process.

    Raises:
        BevnextError: it did not end well.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own lines
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, case).result()
        except (torch.cuda.OutOfMemoryError, BrokenProcessPool) as error:
            raise BevnextError(f"measuring {case.mode} failed: {one_line(error)}") from None


def _config(args: argparse.Namespace) -> ModelConfig:
    if args.checkpoint:
        return read_checkpoint(args.checkpoint)[0]
    return load_config(args.config) if args.config else published_config(2)
