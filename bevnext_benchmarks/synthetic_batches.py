# SPDX-License-Identifier: Apache-2.0
"""Made-up batches in the shape of real ones, for benchmarks and tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bevnext_core.config import ModelConfig
from bevnext_core.network.camera_geometry import CameraGeometry
from training.data.dataset import Batch
from training.data.shared_runs import SharedBatch, join_runs


def synthetic_batch(config: ModelConfig, samples: int = 1, seed: int = 0) -> Batch:
    """Random images on a ring of cameras, a few boxes, sparse depth."""
    rng = np.random.default_rng(seed)
    frames, cameras = config.history.frames + 1, len(config.cameras)
    height, width = config.image.height, config.image.width
    poses = []
    for angle in np.arange(cameras) * 2 * np.pi / cameras:
        forward, left = np.array([np.cos(angle), np.sin(angle), 0]), np.array([-np.sin(angle), np.cos(angle), 0])
        poses.append(np.stack([-left, [0, 0, -1], forward], 1))
    shape = (samples, frames, cameras)

    def repeat(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.broadcast_to(array, (*shape, *array.shape[-2:])).astype(np.float32))

    ratio = width / 1600
    translation = np.tile([[1.0, 0.0, 1.5]], (cameras, 1))[..., None]
    geometry = CameraGeometry(
        repeat(np.stack(poses)),
        repeat(translation)[..., 0],
        repeat(np.array([[1266.0, 0, 816], [0, 1266, 491], [0, 0, 1]])),
        repeat(np.diag([ratio, ratio, 1.0])),
        repeat(np.array([[0.0], [height - 900 * ratio], [0]]))[..., 0],
        torch.eye(3).repeat(samples, 1, 1),
    )
    boxes = rng.uniform(-40, 40, (samples, 20, 9)).astype(np.float32)
    boxes[..., 2] = 0
    boxes[..., 3:6] = 2
    rows, columns = config.image.feature_size
    depth = rng.uniform(1, 60, (samples, cameras, rows, columns))
    depth[rng.uniform(size=depth.shape) > 0.3] = 0
    return Batch(
        torch.from_numpy(rng.integers(0, 256, (*shape, height, width, 3), dtype=np.uint8)),
        geometry,
        [torch.from_numpy(b) for b in boxes],
        [torch.from_numpy(rng.integers(0, len(config.class_names), 20)) for _ in range(samples)],
        torch.from_numpy(depth.astype(np.float32)),
        ["synthetic"] * samples,
    )


def synthetic_runs(config: ModelConfig, length: int, runs: int, seed: int = 0) -> SharedBatch:
    """Runs of ``length`` frames in mid-scene, the ego going 4 m from frame to frame."""
    history = config.history.frames
    one_frame = replace(config, history=replace(config.history, frames=0))
    made = []
    for number in range(runs):
        frames = synthetic_batch(one_frame, length + history, seed + number)
        windows = synthetic_batch(config, length, seed + number)
        windows.geometry.translation[..., 0] -= 4.0 * torch.arange(history + 1).view(1, -1, 1)
        # The samples come first, oldest first; then the frames before them, newest first.
        time = torch.arange(length).view(-1, 1) - torch.arange(history + 1)
        slots = torch.where(time >= 0, time, length - 1 - time)
        made.append(
            SharedBatch(
                frames.canvas[:, 0],
                windows.geometry,
                windows.boxes,
                windows.labels,
                windows.depth,
                windows.tokens,
                own=frames.geometry,
                slots=slots,
            )
        )
    return join_runs(made)
