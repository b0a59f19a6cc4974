# SPDX-License-Identifier: Apache-2.0
"""TensorBoard, where it is installed: losses, heat maps, and boxes from above and in the images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevnext_core.boxes import box_corners
from bevnext_core.config import ModelConfig
from bevnext_core.detections import Detections
from bevnext_core.network.bevnext import HeadMaps
from bevnext_core.streaming.decode import boxes_from_maps
from bevnext_tools.draw.bev import BevView, draw_bev
from bevnext_tools.draw.cameras import detection_layer, draw_box_edges, truth_layer
from training.data.dataset import Batch
from training.losses.targets import detection_targets

PIXELS_PER_CELL = 4
MIN_SCORE = 0.2


def open_tensorboard(folder: Path, log: logging.Logger) -> Board | None:
    """A writer into ``folder``, or ``None`` with one line in the log when TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed, so no pictures are written: pip install 'bevnext_ros[train]'")
        return None
    return Board(SummaryWriter(str(folder)))


class Board:
    """What is written during training."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def scalars(self, step: int, losses: dict[str, Tensor], total: Tensor, norm: Tensor, rate: float) -> None:
        named = {f"loss/{name}": value.item() for name, value in losses.items()}
        named |= {"loss/total": total.item(), "gradient_norm": norm.item(), "learning_rate": rate}
        for name, value in named.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def pictures(self, step: int, batch: Batch, maps: HeadMaps | None, config: ModelConfig) -> None:
        """Pictures of the batch's first sample."""
        for name, picture in sample_pictures(batch, maps, config).items() if maps else ():
            self.writer.add_image(name, picture, step, dataformats="HWC")
        self.writer.flush()


@torch.no_grad()
def sample_pictures(batch: Batch, maps: HeadMaps, config: ModelConfig) -> dict[str, np.ndarray]:
    """uint8 RGB pictures of the first sample: ``heatmap`` (predicted beside target), ``bev``, one per camera.

    Ground truth is outlined in white, predictions above a score of :data:`MIN_SCORE` have their class's colour.
    """
    tasks = [{name: value[:1] for name, value in task.items()} for task in maps.tasks]
    predicted = torch.cat([task["heatmap"].float().sigmoid() for task in tasks], 1)[0].amax(0)
    boxes, labels = batch.boxes[:1], batch.labels[:1]
    expected = detection_targets(boxes, labels, config).heatmaps[0].amax(0)
    found = boxes_from_maps(tasks, config)[0]
    detections = Detections(found.boxes, found.scores, found.labels, config.class_names, 0, np.eye(4)).above(MIN_SCORE)
    layers = [truth_layer(boxes[0].cpu().numpy()), detection_layer(detections)]
    # x upwards and y to the left, as the boxes from above
    both = torch.cat([expected.T.flip(0, 1), torch.ones_like(expected[:, :2]), predicted.T.flip(0, 1)], 1)
    pictures = {"heatmap": np.repeat((both.cpu().numpy() * 255).astype(np.uint8)[..., None], 3, 2)}
    pictures["bev"] = draw_bev(layers, BevView(config.bev.size * PIXELS_PER_CELL, config.bev.extent))
    geometry = batch.geometry.frame(0).to("cpu")
    for index, camera in enumerate(config.cameras if batch.canvas.numel() else ()):
        canvas = batch.present_canvas()[0, index].cpu().numpy().copy()
        rotation, translation, intrinsics, image_rotation, image_translation = (
            getattr(geometry, name)[0, 0, index].double().numpy()
            for name in ("rotation", "translation", "intrinsics", "image_rotation", "image_translation")
        )
        # The boxes lie in the augmented ego frame, the pixels are those of the augmented image.
        unaugmented = np.linalg.inv(geometry.bda[0].double().numpy())
        matrix = (image_rotation + np.outer(image_translation, (0, 0, 1))) @ intrinsics
        for layer in layers:
            for corners, color in zip(box_corners(layer.boxes), layer.colors):
                draw_box_edges(canvas, (corners @ unaugmented.T - translation) @ rotation, matrix, color)
        pictures[f"camera/{camera}"] = canvas
    return pictures
