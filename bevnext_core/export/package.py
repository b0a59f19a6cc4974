# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time compiled packages of a network, and the network that runs them.

A package is a zip file with two AOTInductor packages, ``encode.pt2`` and ``detect.pt2``, and ``bevnext.json``, which
says what they are for. Only PyTorch's public calls write and read them. Shapes are fixed (the configuration's
cameras, image, grid and history); calibration and poses are inputs, so that a package serves every rig with as many
cameras. Lifting stays outside: its plan depends on the pose, and its operators are compiled already.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bevnext_core.config import config_from_mapping, config_to_mapping, network_differences
from bevnext_core.errors import BevnextError
from bevnext_core.files import atomic_path, user_path
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.inference import autocast, for_inference
from bevnext_core.network.programs import DetectProgram, EncodeProgram, ProgramNetwork, geometry_tensors
from bevnext_core.precision import Precision, ieee_fp32

FORMAT = "bevnext-package-2"
PROGRAMS = ("encode", "detect")
DESCRIPTION = "bevnext.json"


class ExportError(BevnextError):
    """A package cannot be made, read, or used with this network, device, precision or version of PyTorch."""


@torch.no_grad()
def example_inputs(
    model: BEVNeXt, images: Tensor, colors: Tensor, geometry: CameraGeometry, precision: str = "fp32"
) -> dict[str, tuple[Tensor, ...]]:
    """Inputs of each program for one rig, laid out in memory as the detector's are.

    Args:
        images: ``[N, 3, H, W]`` normalised; colors: ``[N, 3, H/8, W/8]``; geometry: of one frame (B = F = 1).
    """
    parameters = geometry.camera_parameters().flatten(0, 2)
    with autocast(images.device, precision):
        encoded = model.encode(images, colors, parameters)
        lifted = model.lift(encoded, model.view_transform.plan(geometry))
        # The history looks like the present, scaled so that no two frames are equal.
        frames = [lifted * (1 - 0.05 * index) for index in range(model.config.history.frames + 1)]
        bev = torch.cat(frames, 1)
    return {
        "encode": (images, colors, parameters),
        "detect": (bev, encoded.depth, encoded.context, *geometry_tensors(geometry)),
    }


# -------------------------------------------------------------------------------------------- writing
def export_package(
    model: BEVNeXt,
    path: str | Path,
    images: Tensor,
    colors: Tensor,
    geometry: CameraGeometry,
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """Compile ``model`` (in evaluation mode, on its device) and write the package; takes minutes.

    Args:
        images, colors, geometry: one rig's, as :func:`example_inputs` takes them; only their shapes matter.

    Returns:
        the package's description.

    Raises:
        ExportError: PyTorch cannot trace or compile the network, for instance because there is no C++ compiler.
    """
    # Norms folded into the convolutions; oneDNN's own weights could not be written.
    folded = for_inference(model, packed=False, precision=precision)
    examples = example_inputs(folded, images, colors, geometry, precision)
    with torch.no_grad(), ieee_fp32(images.device), tempfile.TemporaryDirectory() as folder:
        for name, kind in zip(PROGRAMS, (EncodeProgram, DetectProgram), strict=True):
            program = kind(folded, precision, images.device.type)
            compile_program(program, examples[name], Path(folder) / f"{name}.pt2")
        description = describe(model, examples, precision)
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(DESCRIPTION, json.dumps(description, indent=1))
            for name in PROGRAMS:
                archive.write(Path(folder) / f"{name}.pt2", f"{name}.pt2")
    return description


def describe(model: BEVNeXt, examples: dict[str, tuple[Tensor, ...]], precision: str) -> dict[str, Any]:
    """What a package has to say about itself."""
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "device": examples["encode"][0].device.type,
        "precision": precision,
        "config": config_to_mapping(model.config),
        "weights": weights_digest(model),
        "inputs": {name: [_layout(value) for value in examples[name]] for name in PROGRAMS},
    }


