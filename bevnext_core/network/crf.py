# SPDX-License-Identifier: Apache-2.0
"""CRF-modulated depth: a mean-field conditional random field over depth bins, driven by image colour.

Neighbouring patches (3x3 window, the patch itself included) with like mean colour pull each other's
depth distributions together; the price of disagreement between bins a and b is |a - b|.
With the published bandwidth of 0.001 grey levels only patches of exactly equal mean colour are alike, so
the iterations mostly sharpen each patch towards its own median; see docs/semantics.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevnext_core.ops.crf.plain import WINDOW, mean_field


class DepthCrf(nn.Module):
    """``iterations`` of mean field with the unary term ``logits``; fp32 whatever the input.

    Without iterations it is the softmax, and has no weight.
    """

    def __init__(self, iterations: int = 20, zeta: float = 0.001, weight: float = 0.015) -> None:
        super().__init__()
        self.iterations = iterations
        self.zeta = zeta
        self.weight = nn.Parameter(torch.full((1,), weight)) if iterations else None

    def forward(self, logits: Tensor, colors: Tensor) -> Tensor:
        """Depth distribution ``[M, D, h, w]`` that sums to one over D.

        Args:
            logits: ``[M, D, h, w]``.
            colors: ``[M, 3, h, w]`` mean RGB of each patch, 0..255 (:func:`patch_colors`); takes no gradient.
        """
        with torch.autocast(logits.device.type, enabled=False):
            if self.weight is None:
                return logits.float().softmax(1)
            return mean_field(logits.float(), color_kernel(colors, self.zeta), self.weight, self.iterations)


def color_kernel(colors: Tensor, zeta: float) -> Tensor:
    """``exp(-|c_i - c_j|^2 / (2 zeta^2))`` for the 3x3 window: ``[M, 3, h, w]`` -> ``[M, 9, h, w]``.

    Outside the image the colour is zero, as published.
    """
    colors = colors.float()
    height, width = colors.shape[-2:]
    padded = F.pad(colors, (1, 1, 1, 1))
    squared = [(padded[..., dy : dy + height, dx : dx + width] - colors).square().sum(1) for dy, dx in WINDOW]
    return torch.exp(torch.stack(squared, 1) / (-2 * zeta**2))


def patch_colors(canvas: Tensor, patch: int = 8) -> Tensor:
    """Mean RGB of each ``patch`` x ``patch`` square: uint8 ``[M, H, W, 3]`` -> float32 ``[M, 3, H/patch, W/patch]``."""
    images = canvas.permute(0, 3, 1, 2).float()
    return F.avg_pool2d(images, patch)
