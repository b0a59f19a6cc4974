# SPDX-License-Identifier: Apache-2.0
"""Detection heads: class heat maps (proposal head) and box regression (box head), one branch set per task."""

from __future__ import annotations

from torch import Tensor, nn

from bevnext_core.config import HeadConfig, TaskConfig
from bevnext_core.network.layers import conv_bn_relu

REGRESSION = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
"""Channels of the regression branches: sub-cell offset (x, y), z of the centre, log size (length, width,
height), heading (sin, cos), velocity."""
HEATMAP_BIAS = -2.19
"""Logit of a prior of 0.1 (CenterNet)."""


def _branch(config: HeadConfig, out_channels: int) -> nn.Sequential:
    hidden = conv_bn_relu(config.shared_channels, config.branch_channels)
    branch = nn.Sequential(hidden, nn.Conv2d(config.branch_channels, out_channels, 3, padding=1))
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return branch


class ProposalHead(nn.Module):
    """Class heat maps (logits) on the output of the BEV encoder. All scores come from here."""

    def __init__(self, in_channels: int, config: HeadConfig, tasks: tuple[TaskConfig, ...]) -> None:
        super().__init__()
        self.shared = conv_bn_relu(in_channels, config.shared_channels)
        self.tasks = nn.ModuleList(_branch(config, len(task.classes)) for task in tasks)
        for task in self.tasks:
            nn.init.constant_(task[-1].bias, HEATMAP_BIAS)

    def forward(self, bev: Tensor) -> list[Tensor]:
        """``[B, in, Y, X]`` -> per task ``[B, classes, Y, X]`` logits."""
        shared = self.shared(bev)
        return [task(shared) for task in self.tasks]


class BoxHead(nn.Module):
    """Box regression on the refined BEV features; no heat maps."""

    def __init__(self, in_channels: int, config: HeadConfig, tasks: tuple[TaskConfig, ...]) -> None:
        super().__init__()
        self.shared = conv_bn_relu(in_channels, config.shared_channels)
        self.tasks = nn.ModuleList(
            nn.ModuleDict({name: _branch(config, size) for name, size in REGRESSION.items()}) for _ in tasks
        )

    def forward(self, bev: Tensor) -> list[dict[str, Tensor]]:
        """``[B, in, Y, X]`` -> per task a dict of maps ``[B, size, Y, X]`` with the keys of :data:`REGRESSION`."""
        shared = self.shared(bev)
        return [{name: branch(shared) for name, branch in task.items()} for task in self.tasks]
