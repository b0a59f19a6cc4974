# SPDX-License-Identifier: Apache-2.0
"""Single-frame BEV encoder (stage 1): three stages of two residual blocks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from bevnext_core.network.layers import ResidualBlock


def levels(stages: Iterable[nn.Module], bev: Tensor) -> list[Tensor]:
    """What comes out of each of the stages, one after the other."""
    outputs = [bev]
    for stage in stages:
        outputs.append(stage(outputs[-1]))
    return outputs[1:]


class BevBackbone(nn.Module):
    """``[B, C, Y, X]`` -> 2C, 4C, 8C channels at half, quarter and eighth resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = (2 * channels, 4 * channels, 8 * channels)
        widths = (channels, *self.out_channels)
        self.stages = nn.ModuleList(
            nn.Sequential(ResidualBlock(a, b, stride=2, project=True), ResidualBlock(b, b))
            for a, b in pairwise(widths)
        )

    def forward(self, bev: Tensor) -> list[Tensor]:
        return levels(self.stages, bev)
