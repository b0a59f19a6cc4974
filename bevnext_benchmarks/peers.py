# SPDX-License-Identifier: Apache-2.0
"""``bevnext peers``: encode and detect in onnxruntime, in OpenVINO and here, on the CPU, taking turns.

The others run the files of ``bevnext export --out X.onnx``; what they give is compared before anything is timed. Each
turn is one run to warm up and one that counts. Needs the packages of the extra ``peers``.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Measurement, Timer

from bevnext_benchmarks.random_network import add_network_arguments, chosen_network
from bevnext_core.device import machine
from bevnext_core.errors import BevnextError
from bevnext_core.export.package import example_inputs
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.inference import for_inference
from bevnext_core.network.programs import DetectProgram, EncodeProgram
from bevnext_tools.export.noise_drive import network_inputs
from bevnext_tools.export.onnx import export_onnx, onnx_inputs

PARTS = {"encode": EncodeProgram, "detect": DetectProgram}
FORMS = ("this project, fp32", "onnxruntime, fp32", "OpenVINO, fp32", "this project, bf16", "OpenVINO, bf16")
LIMIT = {"fp32": 1e-2, "bf16": 1.0}
"""Largest relative L2 difference of an output to fp32 here; random weights magnify what bf16 rounds."""

NEEDED = ("onnx", "onnxscript", "onnxruntime", "openvino")
COMPUTES = True

Work = Callable[[], list[Tensor]]


def works(model: BEVNeXt, folder: Path, threads: int) -> dict[str, dict[str, Work]]:
    """For encode and detect, a function of each form of :data:`FORMS` that runs it on the same inputs."""
    export_onnx(model, folder / "x.onnx")
    named, given_here = onnx_inputs(model, 0), example_inputs(model, *network_inputs(model.config))
    found: dict[str, dict[str, Work]] = {}
    for part in PARTS:
        file, given = folder / f"x.{part}.onnx", {name: v.contiguous().numpy() for name, v in named[part].items()}
        found[part] = {}
        for form in FORMS:
            name, precision = form.split(", ")
            if name == "onnxruntime":
                found[part][form] = in_onnxruntime(file, given, threads)
            elif name == "OpenVINO":
                found[part][form] = in_openvino(file, given, threads, precision)
            else:
                found[part][form] = here(model, part, precision, given_here[part])
    return found


def here(model: BEVNeXt, part: str, precision: Any, inputs: tuple[Tensor, ...]) -> Work:
    network = for_inference(model, packed=None if precision == "fp32" else False, precision=precision)
    program = PARTS[part](network, precision).eval()

    def work() -> list[Tensor]:
        with torch.inference_mode():
            return [value.float() for value in program(*inputs)]

    return work


def in_onnxruntime(file: Path, given: dict[str, Any], threads: int) -> Work:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # while it is not its turn
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: [torch.from_numpy(value) for value in session.run(None, given)]


def in_openvino(file: Path, given: dict[str, Any], threads: int, precision: str) -> Work:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision)}
    compiled = openvino.Core().compile_model(str(file), "CPU", hints)
    return lambda: [torch.from_numpy(value) for value in compiled(given).values()]


def measure(forms: dict[str, Work], part: str, rounds: int, threads: int) -> list[Measurement]:
    """Compare, then time, taking turns.

    Raises:
        AssertionError: a form does not give what the first one gives.
    """
    first, *_ = forms
    expected = forms[first]()
    for form, work in forms.items():
        error = max(float((a - b).norm() / b.norm()) for a, b in zip(work(), expected, strict=True))
        assert error <= LIMIT[form.split(", ")[1]], f"{part}: '{form}' is off by {error:.1e}"
    timers = [
        Timer("work()", globals={"work": work}, num_threads=threads, sub_label=part, description=form)
        for form, work in forms.items()
    ]
    return Measurement.merge([t.blocked_autorange(min_run_time=0) for _ in range(rounds) for t in timers])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_network_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure and print a table."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise BevnextError(f"peers needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if args.rounds < 1:
        raise BevnextError(f"--rounds must be at least 1, got {args.rounds}")
    threads = torch.get_num_threads()
    model = chosen_network(args)
    print(f"{model.config.name}, {machine('cpu')}, {threads} threads, {args.rounds} rounds; seconds, median (IQR)\n")
    print(f"| | {' | '.join(FORMS)} |\n|---{'|---' * len(FORMS)}|")
    with tempfile.TemporaryDirectory() as folder:
        for part, forms in works(model, Path(folder), threads).items():
            cells = [f"{m.median:.3g} ({m.iqr:.2g})" for m in measure(forms, part, args.rounds, threads)]
            print(f"| {part} | {' | '.join(cells)} |", flush=True)
    return 0
