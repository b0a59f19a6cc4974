# SPDX-License-Identifier: Apache-2.0
"""The model's configuration: frozen pydantic dataclasses with the published defaults, overridden by a YAML file.

The defaults are BEVNeXt R50 stage 2 at 256x704. A configuration travels inside its checkpoint, so a
checkpoint is enough to build its network. ``bevnext config --dump`` prints a complete file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from bevnext_core.classes import ANCHOR_CAMERA, CAMERAS
from bevnext_core.errors import ConfigError as ConfigError
from bevnext_core.strict import from_mapping, model, read_yaml, to_mapping

FEATURE_STRIDE = 8
"""Pixels of the network's input per cell of its feature map (published: neck output at stride 8)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)  # what was read names file and key


@model
class ImageConfig:
    """Network input, pixels. Both sides must be multiples of 32 (the backbone's deepest stride)."""

    height: int = Field(256, gt=0, multiple_of=32)
    width: int = Field(704, gt=0, multiple_of=32)

    @property
    def feature_size(self) -> tuple[int, int]:
        """(rows, columns) of the feature map."""
        return self.height // FEATURE_STRIDE, self.width // FEATURE_STRIDE


@model
class BackboneConfig:
    """ResNet-50 and the neck. ``base_channels`` is the stem's width (64 as published)."""

    base_channels: PositiveInt = 64
    neck_channels: PositiveInt = 512


@model
class DepthConfig:
    """Depth bins min, min + step, ... below max (metres), the depth network's width, and the CRF.

    0 ``crf_iterations`` leave the CRF out: the depth is the softmax of the logits (an ablation). ``lift_to`` says where
    the features of a bin go, which stands for depths from its value to the next: as published to the former.
    """

    min: PositiveFloat = 1.0
    max: float = 60.0
    step: PositiveFloat = 0.5
    lift_to: Literal["edge", "middle"] = "edge"
    mid_channels: int = Field(256, gt=0, multiple_of=4)  # groups of the deformable convolution
    crf_iterations: NonNegativeInt = 20
    crf_zeta: PositiveFloat = 0.001
    crf_weight: float = 0.015

    def __post_init__(self) -> None:
        _require(self.min < self.max, f"needs 0 < min < max, got {self.min:g} and {self.max:g}")

    @property
    def bins(self) -> int:
        """Number of depth bins."""
        return len(self.values)

    @property
    def values(self) -> list[float]:
        """Depth that each bin is lifted to, metres."""
        count = math.ceil((self.max - self.min) / self.step - 1e-6)
        return [self.min + (i + 0.5 * (self.lift_to == "middle")) * self.step for i in range(count)]


@model
class BevConfig:
    """The BEV grid in the ego frame: square, centred, one cell in height; metres."""

    extent: PositiveFloat = 51.2
    cell: PositiveFloat = 0.8
    z_min: float = -5.0
    z_max: float = 3.0
    encoder_channels: int = 256

    def __post_init__(self) -> None:
        cells = 2 * self.extent / self.cell
        _require(abs(cells - round(cells)) < 1e-6, f"2 * extent / cell must be a whole number, got {cells:g}")
        _require(round(cells) % 8 == 0, f"the grid must have a multiple of 8 cells a side, got {cells:g}")
        _require(self.z_min < self.z_max, "z_min must be below z_max")

    @property
    def size(self) -> int:
        """Cells along x, and along y."""
        return round(2 * self.extent / self.cell)


@model
class HistoryConfig:
    """Past frames that the network was trained on: slot k holds the frame ``k * interval`` seconds ago.

    ``group_width`` and ``split_width`` are Res2Fusion's base widths, out of 64: each of its three groups is
    ``channels / 2 * group_width / 64`` wide, each of a block's four splits ``channels / 4 * split_width / 64``.
    """

    frames: NonNegativeInt = 8
    interval: PositiveFloat = 0.5
    group_width: PositiveInt = 48
    split_width: PositiveInt = 32

    def __post_init__(self) -> None:
        _require(
            self.frames == 0 or (self.frames + 1) % 3 == 0,
            f"frames must be 0 or 2, 5, 8, ... (Res2Fusion takes three equal groups), got {self.frames}",
        )


@model
class RefinementConfig:
    """Perspective refinement: deformable attention from BEV cells to image features; 0 ``heads`` leave it out."""

    heads: NonNegativeInt = 8
    height_anchors: PositiveInt = 8
    feedforward_ratio: PositiveInt = 4


@model
class TaskConfig:
    """Classes that share a head, and their non-maximum suppression.

    ``rotated``: suppress above an IoU of ``threshold``. ``circle``: suppress where the SQUARED centre
    distance is at most ``threshold`` (published: compared without a square). ``scales`` multiply a class's
    boxes for the suppression only (scale-NMS).
    """

    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    nms: Literal["rotated", "circle"] = "rotated"
    threshold: NonNegativeFloat = 0.2
    scales: tuple[PositiveFloat, ...] = ()

    def __post_init__(self) -> None:
        _require(
            len(self.scales) in (0, len(self.classes)),
            f"scales must be empty or one per class ({len(self.classes)}), got {len(self.scales)}",
        )


PUBLISHED_TASKS = (
    TaskConfig(("car",), scales=(1.0,)),
    TaskConfig(("truck", "construction_vehicle"), scales=(0.7, 0.7)),
    TaskConfig(("bus", "trailer"), scales=(0.4, 0.55)),
    TaskConfig(("barrier",), nms="circle", threshold=1.0),
    TaskConfig(("motorcycle", "bicycle"), scales=(1.0, 1.0)),
    TaskConfig(("pedestrian", "traffic_cone"), threshold=0.5, scales=(4.5, 9.0)),
)


