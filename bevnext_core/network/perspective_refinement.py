"""Perspective refinement: every BEV cell looks back into the present images (deformable attention)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevnext_core.config import BevConfig, ImageConfig, RefinementConfig
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.layers import conv_bn_relu

NEAR = 1e-5
"""Smallest projected depth (metres) and margin of the normalised image, as published."""


class PerspectiveRefinement(nn.Module):
    """One decoder layer: cross attention to the cameras, layer norm, feed-forward, layer norm (post-norm)."""

    def __init__(
        self, channels: int, bev_channels: int, image: ImageConfig, bev: BevConfig, options: RefinementConfig
    ) -> None:
        super().__init__()
        self.size = bev.size
        self.shared = conv_bn_relu(bev_channels, channels)
        self.cell_embedding = nn.Embedding(bev.size**2, channels)
        self.row_embedding = nn.Embedding(bev.size, channels // 2)
        self.column_embedding = nn.Embedding(bev.size, channels // 2)
        self.attention = CameraCrossAttention(channels, image, bev, options)
        self.attention_norm = nn.LayerNorm(channels)
        hidden = options.feedforward_ratio * channels
        self.feedforward = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.feedforward_norm = nn.LayerNorm(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for every matrix (embeddings and convolution included), then the sampling pattern of the attention."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.attention.deformable.reset_parameters()

    def forward(self, bev: Tensor, features: Tensor, geometry: CameraGeometry) -> Tensor:
        """``bev [B, bev_channels, Y, X]``, image ``features [B, N, C, h, w]``, present ``geometry`` (F = 1).

        Returns:
            ``[B, C, Y, X]``.
        """
        batch = bev.shape[0]
        query = self.cell_embedding.weight + self.shared(bev).flatten(2).transpose(1, 2)
        # Published order: column (x) first, then row (y).
        position = torch.cat(
            [
                self.column_embedding.weight.repeat(self.size, 1),
                self.row_embedding.weight.repeat_interleave(self.size, 0),
            ],
            1,
        )
        query = self.attention_norm(self.attention(query, position, features, geometry))
        query = self.feedforward_norm(query + self.feedforward(query))
        return query.transpose(1, 2).reshape(batch, -1, self.size, self.size)


class CameraCrossAttention(nn.Module):
    """Attends from each cell to the cameras that see any of its height anchors, and averages over these."""

    def __init__(self, channels: int, image: ImageConfig, bev: BevConfig, options: RefinementConfig) -> None:
        super().__init__()
        self.image_size = (image.width, image.height)
        self.deformable = DeformableAttention(channels, options.heads, options.height_anchors)
        self.output = nn.Linear(channels, channels)
        centers = (torch.arange(bev.size) + 0.5) * bev.cell - bev.extent
        step = (bev.z_max - bev.z_min) / options.height_anchors
        heights = bev.z_min + step * (torch.arange(options.height_anchors) + 0.5)
        y, x, z = torch.meshgrid(centers, centers, heights, indexing="ij")
        self.register_buffer("anchors", torch.stack([x, y, z], -1).flatten(0, 1), persistent=False)

    def forward(self, query: Tensor, position: Tensor, features: Tensor, geometry: CameraGeometry) -> Tensor:
        """``query [B, Q, C]``, ``position [Q, C]``, ``features [B, N, C, h, w]`` -> ``[B, Q, C]``."""
        pixels, seen = self.project(geometry)
        value = self.deformable.value(features.permute(0, 1, 3, 4, 2))
        offsets, weights = self.deformable.sampling(query + position)
        batches = []
        for b in range(query.shape[0]):
            total = torch.zeros_like(query[b])
            for camera in range(value.shape[1]):
                cells = seen[b, camera].nonzero().squeeze(1)
                sampled = self.deformable.sample(
                    value[b, camera], pixels[b, camera, cells], offsets[b, cells], weights[b, cells]
                )
                total = total.index_add(0, cells, sampled.to(total.dtype))
            batches.append(total / seen[b].sum(0).clamp(min=1).unsqueeze(1))
        return self.output(torch.stack(batches)) + query

    @torch.no_grad()
    def project(self, geometry: CameraGeometry) -> tuple[Tensor, Tensor]:
        """Height anchors in the images.

        Returns:
            normalised pixels (u, v) ``[B, N, Q, A, 2]``, and ``[B, N, Q]`` bool: a camera sees any anchor of the cell.
        """
        pixels, valid = self.project_anchors(geometry)
        return pixels, valid.any(-1)

    @torch.no_grad()
    def project_anchors(self, geometry: CameraGeometry) -> tuple[Tensor, Tensor]:
        """Normalised pixels ``[B, N, Q, A, 2]`` and whether each is in the image and in front, ``[B, N, Q, A]``."""
        matrices = (geometry.rotation, geometry.intrinsics, geometry.image_rotation)
        rotation, intrinsics, image_rotation = (matrix[:, 0].float() for matrix in matrices)
        translation = geometry.translation[:, 0, :, None, :].float()
        shift = geometry.image_translation[:, 0, :, None, :].float()
        queries, anchors = self.anchors.shape[:2]
        points = self.anchors.reshape(1, -1, 3) @ torch.inverse(geometry.bda.float()).transpose(1, 2)
        points = points.unsqueeze(1) - translation
        points = points @ torch.inverse(rotation @ torch.inverse(intrinsics)).transpose(2, 3)
        depth = points[..., 2:]
        points = torch.cat([points[..., :2] / depth.clamp(min=NEAR), depth], -1)
        points = points @ image_rotation.transpose(2, 3) + shift
        width, height = self.image_size
        u, v = points[..., 0] / width, points[..., 1] / height
        valid = (depth[..., 0] > NEAR) & (u > NEAR) & (u < 1 - NEAR) & (v > NEAR) & (v < 1 - NEAR)
        valid &= geometry.valid[:, 0, :, None]
        shape = (*points.shape[:2], queries, anchors)
        return torch.stack([u, v], -1).view(*shape, 2), valid.view(shape)


class DeformableAttention(nn.Module):
    """Multi-head deformable attention on one feature level; point p of a head belongs to height anchor p."""

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.value_projection = nn.Linear(channels, channels)
        self.offsets = nn.Linear(channels, heads * points * 2)
        self.weights = nn.Linear(channels, heads * points)

    def reset_parameters(self) -> None:
        """Offsets start as one direction per head; anchors of the lower half at distance 1, of the upper at 2."""
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        nn.init.xavier_uniform_(self.value_projection.weight)
        nn.init.zeros_(self.value_projection.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        # Published: four anchors were assumed where eight are used, hence two rings.
        ring = torch.arange(self.points) // 4 + 1
        with torch.no_grad():
            self.offsets.bias.copy_((direction[:, None] * ring[None, :, None]).flatten())

    def value(self, features: Tensor) -> Tensor:
        """``[B, N, h, w, C]`` -> ``[B, N, heads, C/heads, h, w]``."""
        value = self.value_projection(features)
        return value.unflatten(-1, (self.heads, -1)).permute(0, 1, 4, 5, 2, 3)

    def sampling(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets ``[B, Q, heads, points, 2]`` in feature cells, and weights ``[B, Q, heads, points]``."""
        offsets = self.offsets(query).unflatten(-1, (self.heads, self.points, 2))
        return offsets, self.weights(query).unflatten(-1, (self.heads, self.points)).softmax(-1)

    def sample(self, value: Tensor, reference: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """Weighted samples of one camera.

        Args:
            value: ``[heads, c, h, w]``; reference: ``[Q, points, 2]`` in [0, 1];
            offsets: ``[Q, heads, points, 2]``; weights: ``[Q, heads, points]``.

        Returns:
            ``[Q, heads * c]``.
        """
        height, width = value.shape[-2:]
        cells = torch.tensor([width, height], dtype=reference.dtype, device=reference.device)
        grid = 2 * (reference[:, None] + offsets / cells) - 1
        # In half precision a position would be off by up to a fifth of a cell.
        sampled = F.grid_sample(
            value.float(), grid.float().transpose(0, 1), mode="bilinear", padding_mode="zeros", align_corners=False
        )
        return (sampled * weights.transpose(0, 1)[:, None]).sum(-1).flatten(0, 1).transpose(0, 1)
