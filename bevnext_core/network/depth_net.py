# SPDX-License-Identifier: Apache-2.0
"""Camera-aware depth network: image features and camera parameters -> depth logits and context.

The 27 camera parameters are raw (a focal length of 1266 pixels stays 1266); a batch norm scales them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevnext_core.network.layers import ResidualBlock, conv_bn_relu

CAMERA_PARAMETERS = 27


class DepthNet(nn.Module):
    """Reduce to ``mid_channels``, then a depth branch and a context branch, each gated by the camera parameters."""

    def __init__(self, in_channels: int, mid_channels: int, context_channels: int, depth_bins: int,
                 dropout: float = 0.5) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
        )
        self.parameter_norm = nn.BatchNorm1d(CAMERA_PARAMETERS)
        self.depth_gate = CameraGate(mid_channels)
        self.context_gate = CameraGate(mid_channels)
        self.depth_layers = nn.Sequential(
            *(ResidualBlock(mid_channels, mid_channels) for _ in range(3)),
            Aspp(mid_channels, dropout),
            nn.Conv2d(mid_channels, depth_bins, 1),
        )
        self.context_layers = nn.Sequential(
            DeformableConv(mid_channels, groups=4),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, context_channels, 1),
        )

    def forward(self, features: Tensor, camera_parameters: Tensor) -> tuple[Tensor, Tensor]:
        """``[M, in, h, w]`` and parameters ``[M, 27]`` -> logits ``[M, D, h, w]``, context ``[M, C, h, w]``."""
        reduced = self.reduce(features)
        parameters = self.parameter_norm(camera_parameters)
        context = self.context_layers(self.context_gate(reduced, parameters))
        return self.depth_layers(self.depth_gate(reduced, parameters)), context


class CameraGate(nn.Module):
    """Squeeze-and-excitation whose squeeze is the camera parameters instead of the pooled image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(CAMERA_PARAMETERS, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels)
        )
        self.gate = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor, parameters: Tensor) -> Tensor:
        """``x [M, c, h, w]``, normalised ``parameters [M, 27]`` -> ``[M, c, h, w]``."""
        return x * torch.sigmoid(self.gate(self.mlp(parameters)[..., None, None]))


class DeformableConv(nn.Module):
    """Deformable convolution 3x3, first version (no modulation); offsets (y, x) per tap from a plain convolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels // groups, 3, 3))
        self.offset = nn.Conv2d(channels, 18, 3, padding=1)
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        offset = self.offset(x)
        # Sampling positions need full precision, and the operator has no half form on every device.
        with torch.autocast(x.device.type, enabled=False):
            if x.device.type == "cpu":
                return sampled_deform_conv(x.float(), offset.float(), self.weight.float())
            from torchvision.ops import deform_conv2d  # here, for what importing it costs (see backbone.py)

            return deform_conv2d(x.float(), offset.float(), self.weight.float(), padding=1)


def sampled_deform_conv(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """``deform_conv2d`` with 3x3 taps and padding 1 by ``grid_sample``, which is several times as fast on a CPU.

    Args:
        x: ``[M, C, h, w]``; offset: ``[M, 18, h, w]``; weight: ``[O, C / groups, 3, 3]``.
    """
    cameras, channels, height, width = x.shape
    groups = channels // weight.shape[1]
    tap = torch.arange(9, device=x.device).view(1, 9, 1, 1)
    rows = torch.arange(height, device=x.device).view(-1, 1) + tap // 3 - 1 + offset[:, 0::2]
    columns = torch.arange(width, device=x.device) + tap % 3 - 1 + offset[:, 1::2]
    # Coordinates of grid_sample: -1 and 1 are the outer edges of the outer pixels.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1).flatten(1, 2)
    taken = F.grid_sample(x, grid, align_corners=False, padding_mode="zeros")
    taken = taken.reshape(cameras, groups, -1, height * width)
    weight = weight.reshape(groups, weight.shape[0] // groups, -1)
    return torch.einsum("gok,mgkp->mgop", weight, taken).reshape(cameras, -1, height, width)


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling with dilations 1, 6, 12, 18 and the global mean."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        kernels = {1: 1, 6: 3, 12: 3, 18: 3}  # by dilation
        self.branches = nn.ModuleList(conv_bn_relu(channels, channels, k, dilation) for dilation, k in kernels.items())
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(channels, channels, 1))
        self.merge = conv_bn_relu(5 * channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        mean = F.interpolate(self.mean(x), size=x.shape[-2:], mode="bilinear", align_corners=True)
        return self.dropout(self.merge(torch.cat([*(branch(x) for branch in self.branches), mean], 1)))
