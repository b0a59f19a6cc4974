# SPDX-License-Identifier: Apache-2.0
"""Res2Fusion (stage 2): long-history fusion of BEV frames, then a Res2Net encoder."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from bevnext_core.network.bev_backbone import levels

GROUPS = 3
SPLITS = 4


class Res2Fusion(nn.Module):
    """BEV maps of F frames -> 2C, 4C, 8C channels at half, quarter and eighth resolution."""

    def __init__(self, channels: int, frames: int, group_width: int = 48, split_width: int = 32) -> None:
        super().__init__()
        self.fusion = FusionLayer(channels, frames, group_width)
        self.out_channels = (2 * channels, 4 * channels, 8 * channels)
        widths = (channels, *self.out_channels)
        self.stages = nn.ModuleList(
            nn.Sequential(Res2Block(a, b, 2, split_width), Res2Block(b, b, 1, split_width))
            for a, b in pairwise(widths)
        )

    def forward(self, bev: Tensor) -> list[Tensor]:
        """``bev [B, F*C, Y, X]``, present frame first, then newest to oldest."""
        return levels(self.stages, self.fusion(bev))


class FusionLayer(nn.Module):
    """Three groups of consecutive frames, fused from the oldest to the middle; the newest passes untouched."""

    def __init__(self, channels: int, frames: int, base_width: int) -> None:
        super().__init__()
        width = int(channels / 2 * base_width / 64)
        self.reduce = nn.Sequential(
            nn.Conv2d(frames * channels, GROUPS * width, 1, groups=GROUPS, bias=False),
            nn.BatchNorm2d(GROUPS * width),
            nn.ReLU(inplace=True),
        )
        self.branches = nn.ModuleList(_branch(width, 1) for _ in range(GROUPS - 1))
        self.merge = nn.Sequential(
            nn.Conv2d(GROUPS * width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, bev: Tensor) -> Tensor:
        """``[B, F*C, Y, X]`` -> ``[B, C, Y, X]``."""
        newest, middle, oldest = self.reduce(bev).chunk(GROUPS, 1)
        first = self.branches[0](oldest)
        second = self.branches[1](first + middle)
        return self.merge(torch.cat([first, second, newest], 1))


class Res2Block(nn.Module):
    """Res2Net bottleneck with four splits. With ``stride`` 2 the splits are independent and the last is pooled."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, base_width: int) -> None:
        super().__init__()
        width = int(out_channels / 4 * base_width / 64)
        self.stride = stride
        self.expand = nn.Sequential(
            nn.Conv2d(in_channels, SPLITS * width, 1, bias=False),
            nn.BatchNorm2d(SPLITS * width),
            nn.ReLU(inplace=True),
        )
        self.branches = nn.ModuleList(_branch(width, stride) for _ in range(SPLITS - 1))
        self.merge = nn.Sequential(
            nn.Conv2d(SPLITS * width, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.relu = nn.ReLU(inplace=True)
        self.last: nn.Module = nn.AvgPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        splits = self.expand(x).chunk(SPLITS, 1)
        out: list[Tensor] = []
        for branch, split in zip(self.branches, splits[:-1], strict=True):
            out.append(branch(split if self.stride > 1 or not out else out[-1] + split))
        out.append(self.last(splits[-1]))
        return self.relu(self.merge(torch.cat(out, 1)) + self.shortcut(x))


def _branch(width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