def compile_program(program: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Trace ``program`` with fixed shapes and write its AOTInductor package.

    Raises:
        ExportError: PyTorch cannot trace or compile it.
    """
    try:
        exported = torch.export.export(program.eval(), inputs, strict=False)
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
    except Exception as error:  # torch raises anything here: its own errors, a compiler's, a parser's
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"PyTorch {torch.__version__} cannot compile '{path.stem}': {lines[0]}") from error


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names and values of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _layout(value: Tensor) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"shape": list(value.shape), "stride": list(value.stride()), "dtype": dtype}


# -------------------------------------------------------------------------------------------- reading
@dataclass
class Package:
    """A loaded package: the compiled programs, and what they are for."""

    description: dict[str, Any]
    programs: dict[str, Any]


def read_description(path: str | Path) -> dict[str, Any]:
    """What a package says about itself; nothing in it is run.

    Raises:
        ExportError: the file is missing, damaged or no package of this project.
    """
    path = user_path(path)
    if not path.is_file():
        raise ExportError(f"no such package: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read(DESCRIPTION))
            present = set(archive.namelist())
    except (zipfile.BadZipFile, KeyError, ValueError, OSError):
        description, present = None, set()
    kind = str(description.get("format")) if isinstance(description, dict) else ""
    if kind != FORMAT and kind.startswith("bevnext-package-"):
        raise ExportError(
            f"{path} is of the format '{kind}', needed is '{FORMAT}': run 'bevnext export' again"
        )
    if kind != FORMAT or not {f"{name}.pt2" for name in PROGRAMS} <= present:
        raise ExportError(f"{path} is not a package of 'bevnext export' ('{FORMAT}')")
    return description


def load_package(path: str | Path, device: str | torch.device, precision: str = "fp32") -> Package:
    """Load the compiled programs of a package. They are machine code: load only what you trust.

    Raises:
        ExportError: the file is no package, or it is for another device, precision or version of PyTorch.
    """
    path = user_path(path)
    description = read_description(path)
    device = torch.device(device)
    for what, have, want in (
        ("PyTorch", description["torch"], torch.__version__),
        ("device", description["device"], device.type),
        ("precision", description["precision"], precision),
    ):
        if have != want:
            raise ExportError(
                f"{path} was made for {what} {have}, this is {want}: run 'bevnext export' again"
            )
    import torchvision  # noqa: F401  registers the deformable convolution that 'encode' calls

    programs, index = {}, -1 if device.index is None else device.index
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        for name in PROGRAMS:
            file = archive.extract(f"{name}.pt2", folder)
            try:
                programs[name] = torch._inductor.aoti_load_package(file, device_index=index)
            except RuntimeError as error:
                raise ExportError(f"{path}: '{name}' cannot be loaded: {error}") from error
    return Package(description, programs)


class ExportedNetwork(ProgramNetwork):
    """A network that a package's programs run.

    Raises:
        ExportError: the package was made from another network or from other weights.
    """

    def __init__(self, model: BEVNeXt, package: Package) -> None:
        made_for = config_from_mapping(package.description["config"], "the package")
        if different := network_differences(made_for, model.config):
            raise ExportError(
                f"the package is of '{made_for.name}', whose {', '.join(different)} differ from those of the "
                f"network '{model.config.name}'"
            )
        if package.description["weights"] != weights_digest(model):
            raise ExportError("the package was made from other weights than the network's")
        self.package = package
        super().__init__(model, *(functools.partial(self._call, name) for name in PROGRAMS))

    def _call(self, name: str, *inputs: Tensor) -> Sequence[Tensor]:
        # The compiled code trusts shapes, types and strides.
        layouts = self.package.description["inputs"][name]
        laid_out = []
        for index, (value, layout) in enumerate(zip(inputs, layouts, strict=True)):
            dtype = getattr(torch, layout["dtype"])
            if list(value.shape) != layout["shape"] or value.dtype != dtype:
                raise ValueError(
                    f"input {index} of '{name}' is {value.dtype}{list(value.shape)}; the package was compiled for "
                    f"{dtype}{layout['shape']}"
                )
            if list(value.stride()) != layout["stride"]:
                empty = torch.empty_strided(
                    layout["shape"], layout["stride"], dtype=dtype, device=value.device
                )
                value = empty.copy_(value)
            laid_out.append(value)
        return self.package.programs[name](*laid_out)
