# SPDX-License-Identifier: Apache-2.0
"""Samples that are encoded already: for training the BEV half alone, with an image branch that stays as it is.

Every frame's depth distribution and context are computed once, from its own images, colours and camera parameters and
without augmentation, as a stream does; a sample reads those of its window and lifts them with its own poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bevnext_core.errors import FrameError, one_line
from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from training.data.dataset import Batch, TrainingDataset, join_samples
from training.data.store import FrameStore, canvas_key, digest

IMAGE_BRANCH = ("backbone", "neck", "depth_net", "crf")
"""The parts of the network that :meth:`~bevnext_core.network.bevnext.BEVNeXt.encode` runs."""


@dataclass
class EncodedBatch(Batch):
    """B samples of F frames of N cameras, without images and lidar (``canvas`` and ``depth`` are empty).

    Attributes:
        kept_depth: ``[B, F, N, D, h, w]`` fp16, the distribution; kept_context: ``[B, F, N, C, h, w]`` fp16.
    """

    kept_depth: Tensor = field(kw_only=True)
    kept_context: Tensor = field(kw_only=True)

    def frame(self, index: int) -> EncodedCameras:
        """The cameras of one frame of all samples."""
        return EncodedCameras(*(kept[:, index].flatten(0, 1).float() for kept in (self.kept_depth, self.kept_context)))


def join_encoded(samples: Sequence[EncodedBatch]) -> EncodedBatch:
    """One batch from batches of one sample (the data loader's collate function)."""
    kept = {name: torch.cat([getattr(s, name) for s in samples]) for name in ("kept_depth", "kept_context")}
    return EncodedBatch(**vars(join_samples(samples)), **kept)


class EncodedDataset(TrainingDataset):
    """Samples of a split whose frames :meth:`encode_all` has encoded."""

    store: FrameStore

    @torch.no_grad()
    def encode_all(self, network: BEVNeXt, folder: str, rank: int = 0, ranks: int = 1, progress: bool = True,
                   ) -> tuple[int, list[tuple[str, str]]]:
        """Encode what is not in ``folder`` yet of this rank's frames, with the weights that ``network`` has.

        Returns:
            How many frames it was, and (token, reason) of those that cannot be read.
        """
        config, device = self.config, next(network.parameters()).device
        parts = {name: getattr(network, name) for name in IMAGE_BRANCH}
        weights = [value.cpu().numpy() for part in parts.values() for value in part.state_dict().values()]
        key = digest([canvas_key(self.index, config, self.frames), *weights, vars(config.depth)])
        cells = len(config.cameras), *config.image.feature_size
        fields = {"depth": ("<f2", (cells[0], config.depth.bins, *cells[1:])),
                  "context": ("<f2", (cells[0], config.channels, *cells[1:]))}
        self.store = FrameStore(folder, "encodings", key, len(self.index), fields)
        missing = [int(frame) for frame in self.frames[rank::ranks] if self.store.read(int(frame)) is None]
        training, faults = [part for part in parts.values() if part.training], []
        for part in training:
            part.eval()
        for frame in tqdm(missing, desc="encodings", unit="frame", disable=not progress):
            try:
                canvas, own = self.alone(frame)
            except FrameError as error:
                faults.append((str(self.index.tokens[frame]), one_line(error)))
                continue
            canvas, parameters = canvas.to(device), own.to(device).camera_parameters().flatten(0, 2)
            encoded = network.encode(normalize(canvas).flatten(0, 1), canvas_colors(canvas).flatten(0, 1), parameters)
            self.store.write(frame, depth=encoded.depth.cpu().numpy(), context=encoded.context.cpu().numpy())
        for part in training:
            part.train()
        return len(missing) - len(faults), faults

    def _sample(
        self, frames: Sequence[int], rng: np.random.Generator, faults: list[tuple[str, str]]
    ) -> EncodedBatch | None:
        index, (frame,) = self.index, frames
        if not len(index.truth(frame)[0]):
            return None
        image_draws, bev_draw = self._draw(frame, rng)
        kept = {past: self.store.read(past) for past in set(self.window(frame))}
        if kept[frame] is None:
            raise FrameError("the frame has no encoding: it could not be read")
        # As at the start of a scene, the present stands in for what could not be read.
        window = [frame if kept[past] is None else past for past in self.window(frame)]
        boxes, labels = self._truth(frame, bev_draw)
        nothing = torch.empty(1, 0)
        return EncodedBatch(
            nothing,
            self._geometry(frame, window, window, image_draws, bev_draw),
            [boxes],
            [labels],
            nothing,
            [str(index.tokens[frame])],
            kept_depth=torch.from_numpy(np.stack([kept[past]["depth"] for past in window]))[None],
            kept_context=torch.from_numpy(np.stack([kept[past]["context"] for past in window]))[None],
        )
