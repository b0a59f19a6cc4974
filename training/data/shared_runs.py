# SPDX-License-Identifier: Apache-2.0
"""Samples whose history is shared: runs of consecutive key frames of a scene under one augmentation.

A run of R key frames is R samples. Each one's history lies in the run itself or in the key frames before it, so
R + history frames are read and encoded where R separate samples take R * (1 + history). The price: one image
augmentation per camera and one BEV augmentation for the whole run, and samples of a step that resemble each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bevnext_core.errors import FrameError, one_line
from bevnext_core.network.camera_geometry import CameraGeometry
from training.data.dataset import Batch, TrainingDataset, join_samples
from training.data.index import DatasetIndex
from training.data.sampler import EpochSampler


@dataclass
class SharedBatch(Batch):
    """S samples that share K encoded frames of N cameras; F = 1 + history. As :class:`~training.data.dataset.Batch`,
    but for the images.

    Attributes:
        canvas: ``[K, N, H, W, 3]`` uint8 RGB, augmented: the S samples first, then the frames that are history only.
        geometry: of the windows, ``[S, F, N, ...]``, in the ego frame of slot 0.
        own: geometry of each frame at its own instant, ``[K, 1, N, ...]``.
        slots: ``[S, F]`` int64: which of the K frames stands in each slot of a sample's window, slot 0 the sample.
    """

    own: CameraGeometry = field(kw_only=True)
    slots: Tensor = field(kw_only=True)

    def present_canvas(self) -> Tensor:
        """``[S, N, H, W, 3]``: the samples' own images."""
        return self.canvas[: len(self.slots)]


def join_runs(runs: Sequence[SharedBatch]) -> SharedBatch:
    """One batch of several runs (the data loader's collate function)."""
    starts = np.cumsum([0, *(len(run.canvas) for run in runs)])
    sample = np.concatenate([np.arange(len(run.canvas)) < len(run.slots) for run in runs])
    order = torch.from_numpy(np.argsort(~sample, kind="stable"))
    slots = torch.cat([run.slots + int(start) for run, start in zip(runs, starts)])
    own = CameraGeometry.join([run.own for run in runs]).samples(order)
    joined = join_samples(runs)
    joined.canvas = joined.canvas[order]
    return SharedBatch(**vars(joined), own=own, slots=order.argsort()[slots])


class RunDataset(TrainingDataset):
    """Runs of a split's key frames. A frame without objects stays in its run: nothing is there to be found."""

    def _around(self, frame: int, length: int) -> tuple[int, ...]:
        return run_around(*scene_bounds(self.index), frame, 0, length)

    def _sample(
        self, frames: Sequence[int], rng: np.random.Generator, faults: list[tuple[str, str]]
    ) -> SharedBatch:
        index = self.index
        image_draws, bev_draw = self._draw(frames[0], rng)
        matrices = [draw.matrix() for draw in image_draws]
        place = {frame: number for number, frame in enumerate(frames)}
        canvas = [self._canvas(frame, image_draws) for frame in frames]
        unreadable = set()
        windows = np.array([self.window(frame) for frame in frames])
        for past in sorted(set(windows.flatten().tolist()) - set(place), reverse=True):
            try:
                canvas.append(self._canvas(past, image_draws))
                place[past] = len(place)
            except FrameError as error:
                faults.append((str(index.tokens[past]), one_line(error)))
                unreadable.add(past)
        # As at the start of a scene, the present stands in for what cannot be read.
        rows = np.where(np.isin(windows, list(unreadable)), windows[:, :1], windows).tolist()
        truth = [self._truth(frame, bev_draw) for frame in frames]
        return SharedBatch(
            torch.from_numpy(np.stack(canvas)),
            CameraGeometry.join([self._geometry(w[0], w, w, image_draws, bev_draw) for w in rows]),
            [boxes for boxes, _ in truth],
            [labels for _, labels in truth],
            torch.from_numpy(np.stack([self._depth(frame, matrices) for frame in frames])),
            [str(index.tokens[frame]) for frame in frames],
            own=CameraGeometry.join([self._geometry(f, [f], [f], image_draws, bev_draw) for f in place]),
            slots=torch.tensor([[place[f] for f in w] for w in rows]),
        )

    def camera_parameters(self, draws: int, seed: int) -> Tensor:
        """``[draws * N, 27]``: camera parameters as training draws them, of random frames of the split."""
        parameters = []
        for number in range(draws):
            rng = np.random.default_rng((seed, number))
            frame = int(rng.choice(self.frames))
            geometry = self._geometry(frame, [frame], [frame], *self._draw(frame, rng))
            parameters.append(geometry.camera_parameters().flatten(0, 2))
        return torch.cat(parameters)


