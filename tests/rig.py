# SPDX-License-Identifier: Apache-2.0
"""A synthetic rig on a drive: camera frames by the reference's formulas, for tests that need no data set."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bevnext_core.classes import ANCHOR_CAMERA, CAMERAS
from bevnext_core.frame import CameraFrame
from tests import recipe

SIZE = (352, 224)
"""(width, height) of the images: the small network's width, so the resize is the identity."""
NANOSECONDS = 1_000_000_000


def ego_pose(t: float) -> np.ndarray:
    """``global_from_ego`` of a car that accelerates, turns, pitches and rolls; t in seconds."""
    yaw = 0.4 + 0.25 * np.sin(0.5 * t) + 0.05 * t
    distance = 4.0 * t + 0.35 * t**2
    pose = np.eye(4)
    pose[:3, :3] = (
        recipe._rotate_z(yaw) @ recipe._rotate_y(0.01 * np.sin(t)) @ recipe._rotate_x(0.008 * np.cos(t))
    )
    pose[:3, 3] = 650 + distance * np.cos(0.4 + 0.03 * t), 1580 + distance * np.sin(0.4 + 0.03 * t), 0.05 * t
    return pose


def calibration() -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics ``[6, 3, 3]`` for images of :data:`SIZE`, and ``ego_from_camera [6, 4, 4]``."""
    cameras = recipe.make_infos("A", 1)[0]["cams"]
    scale = np.diag([SIZE[0] / 1600, SIZE[0] / 1600, 1.0])
    intrinsics = np.stack([scale @ np.array(cameras[c]["cam_intrinsic"]) for c in CAMERAS])
    poses = [
        recipe.transform(cameras[c]["sensor2ego_rotation"], cameras[c]["sensor2ego_translation"])
        for c in CAMERAS
    ]
    return intrinsics, np.stack(poses)


@lru_cache(maxsize=8)
def _images(tag: str, count: int) -> np.ndarray:
    return recipe.make_images(tag, count, SIZE[1], SIZE[0])


def drive(count: int, interval: float = 0.5, tag: str = "A", start: float = 100.0) -> list[CameraFrame]:
    """``count`` frames in order of time, every camera with its own stamp and the ego pose at that stamp."""
    images = _images(tag, count)
    intrinsics, ego_from_camera = calibration()
    frames = []
    for index in range(count):
        t = index * interval
        stamps = [t + recipe.CAMERA_DELAY[camera] for camera in CAMERAS]
        anchor = stamps[CAMERAS.index(ANCHOR_CAMERA)]
        frames.append(
            CameraFrame(
                cameras=CAMERAS,
                images=tuple(images[index]),
                intrinsics=intrinsics,
                ego_from_camera=ego_from_camera,
                global_from_camera_ego=np.stack([ego_pose(s) for s in stamps]),
                global_from_ego=ego_pose(anchor),
                stamp_ns=round((start + anchor) * NANOSECONDS),
                camera_stamps_ns=np.array([round((start + s) * NANOSECONDS) for s in stamps]),
                image_sizes=np.tile(SIZE, (len(CAMERAS), 1)),
                token=f"frame-{index}",
            )
        )
    return frames
