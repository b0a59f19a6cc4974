# SPDX-License-Identifier: Apache-2.0
"""Networks with the reference's weights, and their intermediate tensors under the reference's names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bevnext_core.checkpoint import save_checkpoint
from bevnext_core.config import ModelConfig, load_config
from bevnext_core.network.bevnext import BEVNeXt, HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.published_names import published_names
from bevnext_core.streaming.preprocess import canvas_colors
from tests import recipe
from tests.paths import ROOT

CONFIGS = {
    "small1": "small_stage1",
    "small2": "small_stage2",
    "full1": "bevnext_r50_stage1",
    "full2": "bevnext_r50_stage2",
}


def config_of(variant: str) -> ModelConfig:
    return load_config(ROOT / "config" / "model" / f"{CONFIGS[variant]}.yaml")


def recipe_state(model: nn.Module, variant: str, tag: str = "A") -> dict[str, Tensor]:
    """The model's state dict (this project's names) filled by the recipe (published names)."""
    own = model.state_dict()
    names = published_names(own)
    entries = {names[key]: tuple(value.shape) for key, value in own.items()}
    state = recipe.state_dict(entries, variant, tag)
    return {key: torch.from_numpy(state[names[key]]) for key in own}


def published_state(model: nn.Module, variant: str, tag: str = "A") -> dict[str, Tensor]:
    """The same under the published names."""
    names = published_names(model.state_dict())
    return {names[key]: value for key, value in recipe_state(model, variant, tag).items()}


def build(variant: str, tag: str = "A") -> BEVNeXt:
    """A network with the recipe's weights, in evaluation mode."""
    model = BEVNeXt(config_of(variant))
    model.load_state_dict(recipe_state(model, variant, tag))
    return model.eval()


def save_small(path: Path) -> Path:
    """The small stage-2 network as a checkpoint; of its made-up boxes only the best are kept, which saves time."""
    config = config_of("small2")
    config = dataclasses.replace(config, head=dataclasses.replace(config.head, max_candidates=40))
    save_checkpoint(path, build("small2").state_dict(), config)
    return path


def geometry_from(arrays: dict[str, np.ndarray], frames: int) -> CameraGeometry:
    """The stored float32 matrices ``in.*`` (frame-major) of one sample."""

    def take(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"in.{name}"]).unflatten(1, (frames, 6))

    return CameraGeometry(
        take("rots"),
        take("trans"),
        take("intrins"),
        take("post_rots"),
        take("post_trans"),
        torch.from_numpy(arrays["in.bda"]),
    )


def window_inputs(config: ModelConfig, tag: str = "A") -> tuple[Tensor, Tensor]:
    """Images ``[1, F, 6, 3, H, W]`` and patch colours ``[1, F, 6, 3, H/8, W/8]`` of the recipe."""
    canvas = recipe.make_images(tag, config.history.frames + 1, config.image.height, config.image.width)
    images = torch.from_numpy(recipe.normalize(canvas)).unsqueeze(0)
    return images, canvas_colors(torch.from_numpy(canvas)).unsqueeze(0)


class Trace:
    """Records module outputs under the reference's names while a window runs."""

    def __init__(self, model: BEVNeXt) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = {}
        self._frame = -1

    def run(self, images: Tensor, colors: Tensor, geometry: CameraGeometry) -> HeadMaps:
        model, handles = self.model, []

        def record(
            module: nn.Module, name: str, per_frame: bool = False, argument: int | None = None
        ) -> None:
            def hook(_: nn.Module, inputs: tuple, output: Tensor) -> None:
                key = f"{name}_hist{self._frame}" if self._frame else name
                if self._frame == 0 or per_frame:
                    value = output if argument is None else inputs[argument]
                    self.tensors[key] = value.detach()

            handles.append(module.register_forward_hook(hook))

        def next_frame(*_: object) -> None:
            self._frame += 1

        def features(_: nn.Module, __: tuple, output: tuple[Tensor, ...]) -> None:
            if self._frame == 0:
                self.tensors.update(zip(("backbone_c3", "backbone_c4", "backbone_c5"), output, strict=True))

        handles.append(model.backbone.register_forward_pre_hook(next_frame))
        handles.append(model.backbone.register_forward_hook(features))
        record(model.neck, "neck")
        record(model.depth_net.reduce, "depth_reduce")
        record(model.depth_net.context_layers[0].offset, "dcn_offset")
        record(model.depth_net.context_layers[0], "dcn_out")
        record(model.depth_net.depth_layers, "depth_logits")
        record(model.depth_net.context_layers, "context")
        record(model.crf, "depth_prob", per_frame=True)
        record(model.crf, "crf_color", argument=1)
        record(model.view_transform, "bev_pooled", per_frame=True)
        record(model.pre_process, "bev_preprocessed", per_frame=True)

        def whole(module: nn.Module, name: str, argument: int | None = None) -> None:
            def hook(_: nn.Module, inputs: tuple, output: object) -> None:
                value = output if argument is None else inputs[argument]
                if isinstance(value, list):
                    for index, level in enumerate(value):
                        self.tensors[f"{name}_{index}"] = level.detach()
                else:
                    assert isinstance(value, Tensor)
                    self.tensors[name] = value.detach()

            handles.append(module.register_forward_hook(hook))

        whole(model.bev_backbone, "bev_cat", argument=0)
        whole(model.bev_backbone, "bev_backbone")
        if hasattr(model.bev_backbone, "fusion"):
            whole(model.bev_backbone.fusion, "fusion")
        whole(model.bev_neck, "bev_encoded")
        whole(model.depth_embedding, "depth_emb")
        whole(model.refinement.shared, "refine_shared")
        whole(model.refinement.attention, "refine_sca")
        whole(model.refinement.feedforward_norm, "refined")
        try:
            with torch.no_grad():
                maps = model(images, colors, geometry)
        finally:
            for handle in handles:
                handle.remove()
        for index, task in enumerate(maps.tasks):
            for name, value in task.items():
                self.tensors[f"task{index}.{name}"] = value
        return maps


def load_reference(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and description of one end-to-end reference output."""
    with np.load(folder / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    return arrays, json.loads((folder / f"{name}.json").read_text())


def rms_error(
    value: Tensor | np.ndarray, stored: np.ndarray, stride: int = 1, std: float | None = None
) -> float:
    """Root mean square difference over the reference's standard deviation; ``stored`` may be a subsample."""
    array = np.asarray(value, np.float64).reshape(-1)[::stride]
    golden = np.asarray(stored, np.float64).reshape(-1)
    assert array.shape == golden.shape, (array.shape, golden.shape)
    scale = golden.std() if std is None else std
    return float(np.sqrt(np.mean((array - golden) ** 2)) / max(scale, 1e-12))


def from_bottom_center(boxes: np.ndarray) -> np.ndarray:
    """The published code's boxes ``[M, 9]``, whose z is the bottom face's -> this project's geometric centre."""
    boxes = np.array(boxes, copy=True)
    boxes[..., 2] += boxes[..., 5] / 2
    return boxes


def max_error(
    value: Tensor | np.ndarray, stored: np.ndarray, stride: int = 1, std: float | None = None
) -> float:
    """Largest difference over the reference's standard deviation; as :func:`rms_error`."""
    array = np.asarray(value, np.float64).reshape(-1)[::stride]
    golden = np.asarray(stored, np.float64).reshape(-1)
    scale = golden.std() if std is None else std
    return float(np.abs(array - golden).max() / max(scale, 1e-12))
