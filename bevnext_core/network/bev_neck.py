# SPDX-License-Identifier: Apache-2.0
"""BEV neck (FPN-LSS): joins the finest and the coarsest BEV level and returns to full resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevnext_core.network.layers import conv_bn_relu


class BevNeck(nn.Module):
    """Levels at half and eighth resolution -> ``[B, out, Y, X]``; the last convolution has no norm or activation."""

    def __init__(self, shallow_channels: int, deep_channels: int, out_channels: int) -> None:
        super().__init__()
        middle = 2 * out_channels
        self.upsample_deep = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
        self.merge = nn.Sequential(
            *conv_bn_relu(shallow_channels + deep_channels, middle), *conv_bn_relu(middle, middle)
        )
        self.output = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            *conv_bn_relu(middle, out_channels),
            nn.Conv2d(out_channels, out_channels, 1),
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        """``levels``: outputs of the BEV encoder at 1/2, 1/4 (not used) and 1/8."""
        return self.output(self.merge(torch.cat([levels[0], self.upsample_deep(levels[2])], 1)))
