# SPDX-License-Identifier: Apache-2.0
"""A rig that drives on a circle and films noise: what a network is traced with, compared on and measured with."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bevnext_core.config import ModelConfig
from bevnext_core.frame import CameraFrame
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.streaming.preprocess import canvas_colors, normalize, resize_and_crop
from bevnext_core.streaming.rig_state import RigState

SOURCE_SIZE = (1600, 900)
"""(width, height) of the cameras' images."""
IMAGE_SETS = 3
"""Different image sets of a drive; a longer drive shows them again, so that its memory stays out of a measurement."""


def drive_frame(config: ModelConfig, index: int) -> CameraFrame:
    """Frame ``index`` of a car on a curve, one history interval apart; six (or N) cameras all around it."""
    cameras = config.cameras
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    anchor = cameras.index(config.anchor_camera)
    ego_from_camera = np.tile(np.eye(4), (len(cameras), 1, 1))
    for camera in range(len(cameras)):
        yaw = 2 * np.pi * (anchor - camera) / len(cameras)
        ego_from_camera[camera, :3, :3] = _turn(yaw) @ optical
        ego_from_camera[camera, :3, 3] = 1.0 + 0.6 * np.cos(yaw), 0.5 * np.sin(yaw), 1.5
    # 20 m/s at the published interval, on a circle of 60 m: every frame has another plan.
    yaw, pose = 0.33 * config.history.interval * index, np.eye(4)
    pose[:3, :3] = _turn(yaw)
    pose[:2, 3] = 60 * np.sin(yaw), 60 * (1 - np.cos(yaw))
    scale = SOURCE_SIZE[0] / 1600
    intrinsics = np.array([[1266.0 * scale, 0, 816 * scale], [0, 1266 * scale, 491 * scale], [0, 0, 1]])
    return CameraFrame(
        cameras=cameras,
        images=_noise_images(len(cameras), index % IMAGE_SETS, SOURCE_SIZE),
        intrinsics=np.tile(intrinsics, (len(cameras), 1, 1)),
        ego_from_camera=ego_from_camera,
        global_from_camera_ego=np.tile(pose, (len(cameras), 1, 1)),
        global_from_ego=pose,
        stamp_ns=index * round(config.history.interval * 1e9) + 1,
    )


def network_inputs(
    config: ModelConfig, device: torch.device | str = "cpu", start: int = 0, rigs: int = 1
) -> tuple[Tensor, Tensor, CameraGeometry]:
    """What the network takes for one frame of B rigs, which are frames ``start``, ``start + 1``, ... of the drive.

    Returns:
        images ``[B * N, 3, H, W]``, patch colours ``[B * N, 3, H/8, W/8]``, and the geometry (F = 1).
    """
    frames = [drive_frame(config, start + rig) for rig in range(rigs)]
    states = [RigState.of(frame, config.image) for frame in frames]
    canvas = [
        resize_and_crop(image, transform)
        for frame, state in zip(frames, states, strict=True)
        for image, transform in zip(frame.images, state.transforms, strict=True)
        if image is not None
    ]
    pixels = torch.from_numpy(np.stack(canvas)).to(device)
    geometry = CameraGeometry.join([state.geometry_in(state.global_from_ego) for state in states])
    return normalize(pixels), canvas_colors(pixels), geometry.to(device)


def _turn(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@lru_cache(maxsize=IMAGE_SETS)
def _noise_images(count: int, seed: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """``count`` images ``[H, W, 3]`` uint8: coarse and fine noise, and a saturated area.

    The saturated area gives the CRF patches of equal colour, as sky and lamps do.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    images = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (-(-height // 20), -(-width // 20), 3), np.uint8)
        coarse = coarse.repeat(20, 0).repeat(20, 1)[:height, :width]
        image = coarse // 2 + rng.integers(0, 128, coarse.shape, np.uint8)
        image[: height // 3, width // 3 : 2 * width // 3] = 255
        images.append(image.astype(np.uint8))
    return tuple(images)
