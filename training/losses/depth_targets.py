# SPDX-License-Identifier: Apache-2.0
"""Depth supervision: lidar points in the image, the depth class of each feature cell, and the loss."""

from __future__ import annotations

import numpy as np
import torch

from bevnext_core.config import DepthConfig


def lidar_depth_map(
    points: np.ndarray,
    camera_from_lidar: np.ndarray,
    intrinsics: np.ndarray,
    image_matrix: np.ndarray,
    height: int,
    width: int,
    stride: int = 1,
    depth_range: tuple[float, float] = (1.0, 60.0),
) -> np.ndarray:
    """Depth of the nearest lidar point in each cell of ``stride`` pixels of the augmented image; 0 where none.

    Args:
        points: ``[P, >=3]`` in the lidar frame, metres.
        camera_from_lidar: ``[4, 4]``, through both ego poses (lidar and camera have different stamps).
        intrinsics: ``[3, 3]`` of the image as recorded.
        image_matrix: ``[3, 3]`` homogeneous map of recorded pixels to pixels of the network's input.
        height, width: network input, pixels.
        depth_range: points outside [first, second) metres along the optical axis are left out.

    Returns:
        ``[height / stride, width / stride]`` float32. With stride 8 it equals the published two steps
        (nearest per pixel, then the smallest non-zero of each 8x8 cell), without the large map.
    """
    rows, columns = height // stride, width // stride
    points = points[_roughly_seen(points, camera_from_lidar, image_matrix @ intrinsics, height, width, depth_range)]
    camera = points[:, :3].astype(np.float64) @ camera_from_lidar[:3, :3].T + camera_from_lidar[:3, 3]
    camera = camera[(camera[:, 2] >= depth_range[0]) & (camera[:, 2] < depth_range[1])]
    depth = camera[:, 2]
    homogeneous = camera @ intrinsics.T
    pixels = homogeneous[:, :2] / homogeneous[:, 2:]
    pixels = np.rint(pixels @ image_matrix[:2, :2].T + image_matrix[:2, 2])  # half to even, as published
    inside = (pixels >= 0).all(1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    cells = (pixels[inside] // stride).astype(np.int64)
    nearest = np.full(rows * columns, np.inf, np.float32)
    np.minimum.at(nearest, cells[:, 1] * columns + cells[:, 0], depth[inside].astype(np.float32))
    return np.where(np.isfinite(nearest), nearest, 0).astype(np.float32).reshape(rows, columns)


def _roughly_seen(
    points: np.ndarray,
    camera_from_lidar: np.ndarray,
    projection: np.ndarray,
    height: int,
    width: int,
    depth_range: tuple[float, float],
) -> np.ndarray:
    """Indices of all points that can be in the image, and few others: most are dropped here, in fp32."""
    rotation, shift = camera_from_lidar[:3, :3].astype(np.float32), camera_from_lidar[:3, 3].astype(np.float32)
    xyz = points[:, :3].astype(np.float32, copy=False)
    with np.errstate(invalid="ignore"):  # points that are not finite: they compare as out of range
        depth = xyz @ rotation[2] + shift[2]
    kept = np.flatnonzero((depth >= depth_range[0] - 0.5) & (depth < depth_range[1] + 0.5))
    homogeneous = (xyz[kept] @ rotation.T + shift) @ projection.astype(np.float32).T
    margin = 2 * np.abs(homogeneous[:, 2])  # two pixels
    inside = np.ones(len(kept), bool)
    for axis, size in enumerate((width, height)):
        inside &= (homogeneous[:, axis] >= -margin) & (homogeneous[:, axis] <= size * homogeneous[:, 2] + margin)
    return kept[inside]


def depth_classes(depth: torch.Tensor, config: DepthConfig) -> torch.Tensor:
    """Depth class of each cell, -1 where there is none; same shape, int64.

    Class i holds depths in [min + i * step, min + (i + 1) * step). A cell without a point, or outside
    the range, has no class.
    """
    position = (depth - (config.min - config.step)) / config.step
    position = torch.where((position >= 0) & (position < config.bins + 1), position, 0.0)
    return position.long() - 1


def depth_loss(probability: torch.Tensor, depth: torch.Tensor, config: DepthConfig, weight: float) -> torch.Tensor:
    """Binary cross-entropy over all bins at the cells with lidar, averaged over those cells of this rank.

    Args:
        probability: ``[..., bins, h, w]`` depth distribution after the CRF, key frame.
        depth: ``[..., h, w]`` metres, 0 where unknown.
        weight: the published 3.

    Returns:
        A scalar; zero (with a zero gradient) when no cell has lidar, never NaN.
    """
    classes = depth_classes(depth, config)
    known = classes >= 0
    predicted = probability.float().movedim(-3, -1)[known]
    expected = torch.nn.functional.one_hot(classes[known], config.bins).to(predicted.dtype)
    # Rounding can leave [0, 1] by an ulp, and PyTorch's function stops the process on a value outside it (on
    # a GPU for good): NaN must come out as NaN, so that the step can be skipped.
    finite = torch.isfinite(predicted)
    bounded = torch.where(finite, predicted, 0.5).clamp(0, 1)
    with torch.autocast(predicted.device.type, enabled=False):
        total = torch.nn.functional.binary_cross_entropy(bounded, expected, reduction="sum")
    total = torch.where(finite.all(), total, torch.nan)
    return weight * total / known.sum().clamp(min=1)
