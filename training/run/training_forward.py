"""The training step's forward pass: a batch in, losses out. What DDP wraps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras, HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from training.data.dataset import Batch
from training.data.shared_runs import SharedBatch
from training.losses.depth_targets import depth_loss
from training.losses.detection import MeanOverRanks, detection_losses, same
from training.losses.perspective_targets import PerspectiveLoss
from training.losses.targets import detection_targets
from training.run.batch_statistics import BatchStatistics, evaluating


@dataclass(frozen=True)
class ForwardOptions:
    """How the history frames are encoded in training. They never keep activations: no gradient flows into them.

    Attributes:
        history: ``sequential``, the published recipe: one frame at a time, each batch norm with the statistics of
            that frame, and updated by it. The other two change the recipe: ``batched``, every norm has one set of
            statistics, over all frames of the window, the present one included, and is updated once; ``frozen``,
            all history frames in one batch with the running statistics, which only the present frame updates.
        history_precision: of the history's convolutions; ``fp32`` as published.
        perspective_weight: of the loss of :mod:`~training.losses.perspective_targets`; 0, as published: none.
    """

    history: Literal["sequential", "batched", "frozen"] = "sequential"
    history_precision: Literal["fp32", "bf16"] = "fp32"
    perspective_weight: float = 0.0


class TrainingForward(nn.Module):
    """Network and losses.

    Args:
        mean_over_ranks: averages the loss normalisers over the ranks.
    """

    def __init__(
        self, network: BEVNeXt, options: ForwardOptions | None = None, mean_over_ranks: MeanOverRanks = same
    ) -> None:
        super().__init__()
        self.network = network
        self.options = options or ForwardOptions()
        self.mean_over_ranks = mean_over_ranks
        weight = self.options.perspective_weight
        self.perspective = PerspectiveLoss(network.config, weight) if weight else None
        self.maps: HeadMaps | None = None
        """Head maps of the latest forward, detached, for pictures."""

    def forward(self, batch: Batch, with_history: bool = True) -> dict[str, Tensor]:
        """Scalars by published name: ``loss_depth``, ``task0.loss_xy``, ...; the total is their plain sum.

        Args:
            batch: on the network's device.
            with_history: ``False`` puts zeros in place of the history's BEV maps.
        """
        frames = batch.canvas.shape[1] if with_history else 1
        images = normalize(batch.canvas[:, :frames])
        # The published recipe gives the present frame's colours to every frame's CRF.
        colors = canvas_colors(batch.canvas[:, 0])
        maps, encoded = self._window(images, colors, batch.geometry, with_history)
        return self._losses(maps, batch, encoded.context)

    def _losses(
        self, maps: HeadMaps, batch: Batch | SharedBatch, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        config = self.network.config
        targets = detection_targets(batch.boxes, batch.labels, config)
        with torch.autocast(maps.depth.device.type, enabled=False):
            losses = {
                "loss_depth": depth_loss(
                    maps.depth, batch.depth.flatten(0, 1), config.depth, config.training.depth_loss_weight
                )
            }
            losses |= detection_losses(maps.tasks, targets, config, self.mean_over_ranks)
            if self.perspective is not None and context is not None:
                present = batch.geometry.frame(0)
                losses["loss_perspective"] = self.perspective(context, batch.boxes, batch.labels, present)
        self.maps = HeadMaps([{k: v.detach() for k, v in task.items()} for task in maps.tasks], maps.depth.detach())
        return losses

    def _window(
        self, images: Tensor, colors: Tensor, geometry: CameraGeometry, with_history: bool
    ) -> tuple[HeadMaps, EncodedCameras]:
        """``images [B, F, N, 3, H, W]``, ``colors [B, N, 3, h, w]``; geometry of all frames."""
        network, options = self.network, self.options
        frames = network.config.history.frames + 1
        present = geometry.frame(0)
        parameters = present.camera_parameters().flatten(0, 2)
        past: list[Tensor] = []
        # Under ``batched`` a first pass without gradients over all frames gives the statistics and the history; the
        # present frame then runs again, alone, with gradients.
        statistics = BatchStatistics((network.backbone, network.depth_net, network.pre_process))
        batched = with_history and options.history == "batched" and frames > 1
        with statistics if batched else nullcontext():
            if batched:
                whole = self._past(images, colors, geometry, parameters)
                past = [whole.unflatten(1, (frames, -1))[:, 1:].flatten(1, 2)]
            with statistics.joint() if batched else nullcontext():
                encoded = network.encode(images[:, 0].flatten(0, 1), colors.flatten(0, 1), parameters)
                key = network.lift(encoded, network.plan(present))
        if not with_history:
            past = [torch.zeros_like(key)] * (frames - 1)
        elif options.history == "sequential":
            for index in range(1, frames):
                past.append(self._past(images[:, index : index + 1], colors, geometry.frame(index), parameters))
        elif options.history == "frozen" and frames > 1:
            with evaluating([module for module in network.modules() if isinstance(module, _BatchNorm)]):
                rest = CameraGeometry.cat([geometry.frame(index) for index in range(1, frames)])
                past = [self._past(images[:, 1:], colors, rest, parameters)]
        return network.detect(torch.cat([key, *past], 1), encoded, present), encoded

    @torch.no_grad()
    def _past(self, images: Tensor, colors: Tensor, geometry: CameraGeometry, parameters: Tensor) -> Tensor:
        """F frames in one batch, without gradients: ``[B, F*C, Y, X]``."""
        network = self.network
        batch, frames, cameras = images.shape[:3]
        colors = colors[:, None].expand(-1, frames, -1, -1, -1, -1).flatten(0, 2)
        parameters = parameters.unflatten(0, (batch, 1, cameras)).expand(-1, frames, -1, -1).flatten(0, 2)
        low = self.options.history_precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16) if low else nullcontext():
            encoded = network.encode(images.flatten(0, 2), colors, parameters)
            bev = network.lift(encoded, network.plan(geometry))
        return bev.float().unflatten(0, (batch, frames)).flatten(1, 2)
