# SPDX-License-Identifier: Apache-2.0
"""Training augmentation: resize, crop, flip and rotation of each camera's image; rotation, scale and flips of BEV.

Images go through PIL exactly as in the published pipeline (bicubic resize to whole pixels, crop, flip,
nearest rotation with black corners); the image matrix uses the exact resize ratio. A camera's draw is the same
for all its frames, and one BEV draw holds for all frames of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from bevnext_core.boxes import wrap_angle
from bevnext_core.config import ImageConfig
from bevnext_core.streaming.preprocess import ImageTransform, image_transform, resize_and_crop

RESIZE_RANGE = (-0.06, 0.11)
"""Added to the ratio that fits the image's width to the network's input."""
ROTATION_RANGE = (-5.4, 5.4)
"""Degrees."""
BEV_ROTATION_RANGE = (-22.5, 22.5)
"""Degrees."""
BEV_SCALE_RANGE = (0.95, 1.05)


@dataclass(frozen=True)
class ImageAugmentation(ImageTransform):
    """What happens to one camera's images: the resize and crop of the detector, and what training adds.

    Attributes:
        flip: mirror left and right after the crop.
        degrees: rotation about the centre after the flip, counter-clockwise as PIL counts it.
        enlarged: the camera is taken for one with so many times as many pixels a side. No pixel changes by it, but what
            the network is told of the camera: its intrinsics and the matrix to the canvas (:meth:`recorded`).
    """

    flip: bool = False
    degrees: float = 0.0
    enlarged: float = 1.0

    def apply(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]`` -> the canvas, uint8 RGB at the network's size."""
        picture = Image.fromarray(resize_and_crop(image, self))
        if self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(picture.rotate(self.degrees))

    def matrix(self) -> np.ndarray:
        """``[3, 3]`` float64 homogeneous map of recorded pixels (u, v, 1) to pixels of the canvas."""
        left, top, right, bottom = self.crop
        width, height = right - left, bottom - top
        matrix = self.rotation.copy()
        matrix[:, 2] += self.translation
        if self.flip:
            matrix = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
        cos, sin = np.cos(np.deg2rad(self.degrees)), np.sin(np.deg2rad(self.degrees))
        rotation = np.array([[cos, sin], [-sin, cos]])
        center = np.array([width, height]) / 2
        about_center = np.eye(3)
        about_center[:2, :2] = rotation
        about_center[:2, 2] = center - rotation @ center
        return about_center @ matrix

    def recorded(self) -> np.ndarray:
        """``[3, 3]``: recorded pixels -> those of the enlarged camera; centres of pixels lie at whole coordinates."""
        k = self.enlarged
        return np.array([[k, 0, (k - 1) / 2], [0, k, (k - 1) / 2], [0, 0, 1]])


def plain_image(width: int, height: int, target: ImageConfig) -> ImageAugmentation:
    """The test-time resize and crop of an image of ``width`` x ``height`` pixels."""
    return ImageAugmentation(**vars(image_transform(width, height, target)))


def draw_image_augmentation(
    rng: np.random.Generator, width: int, height: int, target: ImageConfig
) -> ImageAugmentation:
    """A training draw: resize about the fitting ratio, random left crop (bottom kept), flip, rotation."""
    ratio = target.width / width + rng.uniform(*RESIZE_RANGE)
    resized = int(width * ratio), int(height * ratio)
    top = resized[1] - target.height
    left = int(rng.uniform(0, max(0, resized[0] - target.width)))
    crop = (left, top, left + target.width, top + target.height)
    return ImageAugmentation(ratio, resized, crop, bool(rng.integers(2)), float(rng.uniform(*ROTATION_RANGE)))


@dataclass(frozen=True)
class BevAugmentation:
    """Rotation about z, then scale, then flips of the ego frame. ``flip_x`` negates x, ``flip_y`` negates y."""

    degrees: float = 0.0
    scale: float = 1.0
    flip_x: bool = False
    flip_y: bool = False

    def matrix(self) -> np.ndarray:
        """``[3, 3]`` float64: flip @ (scale * rotation)."""
        cos, sin = np.cos(np.deg2rad(self.degrees)), np.sin(np.deg2rad(self.degrees))
        rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
        flip = np.diag([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0, 1.0])
        return flip @ (self.scale * rotation)

    def apply(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes ``[M, 9]`` moved with the frame; sizes and velocities are scaled too, as published."""
        boxes = np.array(boxes, np.float64, copy=True).reshape(-1, 9)
        matrix = self.matrix()
        boxes[:, :3] = boxes[:, :3] @ matrix.T
        boxes[:, 3:6] *= self.scale
        boxes[:, 6] += np.deg2rad(self.degrees)
        if self.flip_x:
            boxes[:, 6] = np.pi - boxes[:, 6]
        if self.flip_y:
            boxes[:, 6] = -boxes[:, 6]
        boxes[:, 7:9] = boxes[:, 7:9] @ matrix[:2, :2].T
        return boxes


def draw_bev_augmentation(rng: np.random.Generator) -> BevAugmentation:
    """A training draw, in the published order."""
    return BevAugmentation(
        float(rng.uniform(*BEV_ROTATION_RANGE)),
        float(rng.uniform(*BEV_SCALE_RANGE)),
        bool(rng.uniform() < 0.5),
        bool(rng.uniform() < 0.5),
    )


def in_range(boxes: np.ndarray, extent: float) -> np.ndarray:
    """``[M]`` bool: centres strictly inside the grid's square (published range filter)."""
    return (np.abs(boxes[:, :2]) < extent).all(1)


def with_wrapped_yaw(boxes: np.ndarray) -> np.ndarray:
    """Boxes with yaw in [-pi, pi)."""
    boxes = np.array(boxes, copy=True)
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    return boxes
