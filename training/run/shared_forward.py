# SPDX-License-Identifier: Apache-2.0
"""The training step over shared runs: every frame is encoded once, and lifted into the window of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from training.data.shared_runs import RunDataset, SharedBatch
from training.run.batch_statistics import BatchStatistics, evaluating
from training.run.training_forward import TrainingForward

PARAMETER_DRAWS = 512


class SharedForward(TrainingForward):
    """Network and losses over :class:`~training.data.shared_runs.SharedBatch`.

    The samples' frames are encoded together, with gradients. As history of later samples their depth and context
    are used again, detached; the frames before the runs are encoded once without gradients. Every past frame has
    its own colours and camera parameters, as in a stream.

    Batch norms take their statistics from the samples' frames, in one batch; the frames before them, and the BEV
    maps of all past frames, are normalised with these same statistics, and the running ones are updated once. The
    norm of the camera parameters keeps its running statistics (:func:`measure_parameters`): a run has one BEV
    augmentation, so in a batch of few runs its variance is far too small.
    """

    def forward(self, batch: SharedBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Scalars by published name, as :meth:`TrainingForward.forward`."""
        network, geometry = self.network, batch.geometry
        (samples, slots), (frames, cameras) = batch.slots.shape, batch.canvas.shape[:2]
        images = normalize(batch.canvas).flatten(0, 1)
        colors = canvas_colors(batch.canvas).flatten(0, 1)
        parameters = batch.own.camera_parameters().flatten(0, 2)
        here, before = slice(samples * cameras), slice(samples * cameras, None)
        present = geometry.frame(0)
        parts = (network.backbone, network.neck, network.depth_net, network.pre_process)
        with evaluating([network.depth_net.parameter_norm]), BatchStatistics(parts) as statistics:
            encoded = network.encode(images[here], colors[here], parameters[here])
            lifted = [network.lift(encoded, network.plan(present))]
            with torch.no_grad(), statistics.applied():
                depth, context = encoded.depth.detach(), encoded.context.detach()
                if frames > samples:
                    past = network.encode(images[before], colors[before], parameters[before])
                    depth, context = torch.cat([depth, past.depth]), torch.cat([context, past.context])
                depth, context = depth.unflatten(0, (frames, -1)), context.unflatten(0, (frames, -1))
                for slot in range(1, slots):
                    index = batch.slots[:, slot]
                    chosen = EncodedCameras(depth[index].flatten(0, 1), context[index].flatten(0, 1))
                    lifted.append(network.lift(chosen, network.plan(geometry.frame(slot))))
        return self.losses(network.detect(torch.cat(lifted, 1), encoded, present), batch, encoded.context)


@torch.no_grad()
def measure_parameters(network: BEVNeXt, data: RunDataset, seed: int) -> str:
    """Give the norm of the camera parameters the statistics of :data:`PARAMETER_DRAWS` training draws.

    Returns:
        A line for the log.
    """
    drawn = data.camera_parameters(PARAMETER_DRAWS, seed).double()
    norm = network.depth_net.parameter_norm
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(drawn.mean(0))
    norm.running_var.copy_(drawn.var(0))
    return f"the norm of the camera parameters keeps the statistics of {PARAMETER_DRAWS} draws"
