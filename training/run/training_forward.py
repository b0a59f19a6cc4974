# SPDX-License-Identifier: Apache-2.0
"""The training step's forward pass: a batch in, losses out. What DDP wraps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevnext_core.checkpoint import TRAINING_ONLY
from bevnext_core.network.bevnext import BEVNeXt, HeadMaps
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from training.data.dataset import Batch
from training.losses.depth_targets import depth_loss
from training.losses.detection import MeanOverRanks, detection_losses, same
from training.losses.perspective_targets import PerspectiveLoss
from training.losses.targets import detection_targets


class TrainingForward(nn.Module):
    """Network and losses.

    History frames never keep activations: no gradient flows into them. As published they are encoded one at a time,
    each batch norm with the statistics of that frame, and updated by it.

    Args:
        mean_over_ranks: averages the loss normalisers over the ranks.
    """

    def __init__(self, network: BEVNeXt, mean_over_ranks: MeanOverRanks = same) -> None:
        super().__init__()
        self.network = network
        self.mean_over_ranks = mean_over_ranks
        weight = network.config.training.perspective_weight
        has_images = network.config.training.part != "bev"
        self.perspective = PerspectiveLoss(network.config, weight) if weight and has_images else None
        self.maps: HeadMaps | None = None
        """Head maps of the latest forward, detached, for pictures."""

    def beside_the_network(self) -> dict[str, Tensor]:
        """What a checkpoint carries for later training beside the network: the read-out of the patches' classes."""
        state = self.perspective.state_dict() if self.perspective is not None else {}
        return {TRAINING_ONLY + name: value for name, value in state.items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by published name: ``loss_depth``, ``task0.loss_xy``, ...; the total is their plain sum.

        Args:
            batch: on the network's device.
        """
        network, geometry = self.network, batch.geometry
        images, present = normalize(batch.canvas), geometry.frame(0)
        # The published recipe gives the present frame's colours and camera parameters to every frame.
        shared = canvas_colors(batch.canvas[:, 0]).flatten(0, 1), present.camera_parameters().flatten(0, 2)
        encoded = network.encode(images[:, 0].flatten(0, 1), *shared)
        lifted = [network.lift(encoded, network.plan(present))]
        with torch.no_grad():
            for index in range(1, images.shape[1]):
                past = network.encode(images[:, index].flatten(0, 1), *shared)
                lifted.append(network.lift(past, network.plan(geometry.frame(index))))
        return self.losses(network.detect(torch.cat(lifted, 1), encoded, present), batch, encoded.context)

    def losses(self, maps: HeadMaps, batch: Batch, context: Tensor) -> dict[str, Tensor]:
        """All losses of the head maps and of the present frame's ``context [B*N, C, h, w]``."""
        config = self.network.config
        targets = detection_targets(batch.boxes, batch.labels, config)
        with torch.autocast(maps.depth.device.type, enabled=False):
            losses = self.depth_losses(maps.depth, batch)
            losses |= detection_losses(maps.tasks, targets, config, self.mean_over_ranks)
            losses |= self.patch_losses(context, batch)
        self.maps = HeadMaps([{k: v.detach() for k, v in task.items()} for task in maps.tasks], maps.depth.detach())
        return losses

    def depth_losses(self, depth: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss of the present frame's depth distribution."""
        config = self.network.config
        weight = config.training.depth_loss_weight
        return {"loss_depth": depth_loss(depth, batch.depth.flatten(0, 1), config.depth, weight)}

    def patch_losses(self, context: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss of the patches' classes, where it has a weight."""
        if self.perspective is None:
            return {}
        present = batch.geometry.frame(0)
        return {"loss_perspective": self.perspective(context, batch.boxes, batch.labels, present)}
