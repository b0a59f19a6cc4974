# SPDX-License-Identifier: Apache-2.0
"""What the past is worth: the stream with a part of it taken away, and a guess that looks at no image.

All work on a trained network as it is, so they show what it uses, not what another training could do without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bevnext_core.config import ModelConfig
from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.detections import Detections
from bevnext_core.detector import Cameras, Detector
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.streaming.decode import BoxSet
from bevnext_tools.evaluation.submission import MAX_BOXES, submission_records
from training.data.index import DatasetIndex


class WithoutHistory(Detector):
    """Every frame is the first: the present stands in for the past, as at the start of a scene."""

    def step(self, frame: CameraFrame) -> Detections:
        self.reset("without history")
        return super().step(frame)


class FrozenPose(Detector):
    """The past is lifted as if the vehicle had not moved: what a stream does that is given a constant ego pose."""

    def step(self, frame: CameraFrame) -> Detections:
        still = np.broadcast_to(np.eye(4), frame.global_from_camera_ego.shape)
        frozen = dataclasses.replace(frame, global_from_ego=np.eye(4), global_from_camera_ego=still)
        return dataclasses.replace(super().step(frozen), global_from_ego=frame.global_from_ego)


class WarpedMaps(Detector):
    """Past frames are kept as BEV maps of their own instant and moved into the present by bilinear sampling.

    What methods do that cache BEV maps: what lay outside a past map is lost, and every map is interpolated once.
    """

    def _lift(self, frames: Sequence[Cameras], geometry: CameraGeometry) -> Sequence[Tensor]:
        present, _ = frames[0]
        lifted: list[Tensor] = []
        for state, encoded in frames:
            own = state.geometry_in(state.global_from_ego).to(self.device)
            bev = self.model.lift(encoded, self.model.plan(own))
            past_from_present = invert_rigid(state.global_from_ego) @ present.global_from_ego
            lifted.append(warp(bev, past_from_present, self.config.bev.extent) if lifted else bev)
        return lifted


def warp(bev: Tensor, past_from_present: np.ndarray, extent: float) -> Tensor:
    """A past map ``[B, C, Y, X]`` of +-``extent`` metres as seen from the present, zero where it does not reach.

    The rigid motion ``[4, 4]`` acts on the ground plane: cells have no height.
    """
    matrix = torch.from_numpy(past_from_present).to(bev.device, torch.float64)
    theta = torch.cat([matrix[:2, :2], matrix[:2, 3:] / extent], 1).to(bev.dtype)
    grid = F.affine_grid(theta.expand(bev.shape[0], 2, 3), list(bev.shape), align_corners=False)
    return F.grid_sample(bev, grid, align_corners=False)


def guessed(
    prior: BoxSet, reader: NuScenesReader, ref: FrameRef, config: ModelConfig
) -> list[dict[str, Any]]:
    """Submission records of a frame in which a guess without images, in any ego frame, is taken for what is there."""
    boxes, pose = (prior.boxes, prior.scores, prior.labels), reader.global_from_ego(ref)
    return submission_records(Detections(*boxes, config.class_names, ref.stamp_ns, pose, ref.sample_token))


def mean_places(index: DatasetIndex, frames: np.ndarray, classes: int) -> BoxSet:
    """One object of each class, at the mean place, size, heading and velocity of its class in ``frames``."""
    boxes, labels = _objects(index, frames)
    found = [(_mean_box(own), len(own), c) for c in range(classes) if len(own := boxes[labels == c])]
    return _prior(found, len(frames))


def likely_places(
    index: DatasetIndex, frames: np.ndarray, classes: int, extent: float, cell: float
) -> BoxSet:
    """The cells of the BEV grid where a class was seen most often in ``frames``, each with the mean of its objects.

    At most :data:`~bevnext_tools.evaluation.submission.MAX_BOXES` of all classes together, the same number of each.
    """
    boxes, labels = _objects(index, frames)
    cells = np.floor((boxes[:, 1::-1] + extent) / cell).astype(int)  # row, column
    inside = ((cells >= 0) & (cells < round(2 * extent / cell))).all(1)
    found = []
    for label in range(classes):
        own = inside & (labels == label)
        places, counts = np.unique(cells[own], axis=0, return_counts=True)
        for place in np.argsort(-counts, kind="stable")[: MAX_BOXES // classes]:
            found.append((_mean_box(boxes[own & (cells == places[place]).all(1)]), counts[place], label))
    return _prior(found, len(frames))


def _objects(index: DatasetIndex, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [index.truth(int(frame)) for frame in frames]
    return np.concatenate([boxes for boxes, _ in parts]), np.concatenate([labels for _, labels in parts])


def _prior(found: Sequence[tuple[np.ndarray, int, int]], frames: int) -> BoxSet:
    """Of (box, objects in all ``frames``, label), the likeliest of a class first; scores are objects per frame."""
    boxes, counts, labels = (np.array(values) for values in zip(*found, strict=True))
    return BoxSet(boxes.astype(np.float32), np.minimum(1, counts / frames).astype(np.float32), labels)


def _mean_box(boxes: np.ndarray) -> np.ndarray:
    """Means, with that of the headings taken on the circle."""
    mean = boxes.astype(np.float64).mean(0)
    mean[6] = np.arctan2(np.sin(boxes[:, 6]).mean(), np.cos(boxes[:, 6]).mean())
    return mean
