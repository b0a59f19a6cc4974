# SPDX-License-Identifier: Apache-2.0
"""Image backbone: ResNet-50 (He et al., CVPR 2016) with the stride in the 3x3 convolution, equal to torchvision's."""

from __future__ import annotations

from torch import Tensor, nn

BLOCKS = (3, 4, 6, 3)
EXPANSION = 4
"""Channels of a block's output for each of its 3x3 convolution's."""


class ResNet50(nn.Module):
    """Feature maps C3, C4, C5 at strides 8, 16, 32 with 8, 16, 32 times ``base_channels``.

    Parameter names are torchvision's, so its ImageNet weights load (``fc`` aside) when ``base_channels`` is 64.
    """

    def __init__(self, base_channels: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = base_channels
        for index, blocks in enumerate(BLOCKS):
            planes = base_channels * 2**index
            self.add_module(f"layer{index + 1}", _stage(channels, planes, blocks, stride=1 if index == 0 else 2))
            channels = planes * EXPANSION
        self.out_channels = tuple(base_channels * scale for scale in (8, 16, 32))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``images [M, 3, H, W]`` normalised -> ``[M, 8c, H/8, W/8]``, ``[M, 16c, H/16, W/16]``, ``[M, 32c, ...]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, the last one's output added to the shortcut's (``downsample``).

    Torchvision's is the same, but importing it brings torch's whole compiler: seconds at every start of a program.
    """

    def __init__(self, in_channels: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _stage(in_channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    out_channels = planes * EXPANSION
    shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
    layers = [Bottleneck(in_channels, planes, stride, shortcut)]
    layers += [Bottleneck(out_channels, planes) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)
