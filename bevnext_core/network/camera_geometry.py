"""Camera matrices as the network takes them, and the camera parameters that its depth network sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BY_CAMERA = ("rotation", "translation", "intrinsics", "image_rotation", "image_translation", "valid")
"""The parts ``[B, F, N, ...]`` of a geometry."""


def inverse(matrices: Tensor) -> Tensor:
    """``torch.inverse``, bit for bit, that does not wait for a GPU to hear of singular matrices."""
    return torch.linalg.inv_ex(matrices).inverse


@dataclass
class CameraGeometry:
    """Float32 matrices for B samples, F frames (present first, then newest to oldest) and N cameras.

    Attributes:
        rotation: ``[B, F, N, 3, 3]`` and translation ``[B, F, N, 3]``: frame's camera -> present ego frame, metres.
        intrinsics: ``[B, F, N, 3, 3]``, pixels of the original image.
        image_rotation: ``[B, F, N, 3, 3]`` and image_translation ``[B, F, N, 3]``: original pixel (u, v, 1)
            -> pixel of the network's input (resize, crop, and in training flip and rotation).
        bda: ``[B, 3, 3]`` BEV augmentation, identity outside training.
        valid: ``[B, F, N]`` bool; cameras that are not valid contribute nothing.
    """

    rotation: Tensor
    translation: Tensor
    intrinsics: Tensor
    image_rotation: Tensor
    image_translation: Tensor
    bda: Tensor
    valid: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.valid is None:
            self.valid = torch.ones(self.rotation.shape[:3], dtype=torch.bool, device=self.rotation.device)

    @staticmethod
    def cat(frames: Sequence[CameraGeometry]) -> CameraGeometry:
        """One geometry of all frames of several of the same samples."""
        joined = {name: torch.cat([getattr(frame, name) for frame in frames], 1) for name in BY_CAMERA}
        return CameraGeometry(**joined, bda=frames[0].bda)

    def frame(self, index: int) -> CameraGeometry:
        """Frame ``index`` alone (F = 1)."""
        part = {name: getattr(self, name)[:, index : index + 1] for name in BY_CAMERA}
        return CameraGeometry(**part, bda=self.bda)

    def to(self, device: torch.device | str) -> CameraGeometry:
        return CameraGeometry(**{name: value.to(device) for name, value in vars(self).items()})

    def ego_from_camera(self) -> Tensor:
        """``[B, F, N, 4, 4]``: rotation and translation as one matrix."""
        pose = torch.eye(4, device=self.rotation.device).repeat(*self.rotation.shape[:3], 1, 1)
        pose[..., :3, :3], pose[..., :3, 3] = self.rotation, self.translation
        return pose

    def camera_parameters(self) -> Tensor:
        """``[B, F, N, 27]``: fx, fy, cx, cy; image matrix rows 0 and 1 with translation; bda; 3x4 camera pose.

        Intrinsics are those of the original image and nothing is normalised, as published.
        """
        k, r, t = self.intrinsics, self.image_rotation, self.image_translation
        bda = self.bda[:, None, None].expand(*self.rotation.shape[:3], 3, 3)
        values = [
            k[..., 0, 0],
            k[..., 1, 1],
            k[..., 0, 2],
            k[..., 1, 2],
            r[..., 0, 0],
            r[..., 0, 1],
            t[..., 0],
            r[..., 1, 0],
            r[..., 1, 1],
            t[..., 1],
            bda[..., 0, 0],
            bda[..., 0, 1],
            bda[..., 1, 0],
            bda[..., 1, 1],
            bda[..., 2, 2],
        ]
        pose = torch.cat([self.rotation, self.translation[..., None]], -1).flatten(-2)
        return torch.cat([torch.stack(values, -1), pose], -1)
