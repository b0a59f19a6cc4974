# SPDX-License-Identifier: Apache-2.0
"""Learning real data by heart, in short: docs/training.md has the whole experiment, on all five frames."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.paths import ROOT
from training import evaluate, train
from training.data.dataset import Batch, SampleRequest, TrainingDataset
from training.data.sampler import EpochSampler

MAXIMUM = 0.4943
"""mAP of perfect boxes on the frame, from the sample's README: only five of the ten classes are there."""
STEPS = 80
SETTINGS = {
    "image.height": 64,
    "image.width": 192,
    "channels": 16,
    "head.shared_channels": 16,
    "head.branch_channels": 16,
    "bev.encoder_channels": 16,
    "training.epochs": 1,
    "training.global_batch": 2,
    "training.learning_rate": 1.5e-2,
    "training.optimizer": "muon",
    "training.decay": "cosine",
    "training.warmup_iterations": 10,
    "training.ema_decay": 0.95,
    "training.ema_ramp": 40,
    "training.channels_last": True,
}


class EveryFrameEachStep(EpochSampler):
    """All frames in every step: two frames in random pairs would have the norms see one of them alone."""

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        for step in range(self.first_step, len(self)):
            first = step * self.batch
            frames = self.frames[: self.batch]
            yield [SampleRequest((int(f),), self.seed, self.epoch, first + i) for i, f in enumerate(frames)]


@pytest.mark.sample
@pytest.mark.slow
def test_two_real_frames_are_learned_by_heart_from_their_images(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame with lidar and one of another scene, then the official score of the first.

    At least half of the maximum with its own images, and next to nothing with those of the other frame: what was
    learned hangs on the pictures.
    """
    plain = TrainingDataset._sample

    @functools.cache  # without augmentation a sample is always the same, and decoding it takes as long as a step
    def cached(data: TrainingDataset, frames: tuple[int, ...]) -> Batch | None:
        return plain(data, frames, np.random.default_rng(0), [])

    def two_frames(data: TrainingDataset, seed: int) -> torch.Tensor:
        first = [int(np.flatnonzero(data.index.scenes == scene)[0]) for scene in ("scene-0061", "scene-0103")]
        return torch.tensor(first).repeat(STEPS)

    monkeypatch.setattr(TrainingDataset, "_sample", lambda data, frames, *_: Batch(**vars(cached(data, frames))))
    monkeypatch.setattr(train, "draw_frames", two_frames)
    monkeypatch.setattr(train, "EpochSampler", EveryFrameEachStep)
    data = ["--dataroot", str(sample), "--version", "v1.0-mini", "--device", "cpu"]
    options = ["--stage", "1", "--config", str(ROOT / "training/overfit_sample.yaml"), *data, "--from-scratch"]
    options += ["--index-dir", str(tmp_path), "--scenes", "scene-0061", "scene-0103", "--batch", "2", "--workers", "0"]
    options += ["--work-dir", str(tmp_path / "run"), "--log-every", "5", "--set"]
    assert train.main([*options, *(f"{name}={value}" for name, value in SETTINGS.items())]) == 0
    with (tmp_path / "run" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, last = ({name: float(row[name]) for name in ("heat", "box", "depth")} for row in (rows[0], rows[-1]))
    assert last["heat"] < 2.0 and last["box"] < 1.0
    assert 0 < last["depth"] < 0.5 * first["depth"]

    found = {}
    for control in ([], ["--shuffle-images"]):
        out = tmp_path / f"results{len(control)}"
        score = ["--checkpoint", str(tmp_path / "run" / "epoch_1_ema.safetensors"), *data, "--split", "mini_train"]
        assert evaluate.main([*score, "--out", str(out), *control]) == 0
        found[bool(control)] = json.loads((out / "results.json").read_text())["mean_ap"]
    assert found[False] > 0.5 * MAXIMUM
    assert found[True] < 0.05
