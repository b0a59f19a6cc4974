# SPDX-License-Identifier: Apache-2.0
"""A network as three ONNX files: encode, lift and detect.

They hold standard operators only (opset 20; the deformable convolution is ``GridSample`` and a product). What ONNX
cannot express comes in as input, computed by the program that runs them: ``cells`` (which BEV cell each frustum point
falls into) and ``pixels`` with ``seen`` (where the anchors of the refinement appear in the images), both of which need
inverses of matrices. docs/export.md has their definitions, docs/deployment.md the way to TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bevnext_core.network.crf as crf_module
from bevnext_core.export.package import ExportError, example_inputs
from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.inference import autocast, for_inference
from bevnext_core.network.programs import MAPS, EncodeProgram, flat_maps
from bevnext_core.ops.crf.plain import mean_field_plain
from bevnext_core.precision import Precision
from bevnext_tools.export.noise_drive import network_inputs

OPSET = 20
LIFTED_VALUES = 2**24
"""Products of depth and context that 'lift' holds at a time, at least one depth bin's."""
LIMITS = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest relative L2 difference of an output to the network's in the same precision."""


class OnnxLift(nn.Module):
    """``depth, context, cells -> bev [1, C, Y, X]``: pooling by scattered addition, then the pre-process net."""

    def __init__(self, model: BEVNeXt, precision: str) -> None:
        super().__init__()
        self.pre_process = model.pre_process
        self.size, self.precision = model.config.bev.size, precision

    def forward(self, depth: Tensor, context: Tensor, cells: Tensor) -> Tensor:
        """``cells [N, D, h, w]`` int64: row * X + column; Y * X for a point in no cell."""
        cameras, bins, height, width = depth.shape
        channels, total = context.shape[1], self.size**2
        table = context.permute(0, 2, 3, 1).reshape(1, -1, channels)
        depth = depth.permute(1, 0, 2, 3).reshape(bins, -1, 1)
        cells = cells.permute(1, 0, 2, 3).reshape(bins, -1)
        step = max(1, LIFTED_VALUES // (cameras * height * width * channels))
        bev = torch.zeros(total + 1, channels)
        for start in range(0, bins, step):
            part = slice(start, start + step)
            lifted = (depth[part] * table).reshape(-1, channels)
            bev = bev.index_add(0, cells[part].reshape(-1), lifted)
        bev = bev[:total].reshape(1, self.size, self.size, channels).permute(0, 3, 1, 2)
        with autocast("cpu", self.precision):
            return self.pre_process(bev)


class OnnxDetect(nn.Module):
    """``bev, depth, context, pixels, seen -> the head maps``, task by task."""

    def __init__(self, model: BEVNeXt, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(
        self, bev: Tensor, depth: Tensor, context: Tensor, pixels: Tensor, seen: Tensor
    ) -> tuple[Tensor, ...]:
        attention: Any = self.model.refinement.attention
        attention.project = lambda geometry: (pixels, seen)
        try:
            with autocast("cpu", self.precision):
                return flat_maps(self.model.detect(bev, EncodedCameras(depth, context), None))  # type: ignore[arg-type]
        finally:
            del attention.project


def onnx_cells(model: BEVNeXt, geometry: CameraGeometry) -> Tensor:
    """``cells [N, D, h, w]`` int64 of one frame, as :class:`OnnxLift` takes them."""
    cells = model.view_transform.cell_of_points(geometry).long()
    total = model.config.bev.size**2
    return torch.where(cells < 0, total, cells).view(-1, *model.view_transform.shape)


@contextmanager
def plain_operators() -> Iterator[None]:
    """The network without operators of its own, while the block runs."""
    own = crf_module.mean_field
    crf_module.mean_field = mean_field_plain
    try:
        yield
    finally:
        crf_module.mean_field = own


@torch.no_grad()
def export_onnx(
    model: BEVNeXt, path: str | Path, precision: Precision = "fp32", fixed_shapes: bool = False
) -> dict[str, float | None]:
    """Write ``X.encode.onnx``, ``X.lift.onnx`` and ``X.detect.onnx`` beside ``path`` (``X.onnx``), and compare them.

    Args:
        model: in evaluation mode, on the CPU.
        precision: fp16: of the weights and convolutions, as in the detector.
        fixed_shapes: no shape depends on data: the refinement samples every camera for every cell, and drops what is
            not seen. More work, but what TensorRT compiles in one piece.

    Returns:
        largest relative L2 difference to the network on other inputs than the traced ones, by file;
        None without onnxruntime.

    Raises:
        ExportError: a package is missing, the network has no refinement, or a file does not compute what it does.
    """
    if model.refinement.attention is None:
        raise ExportError(f"ONNX export: '{model.config.name}' has no perspective refinement (refinement.heads: 0)")
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise ExportError("ONNX export needs onnx and onnxscript: pip install onnx onnxscript") from None
    model = for_inference(model, packed=False, precision=precision)
    attention: Any = model.refinement.attention
    attention.dense = fixed_shapes
    programs: dict[str, nn.Module] = {
        "encode": EncodeProgram(model, precision),
        "lift": OnnxLift(model, precision),
        "detect": OnnxDetect(model, precision),
    }
    traced, other = onnx_inputs(model, 0, precision), onnx_inputs(model, 5, precision)
    outputs = {
        "encode": ["depth", "context"],
        "lift": ["bev"],
        "detect": [f"{name}_{index}" for index in range(len(model.config.tasks)) for name in MAPS],
    }
    found: dict[str, float | None] = {}
    for name, program in programs.items():
        file = Path(path).with_suffix(f".{name}.onnx")
        file.parent.mkdir(parents=True, exist_ok=True)
        with plain_operators():
            expected = program.eval()(*other[name].values())
            torch.onnx.export(
                program,
                tuple(traced[name].values()),
                str(file),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(traced[name]),
                output_names=outputs[name],
                external_data=False,
                verbose=False,
            )
        expected = expected if isinstance(expected, tuple) else (expected,)
        difference = found[str(file)] = compare_with_onnxruntime(file, other[name], expected)
        limit = LIMITS[precision]
        if difference is not None and not difference <= limit:
            raise ExportError(f"{file} is off by {difference:.1e} (limit {limit:.0e}): do not use it")
    return found


def onnx_inputs(model: BEVNeXt, start: int, precision: str = "fp32") -> dict[str, dict[str, Tensor]]:
    """Named inputs of each file for one frame of a noise drive."""
    images, colors, geometry = network_inputs(model.config, start=start)
    given = example_inputs(model, images, colors, geometry, precision)
    bev, depth, context = given["detect"][:3]
    attention = model.refinement.attention
    assert attention is not None
    pixels, seen = attention.project(geometry)
    return {
        "encode": dict(zip(("images", "colors", "camera_parameters"), given["encode"], strict=True)),
        "lift": {"depth": depth, "context": context, "cells": onnx_cells(model, geometry)},
        "detect": {"bev": bev, "depth": depth, "context": context, "pixels": pixels, "seen": seen},
    }


def compare_with_onnxruntime(
    path: Path, inputs: dict[str, Tensor], expected: tuple[Tensor, ...]
) -> float | None:
    """Largest relative L2 difference of a file's outputs on the CPU; None without onnxruntime."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {name: value.contiguous().numpy() for name, value in inputs.items()}
    outputs = [torch.from_numpy(value) for value in session.run(None, given)]
    pairs = ((a.float(), b.float()) for a, b in zip(outputs, expected, strict=True))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)
