# SPDX-License-Identifier: Apache-2.0
"""Splits and seeds of the synthetic world.

Scenes carry the names of an official split, so that the devkit knows to which split they belong. What a scene
looks like follows from (split, seed, number of the scene) alone, and the split's code is part of the entropy: a
scene of one split never occurs in another, whatever the seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bevnext_core.datasets.nuscenes_tables import split_scenes
from bevnext_core.errors import DatasetError

WORLD_VERSION = 1
"""Raised when the same seed gives another world."""


class Split(NamedTuple):
    """Version of the tables that hold a split, and what sets its scenes apart from all others."""

    version: str
    code: int


SPLITS = {
    "train": Split("v1.0-trainval", 1),
    "val": Split("v1.0-trainval", 2),
    "test": Split("v1.0-test", 3),
    "mini_train": Split("v1.0-mini", 4),
    "mini_val": Split("v1.0-mini", 5),
}

TRAINING = ("train", 0)
VALIDATION = ("val", 0)
FINAL = ("test", 0)
"""(split, seed) of the published demo: trained on, looked at during development, used once for the last number."""


def scene_names(split: str, count: int) -> tuple[str, ...]:
    """Official names of the first ``count`` scenes of a split.

    Raises:
        DatasetError: an unknown split, or one with fewer scenes.
    """
    if split not in SPLITS:
        raise DatasetError(f"unknown split '{split}': there are {', '.join(SPLITS)}")
    names = split_scenes(split)
    if not 1 <= count <= len(names):
        raise DatasetError(f"the split '{split}' has 1 to {len(names)} scenes, not {count}")
    return names[:count]


def scene_seed(split: str, seed: int, number: int) -> np.random.SeedSequence:
    """What everything in scene ``number`` (from 0) of a split is drawn from."""
    return np.random.SeedSequence([WORLD_VERSION, SPLITS[split].code, seed, number])
