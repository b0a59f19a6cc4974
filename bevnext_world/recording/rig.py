# SPDX-License-Identifier: Apache-2.0
"""The sensors of the synthetic car: where they sit, when they fire, what they see.

A rig like that of nuScenes: six cameras that fire one after another while the lidar's beam passes them, and a
lidar with 32 beams on the roof. The ego frame lies on the ground below the rear axle (x forward, y left).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevnext_core.classes import CAMERAS

REFERENCE_WIDTH, REFERENCE_HEIGHT = 1600, 900
DEFAULT_SIZE = (800, 450)
SWEEP_RATE = 12
"""Camera images per second with sweeps."""

LIDAR_BEAMS = 32
LIDAR_COLUMNS = 1090
LIDAR_ELEVATION = (-30.67, 10.67)
"""Degrees of the lowest and the highest beam."""
LIDAR_RANGE = 70.0
LIDAR_POSITION = (0.94, 0.0, 1.84)

_MOUNT = {
    # camera: x, y, z (metres), yaw (degrees), focal length and principal point at 1600 x 900, delay (s)
    "CAM_FRONT_LEFT": (1.54, 0.50, 1.51, 55.4, 1268.0, 818.0, 478.0, -0.043),
    "CAM_FRONT": (1.71, 0.01, 1.51, 0.2, 1266.0, 812.0, 484.0, -0.035),
    "CAM_FRONT_RIGHT": (1.55, -0.50, 1.50, -55.2, 1262.0, 806.0, 486.0, -0.027),
    "CAM_BACK_RIGHT": (1.02, -0.48, 1.56, -109.6, 1260.0, 810.0, 488.0, -0.019),
    "CAM_BACK": (0.04, 0.00, 1.57, 179.8, 809.0, 826.0, 480.0, -0.010),
    "CAM_BACK_LEFT": (1.03, 0.48, 1.58, 109.2, 1257.0, 800.0, 486.0, 0.0),
}
_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Columns: the camera's right, down and forward axes in a frame with x forward and z up."""


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera.

    Attributes:
        intrinsics: ``[3, 3]`` for images of the rig's size; ego_from_camera: ``[4, 4]``.
        delay: seconds between the lidar's stamp and the image's.
    """

    name: str
    intrinsics: np.ndarray
    ego_from_camera: np.ndarray
    delay: float


@dataclass(frozen=True, eq=False)
class Rig:
    """All sensors; ``width`` and ``height`` are the images' size."""

    cameras: tuple[Camera, ...]
    ego_from_lidar: np.ndarray
    width: int
    height: int

    def lidar_directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit rays ``[N, 3]`` in the lidar frame (x right, y forward) and the beam ``[N]`` of each, from below."""
        elevation = np.deg2rad(np.linspace(*LIDAR_ELEVATION, LIDAR_BEAMS))
        azimuth = -2 * np.pi * np.arange(LIDAR_COLUMNS) / LIDAR_COLUMNS
        azimuth, elevation = (grid.ravel() for grid in np.meshgrid(azimuth, elevation, indexing="ij"))
        rays = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        return np.stack(rays, -1), np.tile(np.arange(LIDAR_BEAMS), LIDAR_COLUMNS)


def turned(yaw: float, position: tuple[float, float, float], axes: np.ndarray | None = None) -> np.ndarray:
    """``[4, 4]``: a frame at ``position``, turned about z by ``yaw`` radians, with its axes replaced."""
    transform = np.eye(4)
    c, s = np.cos(yaw), np.sin(yaw)
    transform[:2, :2] = [[c, -s], [s, c]]
    if axes is not None:
        transform[:3, :3] = transform[:3, :3] @ axes
    transform[:3, 3] = position
    return transform


def build_rig(size: tuple[int, int] = DEFAULT_SIZE) -> Rig:
    """The rig with images of ``size`` (width, height); the field of view is that of 1600 x 900 images."""
    width, height = size
    scale = np.array([width / REFERENCE_WIDTH, height / REFERENCE_HEIGHT])
    cameras = []
    for name in CAMERAS:
        x, y, z, yaw, focal, cx, cy, delay = _MOUNT[name]
        # Pixel centres are at whole coordinates: the image's edge is at -0.5.
        centre = (np.array([cx, cy]) + 0.5) * scale - 0.5
        intrinsics = np.array(
            [[focal * scale[0], 0.0, centre[0]], [0.0, focal * scale[1], centre[1]], [0.0, 0.0, 1.0]]
        )
        mount = turned(np.deg2rad(yaw), (x, y, z), _OPTICAL)
        cameras.append(Camera(name, intrinsics, mount, delay))
    return Rig(tuple(cameras), turned(-np.pi / 2, LIDAR_POSITION), width, height)
