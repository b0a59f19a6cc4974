# SPDX-License-Identifier: Apache-2.0
"""BEVNeXt: the blocks put together.

``encode`` works on one frame's cameras and depends on nothing else, so a stream encodes each frame once;
``lift`` pools an encoded frame into the present ego frame; ``detect`` turns the lifted frames into head maps.
``forward`` is the whole window, as the network is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevnext_core.config import ModelConfig
from bevnext_core.network.backbone import ResNet50
from bevnext_core.network.bev_backbone import BevBackbone
from bevnext_core.network.bev_neck import BevNeck
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.crf import DepthCrf
from bevnext_core.network.depth_net import DepthNet
from bevnext_core.network.heads import BoxHead, ProposalHead
from bevnext_core.network.neck import Neck
from bevnext_core.network.perspective_refinement import PerspectiveRefinement
from bevnext_core.network.pre_process import pre_process_net
from bevnext_core.network.res2fusion import Res2Fusion
from bevnext_core.network.view_transform import ViewTransform
from bevnext_core.ops.bev_pool.plain import PoolPlan


@dataclass
class EncodedCameras:
    """Cameras after the image branch: ``depth [M, D, h, w]`` distribution after the CRF, ``context [M, C, h, w]``.

    M = B * N for one frame of B samples.
    """

    depth: Tensor
    context: Tensor

    @staticmethod
    def cat(parts: Sequence[EncodedCameras]) -> EncodedCameras:
        """All cameras of several."""
        return EncodedCameras(torch.cat([part.depth for part in parts]), torch.cat([part.context for part in parts]))


@dataclass
class HeadMaps:
    """Head maps per task, ``[B, channels, Y, X]``: ``heatmap`` (logits) and the regression branches.

    ``depth [B*N, D, h, w]`` is the present frame's distribution (for the depth loss).
    """

    tasks: list[dict[str, Tensor]]
    depth: Tensor


class BEVNeXt(nn.Module):
    """The network of a :class:`~bevnext_core.config.ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        bins, channels = config.depth.bins, config.channels
        self.backbone = ResNet50(config.backbone.base_channels)
        self.neck = Neck(self.backbone.out_channels, config.backbone.neck_channels)
        self.depth_net = DepthNet(
            config.backbone.neck_channels, config.depth.mid_channels, channels, bins, config.training.depth_dropout
        )
        self.crf = DepthCrf(config.depth.crf_iterations, config.depth.crf_zeta, config.depth.crf_weight)
        self.view_transform = ViewTransform(config.image, config.depth, config.bev)
        self.pre_process = pre_process_net(channels)
        history, frames = config.history, config.history.frames + 1
        self.bev_backbone: BevBackbone | Res2Fusion = (
            Res2Fusion(channels, frames, history.group_width, history.split_width)
            if frames > 1
            else BevBackbone(channels)
        )
        shallow, _, deep = self.bev_backbone.out_channels
        self.bev_neck = BevNeck(shallow, deep, config.bev.encoder_channels)
        self.proposal_head = ProposalHead(config.bev.encoder_channels, config.head, config.tasks)
        self.depth_embedding: nn.Sequential | None = None
        if config.refinement.heads:
            self.depth_embedding = nn.Sequential(
                nn.Conv2d(bins, bins, 1),
                nn.BatchNorm2d(bins),
                nn.ReLU(inplace=True),
                nn.Conv2d(bins, channels, 1),
            )
        self.refinement = PerspectiveRefinement(
            channels, config.bev.encoder_channels, config.image, config.bev, config.refinement
        )
        self.box_head = BoxHead(channels, config.head, config.tasks)

    def encode(self, images: Tensor, colors: Tensor, camera_parameters: Tensor) -> EncodedCameras:
        """Image branch of M cameras.

        Args:
            images: ``[M, 3, H, W]`` normalised; colors: ``[M, 3, H/8, W/8]`` patch colours for the CRF;
            camera_parameters: ``[M, 27]`` (:meth:`CameraGeometry.camera_parameters`).
        """
        logits, context = self.depth_net(self.neck(self.backbone(images)), camera_parameters)
        return EncodedCameras(self.crf(logits, colors), context)

    def plan(self, geometry: CameraGeometry) -> PoolPlan:
        """Which frustum point goes to which cell, for all frames of ``geometry``; in fp32 under autocast too."""
        with torch.autocast(geometry.rotation.device.type, enabled=False):
            return self.view_transform.plan(geometry)

    def lift(self, encoded: EncodedCameras, plan: PoolPlan) -> Tensor:
        """Pool into the present ego frame and pre-process: ``[G, C, Y, X]``, the plan's maps."""
        bev = self.view_transform(encoded.depth, encoded.context, plan)
        return self.pre_process(bev)

    def detect(self, bev: Tensor, present: EncodedCameras, geometry: CameraGeometry) -> HeadMaps:
        """Head maps from lifted frames.

        Args:
            bev: ``[B, F*C, Y, X]``, present first, then newest to oldest.
            present: the present frame's cameras; geometry: of the present frame (F = 1).
        """
        encoded_bev = self.bev_neck(self.bev_backbone(bev))
        heatmaps = self.proposal_head(encoded_bev)
        features = present.context
        if self.depth_embedding is not None:
            # The refinement must not shape the depth distribution: it comes in detached.
            features = features + self.depth_embedding(present.depth.detach())
        features = features.unflatten(0, (bev.shape[0], -1))
        refined = self.refinement(encoded_bev, features, geometry)
        pairs = zip(heatmaps, self.box_head(refined), strict=True)
        return HeadMaps([{"heatmap": heatmap, **regression} for heatmap, regression in pairs], present.depth)

    def forward(
        self,
        images: Tensor,
        colors: Tensor,
        geometry: CameraGeometry,
        *,
        own_parameters: Tensor | None = None,
    ) -> HeadMaps:
        """The whole window of F frames (present first, then newest to oldest).

        History frames run without gradients; in training mode their batch norms use, and update, batch
        statistics, as published.

        Args:
            images: ``[B, F, N, 3, H, W]`` normalised; colors: ``[B, F, N, 3, H/8, W/8]``.
            geometry: of all F frames.
            own_parameters: ``[B, F, N, 27]`` camera parameters of each frame's own instant: with them a history frame
                is encoded with its own colours and parameters, as in a stream; without, with those of the present
                frame, as published.
        """
        frames = images.shape[1]
        if frames != self.config.history.frames + 1:
            raise ValueError(f"the network takes {self.config.history.frames + 1} frames, got {frames}")
        present_parameters = geometry.frame(0).camera_parameters().flatten(0, 2)
        lifted: list[Tensor] = []
        for index in range(frames):
            canvas, parameters = colors[:, 0].flatten(0, 1), present_parameters
            if own_parameters is not None:
                canvas, parameters = colors[:, index].flatten(0, 1), own_parameters[:, index].flatten(0, 1)
            with torch.set_grad_enabled(torch.is_grad_enabled() and index == 0):
                encoded = self.encode(images[:, index].flatten(0, 1), canvas, parameters)
                lifted.append(self.lift(encoded, self.plan(geometry.frame(index))))
            if index == 0:
                present = encoded
        return self.detect(torch.cat(lifted, 1), present, geometry.frame(0))
