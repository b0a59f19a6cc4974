# SPDX-License-Identifier: Apache-2.0
"""``encode`` and ``detect`` as programs with tensors in and out, and a network that is run by such programs.

They are what is compiled, recorded and exported. Lifting stays outside: its plan comes from the pose, and its
operators are compiled already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras, HeadMaps
from bevnext_core.network.camera_geometry import BY_CAMERA, CameraGeometry
from bevnext_core.network.heads import REGRESSION
from bevnext_core.network.inference import autocast

Program = Callable[..., Sequence[Tensor]]
GEOMETRY = (*BY_CAMERA, "bda")
"""The tensors of a geometry in the order in which a program takes them."""
MAPS = ("heatmap", *REGRESSION)
"""A task's head maps in the order in which a program gives them."""


class EncodeProgram(nn.Module):
    """``BEVNeXt.encode``: images, colours, camera parameters -> depth, context."""

    def __init__(self, model: BEVNeXt, precision: str = "fp32", device: str = "cpu") -> None:
        super().__init__()
        self.model, self.precision, self.device = model, precision, device

    def forward(self, images: Tensor, colors: Tensor, camera_parameters: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.precision):
            encoded = self.model.encode(images, colors, camera_parameters)
        return encoded.depth, encoded.context


class DetectProgram(EncodeProgram):
    """``BEVNeXt.detect``: BEV, the present frame's depth and context, :data:`GEOMETRY` -> :data:`MAPS` per task."""

    def forward(  # type: ignore[override]
        self, bev: Tensor, depth: Tensor, context: Tensor, *geometry: Tensor
    ) -> tuple[Tensor, ...]:
        cameras = CameraGeometry(**dict(zip(GEOMETRY, geometry, strict=True)))
        with autocast(self.device, self.precision):
            maps = self.model.detect(bev, EncodedCameras(depth, context), cameras)
        return flat_maps(maps)


def geometry_tensors(geometry: CameraGeometry) -> tuple[Tensor, ...]:
    """:data:`GEOMETRY` of one."""
    return tuple(getattr(geometry, name) for name in GEOMETRY)


def flat_maps(maps: HeadMaps) -> tuple[Tensor, ...]:
    """The maps of all tasks, each task's as :data:`MAPS`."""
    return tuple(task[name] for task in maps.tasks for name in MAPS)


class ProgramNetwork(BEVNeXt):
    """Takes the place of ``model``, and shares all modules with it; two programs do its ``encode`` and ``detect``."""

    def __init__(self, model: BEVNeXt, encode: Program, detect: Program) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        for name, module in model.named_children():
            self.add_module(name, module)
        self._programs = encode, detect
        self.train(False)

    def encode(self, images: Tensor, colors: Tensor, camera_parameters: Tensor) -> EncodedCameras:
        return EncodedCameras(*self._programs[0](images, colors, camera_parameters))

    def detect(self, bev: Tensor, present: EncodedCameras, geometry: CameraGeometry) -> HeadMaps:
        values = iter(self._programs[1](bev, present.depth, present.context, *geometry_tensors(geometry)))
        tasks = [{name: next(values) for name in MAPS} for _ in self.config.tasks]
        return HeadMaps(tasks, present.depth)