def scene_bounds(index: DatasetIndex) -> tuple[np.ndarray, np.ndarray]:
    """For each key frame the first one of its scene and one past the last; scenes lie together in an index."""
    starts = np.flatnonzero(index.previous < 0)
    ends = np.append(starts[1:], len(index.scenes))
    lengths = ends - starts
    return np.repeat(starts, lengths), np.repeat(ends, lengths)


def run_around(
    starts: np.ndarray, ends: np.ndarray, anchor: int, before: int, length: int
) -> tuple[int, ...]:
    """A run of ``length`` key frames with ``before`` ones ahead of ``anchor``, moved so that it stays in the scene.

    A scene shorter than the run gives all of its frames.
    """
    first = int(max(min(anchor - before, ends[anchor] - length), starts[anchor]))
    return tuple(range(first, int(min(first + length, ends[anchor]))))


class RunSampler(EpochSampler):
    """Runs of one rank, step by step.

    With ``balanced`` each run is drawn for one frame of the class-balanced list, which stands at a random place of
    its run; a run of R stands for R entries of the list. Without, the scenes are cut into runs, from another first
    frame in each epoch; what is left over at one end is then covered by a run that overlaps its neighbour, or waits
    for another epoch.

    Args:
        frames: frame indices of an epoch, repeats included.
        length: R, key frames of a run.
        batch: samples per rank and step, a multiple of ``length``.
        repeat: times that the scenes are cut in an epoch; a balanced list has its repeats already.
    """

    def __init__(
        self,
        index: DatasetIndex,
        frames: Sequence[int] | np.ndarray,
        length: int,
        batch: int,
        rank: int,
        ranks: int,
        seed: int,
        balanced: bool,
        repeat: int = 1,
    ) -> None:
        super().__init__(frames, batch // length, rank, ranks, seed)
        self.starts, self.ends = scene_bounds(index)
        self.length, self.balanced = length, balanced
        self.scenes = np.tile(np.unique(self.starts[self.frames]), repeat).tolist()
        if balanced:
            self.count = -(-len(self.frames) // length)
        else:
            self.count = sum(-(-int(self.ends[first] - first) // length) for first in self.scenes)

    @property
    def samples(self) -> int:
        """Samples of an epoch, counting every run as full."""
        return self.count * self.length

    def _order(self, rng: np.random.Generator) -> list[tuple[int, ...]]:
        if not self.balanced:
            return self._cut(rng)
        anchors = self.frames[rng.permutation(len(self.frames))[: self.count]]
        before = rng.integers(self.length, size=self.count)
        return [run_around(self.starts, self.ends, int(a), int(b), self.length) for a, b in zip(anchors, before)]

    def _cut(self, rng: np.random.Generator) -> list[tuple[int, ...]]:
        runs = []
        for first in self.scenes:
            end = int(self.ends[first])
            wanted = -(-(end - first) // self.length)
            phase, later = int(rng.integers(self.length)), bool(rng.integers(2))
            anchors = list(range(first + phase, end - self.length + 1, self.length))
            missing = wanted - len(anchors)
            if missing == 1:
                at_start = phase > 0 and not (later and anchors and anchors[-1] + self.length < end)
                anchors.append(first if at_start else end - self.length)
            elif missing == 2:
                anchors += [first, end - self.length]
            runs += [run_around(self.starts, self.ends, max(a, first), 0, self.length) for a in anchors]
        return [runs[i] for i in rng.permutation(len(runs))]
