"""Ahead-of-time compiled packages of a network, and the network that runs them.

A package is a zip file with two AOTInductor packages, ``encode.pt2`` and ``detect.pt2``, and ``bevnext.json``, which
says what they are for. Only PyTorch's public calls write and read them. Shapes are fixed (the configuration's
cameras, image, grid and history); calibration and poses are inputs, so that a package serves every rig with as many
cameras. Lifting stays outside: its plan depends on the pose, and its operators are compiled already.
"""

from __future__ import annotations

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

from bevnext_core.config import ModelConfig, config_from_mapping, config_to_mapping, network_differences
from bevnext_core.errors import BevnextError
from bevnext_core.files import atomic_path, user_path
from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras, HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.inference import autocast, for_inference

FORMAT = "bevnext-package-2"
PROGRAMS = ("encode", "detect")
DESCRIPTION = "bevnext.json"
GEOMETRY = ("rotation", "translation", "intrinsics", "image_rotation", "image_translation", "bda", "valid")


class ExportError(BevnextError):
    """A package cannot be made, read, or used with this network, device, precision or version of PyTorch."""


# -------------------------------------------------------------------------------------------- programs
class EncodeProgram(nn.Module):
    """``BEVNeXt.encode`` with tensors in and out: depth, context."""

    def __init__(self, model: BEVNeXt, precision: str = "fp32", device: str = "cpu") -> None:
        super().__init__()
        self.model, self.precision, self.device = model, precision, device

    def forward(self, images: Tensor, colors: Tensor, camera_parameters: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.precision):
            encoded = self.model.encode(images, colors, camera_parameters)
        return encoded.depth, encoded.context


class DetectProgram(nn.Module):
    """``BEVNeXt.detect`` with tensors in and out: the head maps, task by task, in the order of :func:`map_names`."""

    def __init__(self, model: BEVNeXt, precision: str = "fp32", device: str = "cpu") -> None:
        super().__init__()
        self.model, self.precision, self.device = model, precision, device

    def forward(self, bev: Tensor, depth: Tensor, context: Tensor, *geometry: Tensor) -> tuple[Tensor, ...]:
        tasks = self.maps(bev, depth, context, *geometry)
        return tuple(value for task in tasks for value in task.values())

    def maps(self, bev: Tensor, depth: Tensor, context: Tensor, *geometry: Tensor) -> list[dict[str, Tensor]]:
        """The head maps by task and name."""
        present = EncodedCameras(depth, context)
        cameras = CameraGeometry(**dict(zip(GEOMETRY, geometry, strict=True)))
        with autocast(self.device, self.precision):
            return self.model.detect(bev, present, cameras).tasks


@torch.no_grad()
def map_names(program: DetectProgram, inputs: tuple[Tensor, ...]) -> list[list[str]]:
    """Names of each task's head maps, in the order in which the program returns them."""
    return [list(task) for task in program.maps(*inputs)]


def geometry_tensors(geometry: CameraGeometry) -> tuple[Tensor, ...]:
    """The tensors of a geometry in the order in which the programs take them."""
    return tuple(getattr(geometry, name) for name in GEOMETRY)


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
    precision: str = "fp32",
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
    folded = for_inference(model, packed=False)
    examples = example_inputs(folded, images, colors, geometry, precision)
    detect = DetectProgram(folded, precision, images.device.type)
    programs = {"encode": EncodeProgram(folded, precision, images.device.type), "detect": detect}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for name in PROGRAMS:
            compile_program(programs[name], examples[name], Path(folder) / f"{name}.pt2")
        description = describe(model, examples, map_names(detect, examples["detect"]), precision)
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(DESCRIPTION, json.dumps(description, indent=1))
            for name in PROGRAMS:
                archive.write(Path(folder) / f"{name}.pt2", f"{name}.pt2")
    return description


def describe(
    model: BEVNeXt, examples: dict[str, tuple[Tensor, ...]], maps: list[list[str]], precision: str
) -> dict[str, Any]:
    """What a package has to say about itself; ``maps`` are the names of each task's head maps, in order."""
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "device": examples["encode"][0].device.type,
        "precision": precision,
        "config": config_to_mapping(model.config),
        "weights": weights_digest(model),
        "inputs": {name: [_layout(value) for value in examples[name]] for name in PROGRAMS},
        "maps": maps,
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
        raise ExportError(f"{path} is of the format '{kind}', needed is '{FORMAT}': run 'bevnext export' again")
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

    programs = {}
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        for name in PROGRAMS:
            archive.extract(f"{name}.pt2", folder)
            index = device.index if device.index is not None else -1
            try:
                programs[name] = torch._inductor.aoti_load_package(
                    str(Path(folder) / f"{name}.pt2"), device_index=index
                )
            except RuntimeError as error:
                raise ExportError(f"{path}: '{name}' cannot be loaded: {error}") from error
    return Package(description, programs)


class ExportedNetwork(BEVNeXt):
    """A network whose :meth:`encode` and :meth:`detect` are a package's programs; the rest is ``model``'s own.

    Takes the place of ``model`` in :class:`~bevnext_core.detector.Detector`, which it shares all modules with.

    Raises:
        ExportError: the package was made from another network or from other weights.
    """

    def __init__(self, model: BEVNeXt, package: Package) -> None:
        nn.Module.__init__(self)
        self.config: ModelConfig = model.config
        made_for = config_from_mapping(package.description["config"], "the package")
        different = network_differences(made_for, model.config)
        if different:
            raise ExportError(
                f"the package is of '{made_for.name}', whose {', '.join(different)} differ from those of the "
                f"network '{model.config.name}'"
            )
        if package.description["weights"] != weights_digest(model):
            raise ExportError("the package was made from other weights than the network's")
        for name, module in model.named_children():
            self.add_module(name, module)
        self.package = package
        self.train(False)

    def encode(self, images: Tensor, colors: Tensor, camera_parameters: Tensor) -> EncodedCameras:
        return EncodedCameras(*self._call("encode", (images, colors, camera_parameters)))

    def detect(self, bev: Tensor, present: EncodedCameras, geometry: CameraGeometry) -> HeadMaps:
        inputs = (bev, present.depth, present.context, *geometry_tensors(geometry))
        values = iter(self._call("detect", inputs))
        tasks = [{name: next(values) for name in names} for names in self.package.description["maps"]]
        return HeadMaps(tasks, present.depth)

    def _call(self, name: str, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
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
                value = torch.empty_strided(
                    layout["shape"], layout["stride"], dtype=dtype, device=value.device
                ).copy_(value)
            laid_out.append(value)
        return self.package.programs[name](*laid_out)
