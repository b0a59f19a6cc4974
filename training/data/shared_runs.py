"""Samples whose history is shared: runs of consecutive key frames of a scene under one augmentation.

A run of R key frames is R samples. Each one's history lies in the run itself or in the key frames before it, so
R + history frames are read and encoded where R separate samples take R * (1 + history). The price: one image
augmentation per camera and one BEV augmentation for the whole run, and samples of a step that resemble each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bevnext_core.errors import ConfigError, DatasetError, FrameError, one_line
from bevnext_core.network.camera_geometry import CameraGeometry
from training.data.dataset import SUBSTITUTES, TrainingDataset
from training.data.index import DatasetIndex


@dataclass(frozen=True)
class RunRequest:
    """One run of an epoch: its key frames, oldest first, and what seeds its random choices."""

    frames: tuple[int, ...]
    seed: int
    epoch: int
    position: int


@dataclass
class SharedBatch:
    """S samples that share K encoded frames of N cameras; F = 1 + history.

    Attributes:
        canvas: ``[K, N, H, W, 3]`` uint8 RGB, augmented: the S samples first, then the frames that are history only.
        own: geometry of each frame at its own instant, ``[K, 1, N, ...]``.
        slots: ``[S, F]`` int64: which of the K frames stands in each slot of a sample's window, slot 0 the sample.
        geometry: of the windows, ``[S, F, N, ...]``, in the ego frame of slot 0.
        boxes, labels, depth, tokens, faults: as :class:`~training.data.dataset.Batch`, of the samples.
    """

    canvas: Tensor
    own: CameraGeometry
    slots: Tensor
    geometry: CameraGeometry
    boxes: list[Tensor]
    labels: list[Tensor]
    depth: Tensor
    tokens: list[str]
    faults: list[tuple[str, str]] = field(default_factory=list)

    def present_canvas(self) -> Tensor:
        """``[S, N, H, W, 3]``: the samples' own images."""
        return self.canvas[: len(self.slots)]

    def to(self, device: torch.device | str) -> SharedBatch:
        move = lambda tensor: tensor.to(device, non_blocking=True)  # noqa: E731
        return SharedBatch(
            move(self.canvas),
            self.own.to(device),
            move(self.slots),
            self.geometry.to(device),
            [move(b) for b in self.boxes],
            [move(x) for x in self.labels],
            move(self.depth),
            self.tokens,
            self.faults,
        )

    def pin_memory(self) -> SharedBatch:
        """Called by the data loader: the large tensors in page-locked memory."""
        self.canvas, self.depth = self.canvas.pin_memory(), self.depth.pin_memory()
        return self


def join_runs(runs: Sequence[SharedBatch]) -> SharedBatch:
    """One batch of several runs (the data loader's collate function)."""
    samples, extra = 0, sum(len(run.slots) for run in runs)
    slots = []
    for run in runs:
        count = len(run.slots)
        slots.append(torch.where(run.slots < count, run.slots + samples, run.slots - count + extra))
        samples, extra = samples + count, extra + len(run.canvas) - count

    def samples_first(tensors: list[Tensor]) -> Tensor:
        counts = [len(run.slots) for run in runs]
        parts = list(zip(tensors, counts, strict=True))
        return torch.cat([t[:count] for t, count in parts] + [t[count:] for t, count in parts])

    own = {name: samples_first([getattr(run.own, name) for run in runs]) for name in vars(runs[0].own)}
    geometry = {
        name: torch.cat([getattr(run.geometry, name) for run in runs]) for name in vars(runs[0].geometry)
    }
    return SharedBatch(
        samples_first([run.canvas for run in runs]),
        CameraGeometry(**own),
        torch.cat(slots),
        CameraGeometry(**geometry),
        [boxes for run in runs for boxes in run.boxes],
        [labels for run in runs for labels in run.labels],
        torch.cat([run.depth for run in runs]),
        [token for run in runs for token in run.tokens],
        [fault for run in runs for fault in run.faults],
    )


