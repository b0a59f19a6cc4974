# SPDX-License-Identifier: Apache-2.0
"""``bevnext export``: compile a checkpoint's network ahead of time, or write it as ONNX, and check the result."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from bevnext_core.checkpoint import load_checkpoint
from bevnext_core.device import find_device
from bevnext_core.errors import BevnextError
from bevnext_core.export.package import ExportedNetwork, example_inputs, export_package, load_package
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.inference import autocast
from bevnext_core.precision import PRECISIONS, ieee_fp32, precision_text, resolve_precision
from bevnext_tools.checkpoints import checkpoint_file
from bevnext_tools.export.noise_drive import network_inputs

LIMITS = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Largest relative L2 difference to the eager network that a package may have, by precision."""

COMPUTES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="weights to export: a file or a name")
    add(
        "--out",
        required=True,
        metavar="PATH",
        help="X.pt2: a compiled package; X.onnx: three ONNX files, X.encode.onnx, X.lift.onnx and X.detect.onnx",
    )
    add("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the convolutions (default: %(default)s)")
    fixed = "ONNX: no shape depends on data, as TensorRT wants it (docs/deployment.md)"
    add("--fixed-shapes", action="store_true", help=fixed)


def run(args: argparse.Namespace) -> int:
    """Export, load what was written, and compare it with the network on other inputs."""
    suffix = Path(args.out).suffix
    if suffix not in (".pt2", ".onnx"):
        raise BevnextError(f"--out {args.out}: the name must end in .pt2 or .onnx")
    device = find_device(args.device)
    if args.fixed_shapes and suffix != ".onnx":
        raise BevnextError(f"--fixed-shapes is for ONNX files; the shapes of {args.out} are fixed anyway")
    if suffix == ".onnx":
        from bevnext_tools.export.onnx import export_onnx

        if args.precision not in ("fp32", "fp16") or device.type != "cpu":
            raise BevnextError("ONNX files are written in fp32 or fp16, on the CPU, for any device")
        model = load_checkpoint(checkpoint_file(args.checkpoint)).eval()
        for path, difference in export_onnx(model, args.out, args.precision, args.fixed_shapes).items():
            size = os.path.getsize(path) / 2**20
            compared = "not compared (no onnxruntime)" if difference is None else f"{difference:.1e}"
            print(f"{path}: {size:.1f} MiB, largest relative difference {compared}")
        return 0
    precision = resolve_precision(args.precision, device)
    model = load_checkpoint(checkpoint_file(args.checkpoint)).to(device).eval()
    start = time.perf_counter()
    export_package(model, args.out, *inputs(model, 0), precision)
    took = time.perf_counter() - start
    size, text = os.path.getsize(args.out) / 2**20, precision_text(args.precision, device)
    print(f"{args.out}: {size:.1f} MiB, {text}, compiled in {took:.0f} s")
    network = ExportedNetwork(model, load_package(args.out, device, precision))
    difference = largest_difference(model, network, precision)
    print(f"largest relative difference to the network: {difference:.1e} (limit {LIMITS[precision]:.0e})")
    if not difference <= LIMITS[precision]:
        raise BevnextError(f"{args.out} does not compute what the network does: do not use it")
    return 0


def inputs(model: BEVNeXt, start: int) -> tuple[torch.Tensor, torch.Tensor, CameraGeometry]:
    """Images, colours and geometry of one frame of a noise drive."""
    return network_inputs(model.config, next(model.parameters()).device, start)


@torch.inference_mode()
def largest_difference(model: BEVNeXt, network: ExportedNetwork, precision: str) -> float:
    """Largest relative L2 difference of any output of the programs, on inputs that were not the examples."""
    images, colors, geometry = inputs(model, 5)
    # One camera masked: a package must not depend on all of them seeing something.
    geometry.valid[..., -1] = False
    examples = example_inputs(model, images, colors, geometry, precision)
    with autocast(images.device, precision), ieee_fp32(images.device):
        encoded = [part.encode(*examples["encode"]) for part in (model, network)]
        bev = examples["detect"][0]
        maps = [part.detect(bev, encoded[0], geometry) for part in (model, network)]
    pairs = [(getattr(encoded[0], name), getattr(encoded[1], name)) for name in vars(encoded[0])]
    for eager, compiled in zip(maps[0].tasks, maps[1].tasks, strict=True):
        pairs += [(value, compiled[name]) for name, value in eager.items()]
    return max(float((a.float() - b.float()).norm() / a.float().norm()) for a, b in pairs)
