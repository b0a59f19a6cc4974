# SPDX-License-Identifier: Apache-2.0
"""The order of the samples: complete, the same for any number of ranks, and restartable."""

from __future__ import annotations

import numpy as np
import pytest

from bevnext_core.errors import DatasetError
from training.data.sampler import EpochSampler

FRAMES = np.arange(100, 123)


def epoch(sampler: EpochSampler, number: int, step: int = 0) -> list[list[int]]:
    sampler.start(number, step)
    return [[request.frames[0] for request in batch] for batch in sampler]


def test_an_epoch_holds_every_frame_and_is_filled_from_its_start() -> None:
    batches = epoch(EpochSampler(FRAMES, 4, 0, 1, seed=1), 0)
    flat = [frame for batch in batches for frame in batch]
    assert len(batches) == 6 and len(flat) == 24
    assert sorted(flat[:23]) == FRAMES.tolist() and flat[23] == flat[0]


def test_steps_hold_the_same_samples_whatever_the_number_of_ranks() -> None:
    alone = EpochSampler(FRAMES, 4, 0, 1, seed=1)
    pair = [EpochSampler(FRAMES, 2, rank, 2, seed=1) for rank in range(2)]
    for whole, first, second in zip(alone, *pair, strict=True):
        assert whole == first + second  # frames, positions and seeds: the augmentation too


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sampler = EpochSampler(FRAMES, 4, 0, 1, seed=1)
    assert epoch(sampler, 0) == epoch(sampler, 0) != epoch(sampler, 1)
    assert epoch(EpochSampler(FRAMES, 4, 0, 1, seed=2), 0) != epoch(sampler, 0)


def test_it_starts_in_mid_epoch() -> None:
    sampler = EpochSampler(FRAMES, 4, 0, 1, seed=1)
    assert epoch(sampler, 3, step=2) == epoch(sampler, 3)[2:]


def test_no_frames() -> None:
    with pytest.raises(DatasetError, match="no frame"):
        EpochSampler([], 4, 0, 1, seed=1)
