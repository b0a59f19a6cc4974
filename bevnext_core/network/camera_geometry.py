# SPDX-License-Identifier: Apache-2.0
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

    @staticmethod
    def join(parts: Sequence[CameraGeometry]) -> CameraGeometry:
        """The samples of several, which have as many frames each."""
        return CameraGeometry(**{k: torch.cat([vars(part)[k] for part in parts]) for k in vars(parts[0])})

    def samples(self, index: slice | Tensor) -> CameraGeometry:
        """Some of the samples."""
        return CameraGeometry(**{name: value[index] for name, value in vars(self).items()})

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

    def project(self, points: Tensor, near: float) -> tuple[Tensor, Tensor]:
        """Points ``[B or 1, P, 3]`` of the (augmented) present ego frame in the images of the first frame.

        Returns:
            pixels of the network's input ``[B, N, P, 2]``, of what is nearer than ``near`` metres as if it were at
            ``near``, and depth ``[B, N, P]``.
        """
        matrices = (self.rotation, self.intrinsics, self.image_rotation)
        rotation, intrinsics, image_rotation = (matrix[:, 0].float() for matrix in matrices)
        points = points @ inverse(self.bda.float()).transpose(1, 2)
        points = points.unsqueeze(1) - self.translation[:, 0, :, None, :].float()
        points = points @ inverse(rotation @ inverse(intrinsics)).transpose(2, 3)
        depth = points[..., 2:]
        points = torch.cat([points[..., :2] / depth.clamp(min=near), depth], -1)
        points = points @ image_rotation.transpose(2, 3) + self.image_translation[:, 0, :, None, :].float()
        return points[..., :2], depth[..., 0]

    def camera_parameters(self) -> Tensor:
        """``[B, F, N, 27]``: fx, fy, cx, cy; image matrix rows 0 and 1 with translation; bda; 3x4 camera pose.

        Intrinsics are those of the original image and nothing is normalised, as published.
        """
        k, bda = self.intrinsics, self.bda[:, None, None].expand_as(self.rotation)
        image = torch.cat([self.image_rotation[..., :2], self.image_translation[..., None]], -1)
        pose = torch.cat([self.rotation, self.translation[..., None]], -1)
        intrinsics = torch.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)
        augmentation = torch.cat([bda[..., :2, :2].flatten(-2), bda[..., 2, 2:]], -1)
        return torch.cat([intrinsics, image[..., :2, :].flatten(-2), augmentation, pose.flatten(-2)], -1)
