# SPDX-License-Identifier: Apache-2.0
"""The resize in PyTorch equals PIL's, bit for bit."""

from __future__ import annotations

import platform
from functools import lru_cache

import numpy as np
import pytest
import torch

from bevnext_core.config import ImageConfig
from bevnext_core.streaming.device_resize import resize_and_crop_on_device
from bevnext_core.streaming.preprocess import ImageTransform, image_transform, resize_and_crop

LIMIT = 0 if platform.machine() in ("x86_64", "AMD64") else 1
"""Grey levels. Elsewhere PIL may have been compiled with fused multiply-adds."""

SIZES = [
    ((1600, 900), (704, 396)),  # nuScenes into the published network
    ((800, 450), (352, 198)),
    ((400, 225), (352, 198)),  # the demo
    ((1600, 900), (352, 198)),
    ((317, 211), (123, 97)),  # odd, and another ratio in each direction
    ((129, 77), (129, 40)),  # one pass only
    ((64, 33), (20, 33)),
    ((64, 36), (64, 36)),  # none
    ((96, 54), (211, 119)),  # up
    ((50, 40), (49, 83)),  # down and up
    ((7, 5), (3, 2)),
    ((2, 1), (9, 4)),
]


@lru_cache(maxsize=4)
def pictures(size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Noise, saturated noise (where clamping matters), and something like a photograph: ``[H, W, 3]`` uint8."""
    width, height = size
    rng = np.random.default_rng(width)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    saturated = np.where(rng.random((height, width, 3)) < 0.5, 0, 255).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    smooth = sum(
        rng.uniform(10, 40) * np.sin(x * rng.uniform(0, 20) / width + y * rng.uniform(0, 20) / height + phase)
        for phase in rng.uniform(0, 6, 5)
    )
    photo = np.stack([120 + smooth * f for f in (1.0, 0.8, 0.6)], -1) + rng.normal(0, 4, (height, width, 3))
    photo[height // 3 : height // 2 + 1, width // 4 : width // 2 + 1] = (250, 20, 90)
    return noise, saturated, photo.clip(0, 255).astype(np.uint8)


def largest_difference(images: tuple[np.ndarray, ...], transform: ImageTransform, device: str = "cpu") -> int:
    found = resize_and_crop_on_device(torch.from_numpy(np.stack(images)).to(device), transform)
    expected = np.stack([resize_and_crop(image, transform) for image in images])
    assert found.dtype == torch.uint8 and tuple(found.shape) == expected.shape
    return int(np.abs(found.cpu().numpy().astype(int) - expected).max())


@pytest.mark.parametrize(("size", "resized"), SIZES)
def test_the_whole_image(size: tuple[int, int], resized: tuple[int, int]) -> None:
    transform = ImageTransform(resized[0] / size[0], resized, (0, 0, *resized))
    assert largest_difference(pictures(size), transform) <= LIMIT


@pytest.mark.parametrize("size", [(1600, 900), (800, 450), (400, 225), (1280, 1000), (517, 301)])
def test_what_the_detector_asks_for(size: tuple[int, int]) -> None:
    """The crop that keeps the bottom; a flat image leaves a black border above."""
    for target in (ImageConfig(256, 704), ImageConfig(128, 352), ImageConfig(512, 352)):
        assert largest_difference(pictures(size), image_transform(*size, target)) <= LIMIT


@pytest.mark.parametrize(
    "crop", [(-5, -7, 60, 40), (30, 20, 110, 90), (10, 3, 11, 4), (200, 0, 220, 9), (0, -30, 40, -3)]
)
def test_crops_beyond_the_image_are_black(crop: tuple[int, int, int, int]) -> None:
    assert largest_difference(pictures((160, 120)), ImageTransform(0.5, (80, 60), crop)) <= LIMIT


def test_the_comparison_can_fail() -> None:
    """Another sampler, or another rounding, is not within the limit."""
    images = torch.from_numpy(np.stack(pictures((800, 450))))
    transform = ImageTransform(0.44, (352, 198), (0, 0, 352, 198))
    ours = resize_and_crop_on_device(images, transform).int()
    planes = images.permute(0, 3, 1, 2).float()
    for options in ({"antialias": True}, {"antialias": False}):
        other = torch.nn.functional.interpolate(planes, (198, 352), mode="bicubic", **options)
        other = other.round().clamp(0, 255).int().permute(0, 2, 3, 1)
        assert (other - ours).abs().max() > LIMIT


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for size, resized in SIZES:
        transform = ImageTransform(resized[0] / size[0], resized, (0, 0, *resized))
        assert largest_difference(pictures(size), transform, "cuda") <= LIMIT
