# SPDX-License-Identifier: Apache-2.0
"""Per-frame BEV pre-process net: two residual blocks at full resolution, the same for every frame."""

from __future__ import annotations

from torch import nn

from bevnext_core.network.layers import ResidualBlock


def pre_process_net(channels: int) -> nn.Sequential:
    """``[B, C, Y, X]`` -> ``[B, C, Y, X]``."""
    return nn.Sequential(ResidualBlock(channels, channels, project=True), ResidualBlock(channels, channels))