@model
class HeadConfig:
    """Proposal and box heads, and decoding."""

    shared_channels: PositiveInt = 64
    branch_channels: PositiveInt = 64
    max_candidates: PositiveInt = 500
    score_threshold: float = Field(0.1, ge=0, lt=1)
    center_range: float = 61.2
    center_range_z: float = 10.0
    max_per_task: PositiveInt = 83


@model
class TrainingConfig:
    """The published schedule of this configuration (8 samples on each of 8, in stage 2 of 16, GPUs).

    From ``augmentation`` on: what one changes for other data or another machine; the defaults are published or change
    nothing. ``depth_dropout`` is that of the depth network's ASPP. See docs/training.md.
    """

    stage: Literal[1, 2] = 2
    epochs: PositiveInt = 12
    global_batch: PositiveInt = 128
    learning_rate: PositiveFloat = 4e-4
    weight_decay: float = 0.01
    gradient_clip: PositiveFloat = 5.0
    warmup_iterations: int = 200
    warmup_ratio: float = 0.001
    velocity_weight: float = 1.0
    depth_loss_weight: float = 3.0
    sync_bn_epoch: int | None = 8
    ema_decay: float = 0.999
    ema_ramp: int = 2000
    ema_start: int = 10560
    backbone_init: Literal["imagenet", "perspective", "none"] = "none"
    backbone_lr_ratio: float = 1.0
    augmentation: bool = True
    class_balanced: bool = True
    repeat: PositiveInt = 1
    missing_lidar: Literal["skip", "no-depth-loss"] = "skip"
    max_unreadable: NonNegativeInt = 50
    max_skipped: PositiveInt = 20
    channels_last: bool = False
    head_scale: PositiveFloat = 1.0
    perspective_weight: NonNegativeFloat = 0.0
    shared_run: NonNegativeInt = 0
    depth_dropout: float = Field(0.5, ge=0, lt=1)
    decay: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_learning_rate: PositiveFloat = 0.02
    image_augmentation: bool = True
    bev_augmentation: bool = True
    largest_width: NonNegativeInt = 0
    part: Literal["all", "images", "bev"] = "all"


@model
class ModelConfig:
    """Everything that defines a network and how it is trained."""

    name: str = "bevnext_r50_stage2"
    cameras: Annotated[tuple[str, ...], Field(min_length=1)] = CAMERAS
    anchor_camera: str = ANCHOR_CAMERA
    channels: int = 160
    image: ImageConfig = ImageConfig()
    backbone: BackboneConfig = BackboneConfig()
    depth: DepthConfig = DepthConfig()
    bev: BevConfig = BevConfig()
    history: HistoryConfig = HistoryConfig()
    refinement: RefinementConfig = RefinementConfig()
    head: HeadConfig = HeadConfig()
    tasks: tuple[TaskConfig, ...] = PUBLISHED_TASKS
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        _require(len(set(self.cameras)) == len(self.cameras), "cameras must not repeat a name")
        _require(
            self.anchor_camera in self.cameras,
            f"anchor_camera '{self.anchor_camera}' is not one of cameras ({', '.join(self.cameras)})",
        )
        _require(
            self.channels % max(self.refinement.heads, 1) == 0 and self.channels % 2 == 0,
            f"channels ({self.channels}) must be even and a multiple of refinement.heads ({self.refinement.heads})",
        )
        if self.history.frames:
            widths = self.channels * self.history.group_width // 128, self.channels * self.history.split_width // 128
            _require(min(widths) > 0, f"{self.channels} channels leave no width to history.group_width or split_width")
        names = self.class_names
        _require(len(set(names)) == len(names), "a class stands in two tasks")

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes in the order of the labels."""
        return tuple(name for task in self.tasks for name in task.classes)


def load_config(path: str | Path) -> ModelConfig:
    """Read a YAML file; keys that it lacks keep the published defaults.

    Raises:
        ConfigError: naming the file, the key, its value and what is allowed.
    """
    return from_mapping(ModelConfig, read_yaml(path, "configuration file"), str(path))


def config_from_mapping(data: dict[str, Any], source: str) -> ModelConfig:
    """A configuration from plain values, as a checkpoint carries it; ``source`` names the place in errors."""
    return from_mapping(ModelConfig, data, source)


def config_to_mapping(config: ModelConfig) -> dict[str, Any]:
    """Plain dicts, lists and scalars; :func:`config_from_mapping` reads them back."""
    return to_mapping(config)


def dump_config(config: ModelConfig) -> str:
    """A complete, editable YAML file."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, default_flow_style=None, width=110)


def network_differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """Top-level parts in which two configurations describe different networks; name, training and how boxes are
    suppressed aside."""
    mine, theirs = ({**vars(c), "tasks": [task.classes for task in c.tasks]} for c in (a, b))
    return [k for k, v in mine.items() if k not in ("name", "training") and v != theirs[k]]


def published_config(stage: Literal[1, 2]) -> ModelConfig:
    """The published R50 256x704 configuration of a stage (the files in ``config/model`` say the same)."""
    if stage == 2:
        return ModelConfig()
    training = TrainingConfig(
        stage=1,
        epochs=2,
        global_batch=64,
        learning_rate=2e-4,
        velocity_weight=0.2,
        sync_bn_epoch=None,
        backbone_init="imagenet",
    )
    return ModelConfig("bevnext_r50_stage1", channels=80, history=HistoryConfig(frames=0), training=training)
