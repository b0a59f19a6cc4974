"""``bevnext benchmark``: time and memory of a streaming step, a window and a single frame, and how they grow.

Each case runs in a process of its own, so that its peak memory is its own. Inputs are a rig on a curved drive
with noise images; weights are random unless a checkpoint is given (the time does not depend on them, except for
the number of candidate boxes). docs/benchmark.md explains the result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bevnext_benchmarks.environment import environment, machine
from bevnext_benchmarks.measure import MODES, Case, case_to_json
from bevnext_benchmarks.plot import plot
from bevnext_benchmarks.report import FORMAT, compare, read_results, table
from bevnext_benchmarks.workload import SCALES, scaled
from bevnext_core.checkpoint import read_checkpoint
from bevnext_core.config import ModelConfig, config_to_mapping, load_config, published_config
from bevnext_core.errors import BevnextError
from bevnext_core.files import atomic_path

__all__ = ["add_arguments", "machine", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--config", metavar="FILE", help="model configuration (default: R50 stage 2)")
    network.add_argument("--checkpoint", metavar="FILE", help="measure this checkpoint's network")
    parser.add_argument(
        "--compiled", metavar="FILE.pt2", help="with --checkpoint: measure its package of 'bevnext export'"
    )
    parser.add_argument(
        "--modes", default=",".join(MODES), help="which, comma-separated (default: %(default)s)"
    )
    parser.add_argument(
        "--scale",
        action="append",
        metavar="AXIS[=V,V,...]",
        help="also measure other sizes, with random weights: "
        + "; ".join(f"{axis} ({','.join(values)})" for axis, values in SCALES.items())
        + "; or all. May be given several times",
    )
    parser.add_argument(
        "--options", choices=("own", "key"), default="own", help="crf_canvas and camera_params"
    )
    parser.add_argument(
        "--plain", action="store_true", help="plain PyTorch in place of this project's own operators"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument(
        "--warmup", type=int, default=1, help="repetitions before measuring (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repetitions measured (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw them (needs matplotlib)")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A.json", "B.json"),
        help="measure nothing: print how many times faster B is than A",
    )


def run(args: argparse.Namespace) -> int:
    """Measure each case in a process of its own and print the tables."""
    if args.compare:
        print(compare(*(read_results(path) for path in args.compare)))
        return 0
    if args.repeats < 1 or args.warmup < 0 or args.threads < 0:
        raise BevnextError("--repeats must be at least 1, --warmup and --threads not negative")
    modes = args.modes.split(",")
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise BevnextError(f"--modes: unknown {', '.join(unknown)}; known are {', '.join(MODES)}")
    config = _config(args)
    if args.compiled and not args.checkpoint:
        raise BevnextError("--compiled needs --checkpoint, the weights that the package was made from")
    axes = scale_axes(args.scale or [])
    # Sizes that the network cannot have are found before an hour of measuring, not after it.
    variants = {
        axis: [(value, scaled(config, axis, value)) for value in values] for axis, values in axes.items()
    }
    if args.plot and not args.plot.lower().endswith(".png"):
        raise BevnextError(f"--plot {args.plot}: the file's name must end in .png")
    where = environment(_usable(args.device))
    results: dict[str, Any] = {
        "format": FORMAT,
        "environment": where,
        "network": config.name,
        "checkpoint": str(args.checkpoint or ""),
        "compiled": str(args.compiled or ""),
        "config": config_to_mapping(config),
        "precision": args.precision,
        "options": args.options,
        "warmup": args.warmup,
        "repeats": args.repeats,
        "modes": {},
    }
    for mode in modes:
        results["modes"][mode] = _in_own_process(_case(args, mode, config, args.checkpoint), mode)
    for name in ("threads", "forms"):
        results[name] = results["modes"][modes[0]].pop(name)
    if variants:
        results["scale"] = {axis: _scale(args, modes, axis, sizes) for axis, sizes in variants.items()}
    print(table(results))
    if args.out:
        with atomic_path(args.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1))
    if args.plot:
        plot(results, args.plot)
    return 0


def scale_axes(given: list[str]) -> dict[str, tuple[str, ...]]:
    """``AXIS``, ``AXIS=V,V`` and ``all`` -> the values of each axis.

    Raises:
        BevnextError: an axis is unknown, or has no values.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for text in given:
        axis, equals, values = text.partition("=")
        if text == "all":
            axes = {**SCALES, **axes}
            continue
        if axis not in SCALES:
            raise BevnextError(f"--scale: unknown '{axis}'; known are {', '.join(SCALES)}, all")
        axes[axis] = tuple(values.split(",")) if equals else SCALES[axis]
    return axes


def _scale(
    args: argparse.Namespace, modes: list[str], axis: str, sizes: list[tuple[str, ModelConfig]]
) -> list[dict[str, Any]]:
    points = []
    for value, config in sizes:
        for mode in modes:
            if mode == "single":
                continue
            rigs = int(value) if axis == "batch" else 0
            case = _case(args, mode, config, rigs=rigs, detail=False)
            points.append({"value": value, **_in_own_process(case, f"{mode}, {axis} {value}")})
    return points


def _case(
    args: argparse.Namespace,
    mode: str,
    config: ModelConfig,
    checkpoint: str | None = None,
    rigs: int = 0,
    detail: bool = True,
) -> Case:
    return Case(
        mode=mode,
        config=config_to_mapping(config),
        checkpoint=str(checkpoint or ""),
        compiled=str(args.compiled or "") if checkpoint else "",
        rigs=rigs,
        plain=args.plain,
        options=args.options,
        precision=args.precision,
        device=args.device,
        threads=args.threads,
        warmup=args.warmup,
        repeats=args.repeats,
        detail=detail,
    )


def _in_own_process(case: Case, name: str) -> dict[str, Any]:
    print(f"measuring {name} ({case.warmup} + {case.repeats} repetitions) ...", file=sys.stderr, flush=True)
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "case.json", Path(folder) / "result.json"
        given.write_text(case_to_json(case))
        command = [sys.executable, "-m", "bevnext_benchmarks.measure", str(given), str(out)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environ)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise BevnextError(f"measuring {name} failed: {lines[-1]}")
        return json.loads(out.read_text())


def _config(args: argparse.Namespace) -> ModelConfig:
    if args.checkpoint:
        return read_checkpoint(args.checkpoint)[0]
    return load_config(args.config) if args.config else published_config(2)


def _usable(device: str) -> str:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BevnextError(
            f"device '{device}' was asked for, but PyTorch finds no CUDA device here; use 'cpu'"
        )
    return device
