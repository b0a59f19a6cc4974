# SPDX-License-Identifier: Apache-2.0
"""Class-balanced grouping and sampling (CBGS): frames with rare classes come more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def balanced_frames(classes_of_frame: Sequence[Sequence[int]], class_count: int, seed: int) -> np.ndarray:
    """Indices of frames, resampled so that every class gets about the same share of the draws.

    Published rule: with n_c frames that hold class c and N the sum of all n_c, each class contributes
    ``int(N / class_count)`` draws with replacement, more precisely ``int(n_c * (1 / class_count) / (n_c / N))``.
    Drawn once per training run. Frames without any object are never drawn.

    Args:
        classes_of_frame: labels present in each frame (repeats do not matter).

    Returns:
        ``[K]`` int64 indices, grouped by class; the sampler shuffles them every epoch.
    """
    frames: list[list[int]] = [[] for _ in range(class_count)]
    for index, labels in enumerate(classes_of_frame):
        for label in sorted(set(labels)):
            frames[label].append(index)
    total = sum(len(members) for members in frames)
    rng = np.random.default_rng(seed)
    drawn = [np.zeros(0, np.int64)]
    for members in frames:
        if members:
            ratio = (1.0 / class_count) / (len(members) / total)
            drawn.append(rng.choice(np.array(members, np.int64), int(len(members) * ratio)))
    return np.concatenate(drawn)
