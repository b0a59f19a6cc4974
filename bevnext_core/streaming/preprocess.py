# SPDX-License-Identifier: Apache-2.0
"""Camera images to the network's input: resize, crop, channel order, normalisation, patch colours.

The resize is PIL's bicubic (antialiased) on an output size cut to whole pixels, then a crop that keeps the
bottom; a wrong sampler costs a trained network points of mAP. The image matrix uses the exact ratio.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bevnext_core.config import ImageConfig
from bevnext_core.network.crf import patch_colors

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ImageTransform:
    """Test-time resize and crop of one camera's image.

    Attributes:
        ratio: exact resize ratio; resized: (width, height) after the resize, pixels;
        crop: (left, top, right, bottom) in the resized image; parts outside of it are black.
    """

    ratio: float
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]

    @property
    def rotation(self) -> np.ndarray:
        """``[3, 3]``: the linear part of the image matrix."""
        return np.diag([self.ratio, self.ratio, 1.0])

    @property
    def translation(self) -> np.ndarray:
        """``[3]``: the shift of the image matrix, pixels."""
        return np.array([-self.crop[0], -self.crop[1], 0.0])


def image_transform(width: int, height: int, target: ImageConfig) -> ImageTransform:
    """How an image of ``width`` x ``height`` becomes the network's input: full width, the bottom kept."""
    ratio = target.width / width
    resized = int(width * ratio), int(height * ratio)
    top = resized[1] - target.height
    left = int(max(0, resized[0] - target.width) / 2)
    return ImageTransform(ratio, resized, (left, top, left + target.width, top + target.height))


def resize_and_crop(image: np.ndarray, transform: ImageTransform) -> np.ndarray:
    """The canvas: uint8 RGB ``[H, W, 3]`` -> uint8 RGB at the network's size."""
    picture = Image.fromarray(image).resize(transform.resized, Image.Resampling.BICUBIC)
    return np.asarray(picture.crop(transform.crop))


def normalize(canvas: Tensor) -> Tensor:
    """uint8 RGB ``[..., H, W, 3]`` -> float32 ``[..., 3, H, W]``.

    Published quirk: the channels are reversed to blue, green, red, yet normalised with the constants of
    red, green, blue in this order.
    """
    values = _normalized(canvas.device)
    planes = [
        values[channel].index_select(0, canvas[..., 2 - channel].reshape(-1).int()).view(canvas.shape[:-1])
        for channel in range(3)
    ]
    return torch.stack(planes, -3)


@functools.lru_cache(maxsize=8)
def _normalized(device: torch.device) -> Tensor:
    """``[3, 256]``: the values of each channel, rounded once; looking them up is several times as fast as computing
    them. Kept on the device: copying the constants there would make every frame wait for it."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (MEAN, STD))
        return ((torch.arange(256, dtype=torch.float64) - mean) / std).float().to(device)


def canvas_colors(canvas: Tensor) -> Tensor:
    """Patch colours of canvases: uint8 ``[..., H, W, 3]`` -> float32 ``[..., 3, H/8, W/8]``."""
    return patch_colors(canvas.flatten(0, -4)).unflatten(0, canvas.shape[:-3])
