# SPDX-License-Identifier: Apache-2.0
"""What it takes to lift one instant of the rig into a later ego frame: where its cameras were and how they see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bevnext_core.config import ImageConfig
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.streaming.preprocess import ImageTransform, image_transform


@dataclass(frozen=True)
class RigState:
    """One instant of N cameras.

    Attributes:
        global_from_ego: ``[4, 4]`` float64, the ego pose.
        transforms: from each camera's image to the network's input.
        global_from_camera: ``[N, 4, 4]`` float64, at each camera's own stamp; intrinsics: ``[N, 3, 3]``;
            valid: ``[N]`` bool. A camera that is not valid has stand-ins for both: its numbers must not turn
            the others' batch into NaN.
    """

    global_from_ego: np.ndarray
    transforms: tuple[ImageTransform, ...]
    global_from_camera: np.ndarray
    intrinsics: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(cls, frame: CameraFrame, target: ImageConfig) -> RigState:
        """The state of ``frame``, whose images become inputs of the size ``target``."""
        bad = ~frame.valid[:, None, None]
        poses = np.where(bad, frame.global_from_ego, np.nan_to_num(frame.global_from_camera))
        transforms = tuple(image_transform(int(width), int(height), target) for width, height in frame.image_sizes)
        intrinsics = np.where(bad, np.eye(3), frame.intrinsics)
        return cls(frame.global_from_ego, transforms, poses, intrinsics, frame.valid)

    def geometry_in(self, global_from_ego: np.ndarray) -> CameraGeometry:
        """The cameras in the ego frame at ``global_from_ego [4, 4]``, on the host; float64 up to the last step."""
        ego_from_camera = invert_rigid(global_from_ego) @ self.global_from_camera
        return CameraGeometry(
            _tensor(ego_from_camera[:, :3, :3]),
            _tensor(ego_from_camera[:, :3, 3]),
            _tensor(self.intrinsics),
            _tensor([transform.rotation for transform in self.transforms]),
            _tensor([transform.translation for transform in self.transforms]),
            torch.eye(3)[None],
            torch.tensor(self.valid)[None, None],
        )


def _tensor(array: ArrayLike) -> Tensor:
    """``[N, ...]`` float64 -> ``[1, 1, N, ...]`` float32."""
    return torch.from_numpy(np.array(array, np.float32))[None, None]
