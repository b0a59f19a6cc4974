"""BEVNeXt: the blocks put together.

``encode`` works on one frame's cameras and depends on nothing else, so a stream encodes each frame once;
``lift`` pools an encoded frame into the present ego frame; ``detect`` turns the lifted frames into head maps.
``forward`` is the whole window, as the network is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

Source = Literal["own", "key"]
"""Whether a history frame uses something of its own instant or of the present key frame."""


@dataclass
class EncodedCameras:
    """One frame's cameras after the image branch, M = B * N.

    ``depth [M, D, h, w]`` distribution after the CRF; ``context [M, C, h, w]``; ``logits [M, D, h, w]`` before
    the CRF; ``reduced [M, mid, h, w]`` before the camera parameters come in.
    """

    depth: Tensor
    context: Tensor
    logits: Tensor
    reduced: Tensor


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
        self.depth_net = DepthNet(config.backbone.neck_channels, config.depth.mid_channels, channels, bins)
        self.crf = DepthCrf(config.depth.crf_iterations, config.depth.crf_zeta, config.depth.crf_weight)
        self.view_transform = ViewTransform(config.image, config.depth, config.bev)
        self.pre_process = pre_process_net(channels)
        frames = config.history.frames + 1
        self.bev_backbone: BevBackbone | Res2Fusion = (
            Res2Fusion(channels, frames) if frames > 1 else BevBackbone(channels)
        )
        shallow, _, deep = self.bev_backbone.out_channels
        self.bev_neck = BevNeck(shallow, deep, config.bev.encoder_channels)
        head = config.head
        self.proposal_head = ProposalHead(
            config.bev.encoder_channels, head.shared_channels, head.branch_channels, config.tasks
        )
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
        self.box_head = BoxHead(channels, head.shared_channels, head.branch_channels, config.tasks)

    def encode(self, images: Tensor, colors: Tensor, camera_parameters: Tensor) -> EncodedCameras:
        """Image branch of M cameras.

        Args:
            images: ``[M, 3, H, W]`` normalised; colors: ``[M, 3, H/8, W/8]`` patch colours for the CRF;
            camera_parameters: ``[M, 27]`` (:meth:`CameraGeometry.camera_parameters`).
        """
        reduced = self.depth_net.reduce(self.neck(self.backbone(images)))
        return self.encode_reduced(reduced, colors, camera_parameters)

    def encode_reduced(self, reduced: Tensor, colors: Tensor, camera_parameters: Tensor) -> EncodedCameras:
        """The part of :meth:`encode` that camera parameters and colours can change."""
        logits, context = self.depth_net.branches(reduced, camera_parameters)
        return EncodedCameras(self.crf(logits, colors), context, logits, reduced)

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
        regressions = self.box_head(refined)
        tasks = [
            {"heatmap": heatmap, **regression}
            for heatmap, regression in zip(heatmaps, regressions, strict=True)
        ]
        return HeadMaps(tasks, present.depth)

    def forward(
        self,
        images: Tensor,
        colors: Tensor,
        geometry: CameraGeometry,
        *,
        crf_canvas: Source = "key",
        camera_params: Source = "key",
        own_parameters: Tensor | None = None,
        with_history: bool = True,
    ) -> HeadMaps:
        """The whole window of F frames (present first, then newest to oldest).

        History frames run without gradients; in training mode their batch norms use, and update, batch
        statistics, as published.

        Args:
            images: ``[B, F, N, 3, H, W]`` normalised; colors: ``[B, F, N, 3, H/8, W/8]``.
            geometry: of all F frames.
            crf_canvas: whose colours drive a history frame's CRF; ``key`` is the published choice.
            camera_params: whose camera parameters a history frame's depth network gets; ``key`` is published.
            own_parameters: ``[B, F, N, 27]``, needed for ``camera_params="own"``: those of each frame's own instant.
            with_history: ``False`` puts zeros in place of the history's BEV maps (start of training).
        """
        frames = images.shape[1]
        if frames != self.config.history.frames + 1:
            raise ValueError(f"the network takes {self.config.history.frames + 1} frames, got {frames}")
        if camera_params == "own" and own_parameters is None:
            raise ValueError("camera_params='own' needs own_parameters")
        key_parameters = geometry.frame(0).camera_parameters().flatten(0, 2)
        lifted: list[Tensor] = []
        present: EncodedCameras | None = None
        for index in range(frames):
            if index and not with_history:
                lifted.append(torch.zeros_like(lifted[0]))
                continue
            canvas = colors[:, index if crf_canvas == "own" else 0].flatten(0, 1)
            parameters = key_parameters
            if camera_params == "own" and own_parameters is not None:
                parameters = own_parameters[:, index].flatten(0, 1)
            with torch.set_grad_enabled(torch.is_grad_enabled() and index == 0):
                encoded = self.encode(images[:, index].flatten(0, 1), canvas, parameters)
                lifted.append(self.lift(encoded, self.plan(geometry.frame(index))))
            if index == 0:
                present = encoded
        assert present is not None
        return self.detect(torch.cat(lifted, 1), present, geometry.frame(0))
