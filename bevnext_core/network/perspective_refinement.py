# SPDX-License-Identifier: Apache-2.0
"""Perspective refinement: every BEV cell looks back into the present images (deformable attention)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevnext_core.config import BevConfig, ImageConfig, RefinementConfig
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.layers import conv_bn_relu

NEAR = 1e-5
"""Smallest projected depth (metres) and margin of the normalised image, as published."""
PAIRS_AT_A_TIME = 4096
"""Pairs of a camera and a cell that are sampled together on a CPU."""


class PerspectiveRefinement(nn.Module):
    """One decoder layer: cross attention to the cameras, layer norm, feed-forward, layer norm (post-norm).

    Without heads there is no attention, and nothing of the cameras comes in.
    """

    def __init__(
        self, channels: int, bev_channels: int, image: ImageConfig, bev: BevConfig, options: RefinementConfig
    ) -> None:
        super().__init__()
        self.size = bev.size
        self.shared = conv_bn_relu(bev_channels, channels)
        self.cell_embedding = nn.Embedding(bev.size**2, channels)
        self.attention: CameraCrossAttention | None = None
        if options.heads:
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
        if self.attention is not None:
            self.attention.deformable.reset_parameters()

    def forward(self, bev: Tensor, features: Tensor, geometry: CameraGeometry) -> Tensor:
        """``bev [B, bev_channels, Y, X]``, image ``features [B, N, C, h, w]``, present ``geometry`` (F = 1).

        Returns:
            ``[B, C, Y, X]``.
        """
        batch = bev.shape[0]
        query = self.cell_embedding.weight + self.shared(bev).flatten(2).transpose(1, 2)
        if self.attention is not None:
            # Published order: column (x) first, then row (y).
            columns = self.column_embedding.weight.repeat(self.size, 1)
            position = torch.cat([columns, self.row_embedding.weight.repeat_interleave(self.size, 0)], 1)
            query = self.attention(query, position, features, geometry)
        query = self.attention_norm(query)
        query = self.feedforward_norm(query + self.feedforward(query))
        return query.transpose(1, 2).reshape(batch, -1, self.size, self.size)


class CameraCrossAttention(nn.Module):
    """Attends from each cell to the cameras that see any of its height anchors, and averages over these.

    Attributes:
        dense: sample every camera for every cell and drop what is not seen: several times the work, but no shape
            depends on the geometry and nothing waits for the device, as a CUDA graph needs it.
    """

    def __init__(self, channels: int, image: ImageConfig, bev: BevConfig, options: RefinementConfig) -> None:
        super().__init__()
        self.image_size = (image.width, image.height)
        self.dense = False
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
        tiles = self.deformable.tiles(features.permute(0, 1, 3, 4, 2))
        offsets, weights = (values.flatten(0, 1) for values in self.deformable.sampling(query + position))
        cells, cameras = query.shape[1], features.shape[1]
        pixels, looks = pixels.flatten(0, 2), seen.flatten()
        total = torch.zeros_like(query).flatten(0, 1)
        for pairs in self._pairs(seen):
            tile = pairs // cells
            sample = tile // cameras
            cell = sample * cells + pairs % cells
            sampled = self.deformable.sample(
                tiles,
                (tile % cameras, sample),
                tuple(features.shape[i] for i in (1, 0, 3, 4)),
                pixels.index_select(0, pairs),
                offsets.index_select(0, cell),
                weights.index_select(0, cell),
            )
            if self.dense:
                sampled = torch.where(looks.index_select(0, pairs).unsqueeze(1), sampled, 0)
            if self.dense and len(query) == 1:  # all cells, in order
                total = total + sampled.to(total.dtype)
            else:
                total = total.index_add(0, cell, sampled.to(total.dtype))
        mean = total.view_as(query) / seen.sum(1).clamp(min=1).unsqueeze(-1)
        return self.output(mean) + query

    def _pairs(self, seen: Tensor) -> Sequence[Tensor]:
        """Indices into ``seen [B, N, Q]``, flattened, in parts that are sampled one after the other."""
        if self.dense:
            return torch.arange(seen.numel(), device=seen.device).split(seen.shape[2])
        pairs = seen.flatten().nonzero().squeeze(1)
        # On a CPU, samples that fit into the cache and need no fresh pages are faster than all of them at once.
        if seen.device.type == "cpu" and not torch.compiler.is_compiling():
            return pairs.split(PAIRS_AT_A_TIME)
        return (pairs,)

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
        # Autocast would multiply matrices in half precision and put anchors several pixels off.
        with torch.autocast(geometry.rotation.device.type, enabled=False):
            pixels, depth = geometry.project(self.anchors.reshape(1, -1, 3), NEAR)
        width, height = self.image_size
        u, v = pixels[..., 0] / width, pixels[..., 1] / height
        valid = (depth > NEAR) & (u > NEAR) & (u < 1 - NEAR) & (v > NEAR) & (v < 1 - NEAR)
        valid &= geometry.valid[:, 0, :, None]
        shape = (*depth.shape[:2], *self.anchors.shape[:2])
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
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value_projection.bias):
            nn.init.zeros_(zero)
        nn.init.xavier_uniform_(self.value_projection.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        # Published: four anchors were assumed where eight are used, hence two rings.
        ring = torch.arange(self.points) // 4 + 1
        with torch.no_grad():
            self.offsets.bias.copy_((direction[:, None] * ring[None, :, None]).flatten())

    def tiles(self, features: Tensor) -> Tensor:
        """Values of all cameras as one picture per head, so that one call samples any of them.

        ``[B, N, h, w, C]`` -> ``[heads, C/heads, N * (h + 1), B * (w + 1)]``: cameras below each other, samples side
        by side, a row and a column of zeros after each.
        """
        value = self.value_projection(features).unflatten(-1, (self.heads, -1))
        # Samples are taken and summed in fp32; the sampler wants values and positions alike.
        value = F.pad(value.float(), (0, 0, 0, 0, 0, 1, 0, 1))
        return value.permute(4, 5, 1, 2, 0, 3).flatten(4, 5).flatten(2, 3)

    def sampling(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets ``[B, Q, heads, points, 2]`` in feature cells, and weights ``[B, Q, heads, points]``."""
        offsets = self.offsets(query).unflatten(-1, (self.heads, self.points, 2))
        return offsets, self.weights(query).unflatten(-1, (self.heads, self.points)).softmax(-1)

    def sample(
        self,
        tiles: Tensor,
        tile: tuple[Tensor, Tensor],
        layout: tuple[int, ...],
        reference: Tensor,
        offsets: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Weighted samples of P pairs of a camera and a cell.

        Args:
            tiles: of :meth:`tiles`; tile: row and column of each pair's tile in them, ``[P]`` each;
            layout: tiles below each other and side by side, and (h, w);
            reference: ``[P, points, 2]`` (u, v) in [0, 1];
            offsets: ``[P, heads, points, 2]``; weights: ``[P, heads, points]``.

        Returns:
            ``[P, C]`` float32.
        """
        rows, columns, height, width = layout
        # In half precision a position would be off by up to a fifth of a cell.
        reference, offsets = reference.float().unsqueeze(1), offsets.float()
        x = _along(reference[..., 0], offsets[..., 0], width, tile[1], columns)
        y = _along(reference[..., 1], offsets[..., 1], height, tile[0], rows)
        grid = torch.stack([x, y], -1).transpose(0, 1)
        sampled = F.grid_sample(tiles, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return (sampled * weights.transpose(0, 1)[:, None]).sum(-1).flatten(0, 1).transpose(0, 1)


def _along(reference: Tensor, offset: Tensor, size: int, tile: Tensor, tiles: int) -> Tensor:
    """grid_sample's coordinate along one axis of ``tiles`` tiles of ``size`` cells and a zero each, ``[P, heads, A]``.

    What lies outside of a tile is moved onto the zero beside it.
    """
    scale = 2 / (tiles * (size + 1))
    origin = (tile * (size + 1) + 0.5) * scale - 1
    place = (reference * size - 0.5 + offset).clamp(-1, size)
    return torch.add(origin.view(-1, 1, 1), place, alpha=scale)
