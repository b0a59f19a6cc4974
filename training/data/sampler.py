# SPDX-License-Identifier: Apache-2.0
"""Which samples a rank sees, in which order: a pure function of seed, epoch and step, so it can start anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bevnext_core.errors import DatasetError
from training.data.dataset import SampleRequest


class EpochSampler:
    """Batches of one rank (a batch sampler for the data loader).

    The epoch's order is cut into global batches, and each of these into the ranks' parts, so the same samples
    make up step k whatever the number of ranks, as long as the global batch is the same. The last global batch
    is filled from the start of the order.

    Args:
        frames: frame indices of an epoch, repeats included (after CBGS).
        batch: requests per rank and step.
    """

    def __init__(self, frames: Sequence[int] | np.ndarray, batch: int, rank: int, ranks: int, seed: int) -> None:
        self.frames = np.asarray(frames, np.int64)
        if not len(self.frames):
            raise DatasetError("no frame is left to train on")
        self.batch, self.rank, self.ranks, self.seed = batch, rank, ranks, seed
        self.count = len(self.frames)
        """Requests of an epoch."""
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return -(-self.count // (self.batch * self.ranks))

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return self.count

    def start(self, epoch: int, step: int = 0) -> None:
        """The next iteration gives ``epoch`` from ``step`` on."""
        self.epoch, self.first_step = epoch, step

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        epoch = self.epoch
        order = self._order(np.random.default_rng((self.seed, epoch)))
        size = self.batch * self.ranks
        for step in range(self.first_step, len(self)):
            first = step * size + self.rank * self.batch
            yield [
                SampleRequest(order[p % len(order)], self.seed, epoch, p) for p in range(first, first + self.batch)
            ]

    def _order(self, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """The frames of all requests of an epoch."""
        return [(frame,) for frame in self.frames[rng.permutation(self.count)].tolist()]
