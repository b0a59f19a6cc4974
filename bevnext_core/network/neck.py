# SPDX-License-Identifier: Apache-2.0
"""Image neck: a feature pyramid that gives its finest level only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Neck(nn.Module):
    """1x1 lateral convolutions, top-down sum with nearest upsampling, one 3x3 convolution. No norm, no activation."""

    def __init__(self, in_channels: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.output = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """C3, C4, C5 -> ``[M, out_channels, H/8, W/8]``."""
        laterals = [conv(feature) for conv, feature in zip(self.lateral, features, strict=True)]
        top = laterals[-1]
        for lateral in reversed(laterals[:-1]):
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
        return self.output(top)
