"""TensorBoard, where it is installed: losses, heat maps, and boxes from above and in the images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from bevnext_core.boxes import box_corners
from bevnext_core.config import ModelConfig
from bevnext_core.network.bevnext import HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.streaming.decode import boxes_from_maps
from training.data.dataset import Batch
from training.losses.targets import detection_targets

EDGES = [(i, (i + 1) % 4) for i in range(4)] + [(4 + i, 4 + (i + 1) % 4) for i in range(4)] + [
    (i, 4 + i) for i in range(4)
]
PIXELS_PER_CELL = 4
TRUTH_COLOR, BOX_COLOR = (120, 255, 120), (255, 158, 0)


def open_tensorboard(folder: Path, log: logging.Logger) -> Board | None:
    """A writer into ``folder``, or ``None`` with one line in the log when TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed, so no pictures are written: pip install bevnext_ros[train]")
        return None
    return Board(SummaryWriter(str(folder)))


class Board:
    """What is written during training."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def scalars(self, step: int, losses: dict[str, Tensor], total: Tensor, norm: Tensor, rate: float) -> None:
        for name, value in losses.items():
            self.writer.add_scalar(f"loss/{name}", value.item(), step)
        self.writer.add_scalar("loss/total", total.item(), step)
        self.writer.add_scalar("gradient_norm", norm.item(), step)
        self.writer.add_scalar("learning_rate", rate, step)
        self.writer.flush()

    def pictures(self, step: int, batch: Batch, maps: HeadMaps | None, config: ModelConfig) -> None:
        """Pictures of the batch's first sample."""
        if maps is None:
            return
        for name, picture in sample_pictures(batch, maps, config).items():
            self.writer.add_image(name, picture, step, dataformats="HWC")
        self.writer.flush()


@torch.no_grad()
def sample_pictures(batch: Batch, maps: HeadMaps, config: ModelConfig) -> dict[str, np.ndarray]:
    """uint8 RGB pictures of the first sample: ``heatmap`` (predicted beside target), ``bev``, one per camera.

    Ground truth is green, predictions above a score of 0.2 are orange.
    """
    tasks = [{name: value[:1] for name, value in task.items()} for task in maps.tasks]
    predicted = torch.cat([task["heatmap"].float().sigmoid() for task in tasks], 1)[0].amax(0).cpu()
    boxes, labels = batch.boxes[:1], batch.labels[:1]
    expected = detection_targets(boxes, labels, config).heatmaps[0].amax(0).cpu()
    found = boxes_from_maps(tasks, config)[0]
    layers = [(boxes[0].cpu().numpy(), TRUTH_COLOR), (found.boxes[found.scores > 0.2], BOX_COLOR)]
    both = torch.cat([predicted, torch.ones(predicted.shape[0], 2), expected], 1).flip(0)
    pictures = {"heatmap": np.repeat((both.numpy() * 255).astype(np.uint8)[..., None], 3, 2)}
    pictures["bev"] = _from_above(layers, config)
    geometry = batch.geometry.frame(0)
    for index, camera in enumerate(config.cameras):
        canvas = batch.present_canvas()[0, index].cpu().numpy().copy()
        for layer, color in layers:
            _draw_in_image(canvas, layer, color, geometry, index)
        pictures[f"camera/{camera}"] = canvas
    return pictures


def _from_above(layers: list[tuple[np.ndarray, tuple[int, int, int]]], config: ModelConfig) -> np.ndarray:
    """x to the right, y up."""
    size = config.bev.size * PIXELS_PER_CELL
    picture = np.full((size, size, 3), 24, np.uint8)
    for boxes, color in layers:
        for corners in box_corners(boxes)[:, [0, 3, 7, 4], :2]:
            pixels = (corners + config.bev.extent) / config.bev.cell * PIXELS_PER_CELL
            pixels[:, 1] = size - pixels[:, 1]
            cv2.polylines(picture, [np.rint(pixels).astype(np.int32)], True, color)
    return picture


def _draw_in_image(
    canvas: np.ndarray, boxes: np.ndarray, color: tuple[int, int, int], geometry: CameraGeometry, camera: int
) -> None:
    """Boxes in the augmented ego frame, into the augmented image; those that reach behind the camera are left out."""
    unaugmented = torch.linalg.inv(geometry.bda[0].double()).cpu().numpy()
    rotation, translation, intrinsics, image_rotation, image_translation = (
        getattr(geometry, name)[0, 0, camera].double().cpu().numpy()
        for name in ("rotation", "translation", "intrinsics", "image_rotation", "image_translation")
    )
    for corners in box_corners(boxes):
        points = (corners @ unaugmented.T - translation) @ rotation
        if (points[:, 2] < 0.5).any():
            continue
        pixels = points @ intrinsics.T
        pixels = pixels / pixels[:, 2:] @ image_rotation.T + image_translation
        pixels = np.clip(pixels[:, :2], -2000, 4000)
        for a, b in EDGES:
            start, end = (tuple(int(v) for v in np.rint(pixels[i])) for i in (a, b))
            cv2.line(canvas, start, end, color, 1)
