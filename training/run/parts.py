# SPDX-License-Identifier: Apache-2.0
"""Training a part of the network alone (``training.part``): the image branch, or the BEV half on kept encodings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bevnext_core.config import TrainingConfig
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from training.data.dataset import Batch, TrainingDataset, join_samples
from training.data.encodings import IMAGE_BRANCH, EncodedBatch, EncodedDataset, join_encoded
from training.data.shared_runs import RunDataset, join_runs
from training.run.shared_forward import SharedForward
from training.run.training_forward import TrainingForward


class ImagesForward(TrainingForward):
    """The image branch of the present frame and what is said of it: depth and, with a weight, the patches' classes."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        present, canvas = batch.geometry.frame(0), batch.present_canvas()
        images, colors = normalize(canvas).flatten(0, 1), canvas_colors(canvas).flatten(0, 1)
        encoded = self.network.encode(images, colors, present.camera_parameters().flatten(0, 2))
        with torch.autocast(encoded.depth.device.type, enabled=False):
            return self.depth_losses(encoded.depth, batch) | self.patch_losses(encoded.context, batch)


class EncodedForward(TrainingForward):
    """The BEV half on kept encodings; history is lifted again, without gradients, as :class:`TrainingForward` does."""

    def forward(self, batch: EncodedBatch) -> dict[str, Tensor]:  # type: ignore[override]
        network, geometry = self.network, batch.geometry
        encoded, present = batch.frame(0), geometry.frame(0)
        lifted = [network.lift(encoded, network.plan(present))]
        with torch.no_grad():
            for index in range(1, geometry.rotation.shape[1]):
                lifted.append(network.lift(batch.frame(index), network.plan(geometry.frame(index))))
        return self.losses(network.detect(torch.cat(lifted, 1), encoded, present), batch, encoded.context)

    def depth_losses(self, depth: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {}

    def patch_losses(self, context: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {}


def kinds(training: TrainingConfig) -> tuple[type[TrainingDataset], Callable[..., Any], type[TrainingForward]]:
    """The samples, what joins them to a batch, and the step's forward pass."""
    if training.shared_run:
        return RunDataset, join_runs, SharedForward
    if training.part == "bev":
        return EncodedDataset, join_encoded, EncodedForward
    return TrainingDataset, join_samples, ImagesForward if training.part == "images" else TrainingForward


def freeze(network: BEVNeXt) -> None:
    """Only what ``training.part`` names learns: the rest takes no gradient, and the optimiser does not know it."""
    part = network.config.training.part
    for name, child in network.named_children():
        child.requires_grad_(part == "all" or (name in IMAGE_BRANCH) == (part == "images"))


def frozen_state(network: BEVNeXt) -> dict[str, Tensor]:
    """The entries that do not learn, bit by bit as they were (an average of equal values is rounded)."""
    learning = {name.partition(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in network.state_dict().items() if name.partition(".")[0] not in learning}
