# SPDX-License-Identifier: Apache-2.0
"""View transform: from per-camera depth and context to the BEV plane (lift, splat)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevnext_core.config import BevConfig, DepthConfig, ImageConfig
from bevnext_core.network.camera_geometry import CameraGeometry, inverse
from bevnext_core.ops.bev_pool.plain import PoolPlan, bev_pool, bev_pool_form


class ViewTransform(nn.Module):
    """Pools each frame's frustum points straight into the present ego frame; BEV maps are never warped."""

    def __init__(self, image: ImageConfig, depth: DepthConfig, bev: BevConfig) -> None:
        super().__init__()
        rows, columns = image.feature_size
        # Published: the frustum spans the image from edge pixel to edge pixel, not between pixel centres.
        u = torch.linspace(0, image.width - 1, columns).view(1, 1, columns).expand(depth.bins, rows, columns)
        v = torch.linspace(0, image.height - 1, rows).view(1, rows, 1).expand(depth.bins, rows, columns)
        d = torch.tensor(depth.values).view(-1, 1, 1).expand(depth.bins, rows, columns)
        self.register_buffer("frustum", torch.stack([u, v, d]).flatten(1), persistent=False)
        self.shape = (depth.bins, rows, columns)
        self.lower = (-bev.extent, -bev.extent, bev.z_min)
        self.interval = (bev.cell, bev.cell, bev.z_max - bev.z_min)
        self.cells = (bev.size, bev.size, 1)

    def forward(self, depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
        """``depth [M, D, h, w]``, ``context [M, C, h, w]`` -> ``[G, C, Y, X]``."""
        return bev_pool(depth, context, plan)

    @torch.no_grad()
    def points(self, geometry: CameraGeometry) -> Tensor:
        """Frustum points in the (augmented) present ego frame: ``[B*F*N, 3, D*h*w]``, metres."""
        shift = geometry.image_translation.flatten(0, 2).unsqueeze(-1)
        points = inverse(geometry.image_rotation.flatten(0, 2)) @ (self.frustum - shift)
        points = torch.cat([points[:, :2] * points[:, 2:], points[:, 2:]], 1)
        points = (geometry.rotation @ inverse(geometry.intrinsics)).flatten(0, 2) @ points
        points += geometry.translation.flatten(0, 2).unsqueeze(-1)
        per_sample = geometry.rotation.shape[1] * geometry.rotation.shape[2]
        return geometry.bda.repeat_interleave(per_sample, 0) @ points

    @torch.no_grad()
    def plan(self, geometry: CameraGeometry) -> PoolPlan:
        """The plan that pools B*F groups of N cameras into B*F maps.

        A point belongs to cell ``trunc((p - lower) / interval)``. Truncation is towards zero, as published:
        the cells at the lower border are twice as wide (and the single z cell reaches 8 m further down).
        """
        samples, frames, cameras = geometry.rotation.shape[:3]
        native = bev_pool_form(self.frustum.device) == "c++"
        cells = self._native_cells(geometry) if native else self.cell_of_points(geometry)
        shape = (samples * frames * cameras, *self.shape)
        return PoolPlan(cells, samples * frames, self.cells[1::-1], shape)

    def _native_cells(self, geometry: CameraGeometry) -> Tensor:
        """:meth:`cell_of_points` in one pass, bit for bit the same."""
        samples, frames, cameras = geometry.rotation.shape[:3]
        parts = [
            inverse(geometry.image_rotation),
            geometry.image_translation.unsqueeze(-1),
            geometry.rotation @ inverse(geometry.intrinsics),
            geometry.translation.unsqueeze(-1),
            geometry.bda[:, None, None].expand_as(geometry.rotation),
        ]
        projections = torch.cat([part.flatten(0, 2).flatten(1) for part in parts], 1)
        maps = torch.arange(samples * frames, dtype=torch.int32).repeat_interleave(cameras)
        maps = torch.where(geometry.valid.flatten(), maps, -1)
        return torch.ops.bevnext.frustum_cells(
            self.frustum, projections, maps, self.lower, self.interval, self.cells[1::-1]
        )

    @torch.no_grad()
    def cell_of_points(self, geometry: CameraGeometry) -> Tensor:
        """The cell of every frustum point in B*F maps, ``[B*F*N*D*h*w]`` int32; -1: in none."""
        points = self.points(geometry)
        samples, frames, cameras = geometry.rotation.shape[:3]
        inside = geometry.valid.flatten().unsqueeze(1).expand(-1, points.shape[-1]).clone()
        cell = torch.zeros_like(inside, dtype=torch.int32)
        for axis in (1, 0, 2):
            coordinate = (points[:, axis] - self.lower[axis]) / self.interval[axis]
            # In (-1, 0) a coordinate truncates to cell 0; compared as float, nothing can overflow.
            inside &= (coordinate > -1) & (coordinate < self.cells[axis])
            if axis < 2:
                cell = cell * self.cells[axis] + coordinate.int()
        columns, rows = self.cells[0], self.cells[1]
        group = torch.arange(samples * frames, dtype=torch.int32, device=points.device)
        cell += group.repeat_interleave(cameras).unsqueeze(1) * (rows * columns)
        return torch.where(inside, cell, -1).flatten()
