"""What a stream keeps of one instant of the rig, and the geometry that it is lifted with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bevnext_core.frame import CameraFrame
from bevnext_core.network.bevnext import EncodedCameras
from bevnext_core.network.camera_geometry import CameraGeometry


@dataclass
class RigState:
    """One frame's cameras with what it takes to lift them later: encoded features, poses, calibration."""

    encoded: EncodedCameras | None
    colors: Tensor
    own_parameters: Tensor
    global_from_camera: np.ndarray
    intrinsics: np.ndarray
    image_rotation: np.ndarray
    image_translation: np.ndarray
    valid: np.ndarray


def image_sizes(frame: CameraFrame) -> np.ndarray:
    """``[N, 2]`` (width, height) of each camera's image; a masked camera takes its calibration's, or any."""
    sizes: list[tuple[int, int]] = []
    for index, image in enumerate(frame.images):
        if image is not None:
            sizes.append((image.shape[1], image.shape[0]))
        elif frame.image_sizes is not None:
            sizes.append((int(frame.image_sizes[index][0]), int(frame.image_sizes[index][1])))
        else:
            sizes.append(next(((i.shape[1], i.shape[0]) for i in frame.images if i is not None), (1, 1)))
    return np.array(sizes)


def joined(frames: list[CameraGeometry]) -> CameraGeometry:
    """One geometry of F frames from F of one frame."""
    names = ("rotation", "translation", "intrinsics", "image_rotation", "image_translation")
    matrices = {name: torch.cat([getattr(frame, name) for frame in frames], 1) for name in names}
    valid = torch.cat([frame.valid for frame in frames], 1)
    return CameraGeometry(**matrices, bda=frames[0].bda, valid=valid)


def ego_from_camera(geometry: CameraGeometry) -> np.ndarray:
    """``[N, 4, 4]`` of the first frame of a geometry that is on the host."""
    cameras = geometry.rotation.shape[2]
    pose = np.tile(np.eye(4), (cameras, 1, 1))
    pose[:, :3, :3] = geometry.rotation[0, 0].numpy()
    pose[:, :3, 3] = geometry.translation[0, 0].numpy()
    return pose
