# SPDX-License-Identifier: Apache-2.0
"""The data loader of training: batches made in worker processes, and errors that arrive as they were raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bevnext_core.errors import BevnextError


def make_loader(
    data: Dataset, sampler: Any, join: Callable[[Sequence[Any]], Any], workers: int, pin_memory: bool
) -> DataLoader:
    """A loader for :func:`batches_of`.

    Args:
        sampler: gives the requests of each batch.
        join: makes one batch of samples.
    """
    return DataLoader(
        _ErrorsAsValues(data),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=partial(_join, join),
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # or it would draw from the random state that dropout uses
    )


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """The batches of an epoch. Raises what the data set raised for one of its samples."""
    for batch in loader:
        if isinstance(batch, BevnextError):
            raise batch
        yield batch


class _ErrorsAsValues(Dataset):
    """Returns an error of this project in place of the sample: a raised one would come out of a worker process with
    that process's traceback as its message."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.data[request]
        except BevnextError as error:
            return error


def _join(join: Callable[[Sequence[Any]], Any], samples: Sequence[Any]) -> Any:
    return next((sample for sample in samples if isinstance(sample, BevnextError)), None) or join(samples)
