# SPDX-License-Identifier: Apache-2.0
"""The published code's second step to a depth target: :func:`lidar_depth_map` does both in one."""

from __future__ import annotations

import torch

from bevnext_core.config import FEATURE_STRIDE


def cell_depth(depth: torch.Tensor, stride: int = FEATURE_STRIDE) -> torch.Tensor:
    """Smallest non-zero depth of each ``stride`` x ``stride`` cell: ``[..., H, W]`` -> ``[..., H/s, W/s]``."""
    cells = depth.unflatten(-1, (-1, stride)).unflatten(-3, (-1, stride))
    cells = torch.where(cells > 0, cells, torch.inf).amin((-3, -1))
    return torch.where(torch.isfinite(cells), cells, 0.0)
