# SPDX-License-Identifier: Apache-2.0
"""Perspective supervision: which class each image patch shows, from the boxes' projections. Not part of the recipe.

In the published training the image branch learns what objects look like only through the BEV maps, which says little
while depth is still unknown; the backbone's pretraining makes up for it. Without pretraining a linear read-out of the
context, trained to name the class of every patch, gives the branch something to go by from the first step. The
read-out is no part of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevnext_core.config import FEATURE_STRIDE, ModelConfig
from bevnext_core.network.camera_geometry import CameraGeometry

NEAR = 0.5
"""Metres in front of the camera from which a corner can be projected."""
BACKGROUND_WEIGHT = 0.2
"""Of a patch without an object; most have none."""


class PerspectiveLoss(nn.Module):
    """Cross-entropy of each patch's class, times ``weight``; one class more than the network's is the background."""

    def __init__(self, config: ModelConfig, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.read_out = nn.Conv2d(config.channels, len(config.class_names) + 1, 1)
        background = torch.ones(len(config.class_names) + 1)
        background[-1] = BACKGROUND_WEIGHT
        self.register_buffer("class_weights", background, persistent=False)

    def forward(
        self, context: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor], geometry: CameraGeometry
    ) -> Tensor:
        """A scalar.

        Args:
            context: ``[B*N, C, h, w]`` of the present frame; boxes, labels: as in a training batch, B of each;
            geometry: of the present frame (F = 1).
        """
        logits = self.read_out(context.float())
        rows, columns = logits.shape[-2:]
        target = patch_classes(boxes, labels, geometry, (rows, columns), logits.shape[1] - 1)
        return self.weight * F.cross_entropy(logits, target.flatten(0, 1), self.class_weights)


@torch.no_grad()
def patch_classes(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    geometry: CameraGeometry,
    size: tuple[int, int],
    background: int,
) -> Tensor:
    """The class of the nearest object whose projected rectangle covers a patch's centre: ``[B, N, h, w]`` int64.

    A rectangle is at least a patch wide and high. Objects of which a camera sees fewer than four corners in front of
    it do not count there.

    Args:
        boxes: B tensors ``[n, 9]`` in the (augmented) ego frame; labels: B tensors ``[n]``.
        size: (h, w) patches of :data:`~bevnext_core.config.FEATURE_STRIDE` pixels; background: the class of the rest.
    """
    samples, _, cameras = geometry.rotation.shape[:3]
    half = FEATURE_STRIDE / 2
    device = geometry.rotation.device
    y = torch.arange(size[0], device=device).view(-1, 1) * FEATURE_STRIDE + half
    x = torch.arange(size[1], device=device).view(1, -1) * FEATURE_STRIDE + half
    found = torch.full((samples, cameras, *size), background, dtype=torch.int64, device=device)
    for sample in range(samples):
        if not len(boxes[sample]):
            continue
        present = geometry.samples(slice(sample, sample + 1))
        projected = present.project(_corners(boxes[sample])[None], NEAR)
        pixels, depth = (values[0].unflatten(1, (-1, 8)) for values in projected)
        front = depth > NEAR
        low = torch.where(front[..., None], pixels, torch.inf).amin(2)
        high = torch.where(front[..., None], pixels, -torch.inf).amax(2)
        middle, reach = (low + high) / 2, ((high - low) / 2).clamp(min=half)
        covers = ((x - middle[..., 0, None, None]).abs() <= reach[..., 0, None, None]) & (
            (y - middle[..., 1, None, None]).abs() <= reach[..., 1, None, None]
        )
        covers &= (front.sum(2) >= 4)[..., None, None]
        distance = torch.where(covers, depth.mean(2)[..., None, None], torch.inf)
        nearest, index = distance.min(1)
        found[sample] = torch.where(nearest.isfinite(), labels[sample].long()[index], background)
    return found


def _corners(boxes: Tensor) -> Tensor:
    """``[n * 8, 3]`` of boxes ``[n, 9]``, in any order."""
    signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], device=boxes.device)] * 3)
    local = signs * boxes[:, None, 3:6]
    cos, sin = boxes[:, 6, None].cos(), boxes[:, 6, None].sin()
    rotated = [local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos, local[..., 2]]
    return (torch.stack(rotated, -1) + boxes[:, None, :3]).flatten(0, 1)