class RunDataset(TrainingDataset):
    """Runs of a split's key frames. A frame without objects stays in its run: nothing is there to be found."""

    def __getitem__(self, request: RunRequest) -> SharedBatch:  # type: ignore[override]
        """The run of a request; another one of the same length when a frame of it cannot be read (see ``faults``).

        Raises:
            DatasetError: :data:`~training.data.dataset.SUBSTITUTES` runs in a row cannot be used.
        """
        faults: list[tuple[str, str]] = []
        frames = request.frames
        for attempt in range(SUBSTITUTES):
            rng = np.random.default_rng((request.seed, request.epoch, request.position, attempt))
            if attempt:
                anchor = int(rng.choice(self.frames))
                frames = run_around(*scene_bounds(self.index), anchor, 0, len(request.frames))
            try:
                run = self._run(frames, rng, faults)
            except (FrameError, DatasetError) as error:
                faults.append((str(self.index.tokens[frames[0]]), f"in the run from here: {one_line(error)}"))
                continue
            run.faults = faults
            return run
        listing = "; ".join(f"{token}: {reason}" for token, reason in faults[:5])
        raise DatasetError(f"{SUBSTITUTES} runs in a row could not be used; {listing}")

    def _run(
        self, frames: Sequence[int], rng: np.random.Generator, faults: list[tuple[str, str]]
    ) -> SharedBatch:
        index, slot_count = self.index, self.config.history.frames + 1
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
        windows = np.where(np.isin(windows, list(unreadable)), windows[:, :1], windows)
        geometries = [self._geometry(w[0], w, w, image_draws, bev_draw) for w in windows.tolist()]
        own = [self._geometry(frame, [frame], [frame], image_draws, bev_draw) for frame in place]
        truth = [self._truth(frame, bev_draw) for frame in frames]
        return SharedBatch(
            torch.from_numpy(np.stack(canvas)),
            _stack(own),
            torch.tensor([[place[f] for f in w] for w in windows.tolist()]).view(len(frames), slot_count),
            _stack(geometries),
            [boxes for boxes, _ in truth],
            [labels for _, labels in truth],
            torch.from_numpy(np.stack([self._depth(frame, matrices) for frame in frames])),
            [str(index.tokens[frame]) for frame in frames],
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


def _stack(geometries: list[CameraGeometry]) -> CameraGeometry:
    return CameraGeometry(
        **{name: torch.cat([getattr(g, name) for g in geometries]) for name in vars(geometries[0])}
    )


def scene_bounds(index: DatasetIndex) -> tuple[np.ndarray, np.ndarray]:
    """For each key frame the first one of its scene and one past the last; scenes lie together in an index."""
    starts = np.flatnonzero(np.concatenate([[True], index.scenes[1:] != index.scenes[:-1]]))
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


class RunSampler:
    """Runs of one rank, step by step: a pure function of seed, epoch and step, like
    :class:`~training.data.sampler.EpochSampler`.

    With ``balanced`` each run is drawn for one frame of the class-balanced list, which stands at a random place of
    its run; a run of R stands for R entries of the list. Without, the scenes are cut into runs, from another first
    frame in each epoch; what is left over at one end is then covered by a run that overlaps its neighbour, or waits
    for another epoch.

    Args:
        frames: frame indices of an epoch, repeats included.
        length: R, key frames of a run.
        batch: samples per rank and step, a multiple of ``length``.

    Raises:
        ConfigError: ``batch`` is no multiple of ``length``.
        DatasetError: no frames.
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
        if length < 1 or batch % length:
            raise ConfigError(
                f"a step takes whole runs: --batch {batch} is no multiple of --shared-run {length}; "
                f"take --batch {max(1, -(-batch // max(length, 1))) * max(length, 1)}"
            )
        self.frames = np.asarray(frames, np.int64)
        if not len(self.frames):
            raise DatasetError("no frame is left to train on")
        self.starts, self.ends = scene_bounds(index)
        self.length, self.runs_per_step = length, batch // length
        self.rank, self.ranks, self.seed = rank, ranks, seed
        self.balanced, self.repeat = balanced, repeat
        self.scenes = np.unique(self.starts[self.frames])
        if balanced:
            self.runs = -(-len(self.frames) // length)
        else:
            self.runs = repeat * sum(-(-int(self.ends[first] - first) // length) for first in self.scenes)
        self.epoch = 0
        self.first_step = 0

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return -(-self.runs // (self.runs_per_step * self.ranks))

    @property
    def samples(self) -> int:
        """Samples of an epoch, counting every run as full."""
        return self.runs * self.length

    def start(self, epoch: int, step: int = 0) -> None:
        """The next iteration gives ``epoch`` from ``step`` on."""
        self.epoch, self.first_step = epoch, step

    def __iter__(self) -> Iterator[list[RunRequest]]:
        epoch = self.epoch
        rng = np.random.default_rng((self.seed, epoch))
        runs = self._drawn(rng) if self.balanced else self._cut(rng)
        assert len(runs) == self.runs
        size = self.runs_per_step * self.ranks
        for step in range(self.first_step, len(self)):
            first = step * size + self.rank * self.runs_per_step
            yield [
                RunRequest(runs[p % len(runs)], self.seed, epoch, p)
                for p in range(first, first + self.runs_per_step)
            ]

    def _drawn(self, rng: np.random.Generator) -> list[tuple[int, ...]]:
        anchors = self.frames[rng.permutation(len(self.frames))[: self.runs]]
        before = rng.integers(self.length, size=self.runs)
        return [
            run_around(self.starts, self.ends, int(a), int(b), self.length) for a, b in zip(anchors, before)
        ]

    def _cut(self, rng: np.random.Generator) -> list[tuple[int, ...]]:
        runs = []
        for first in np.tile(self.scenes, self.repeat).tolist():
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
