# SPDX-License-Identifier: Apache-2.0
"""A few minutes of training on six key frames of a synthetic drive find their objects; broken training does not.

    BEVNEXT_BREAK=all .venv/bin/python -m pytest tests/training/test_learning.py

breaks the training in five ways too, one at a time, and shows that the bars notice each.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")

from bevnext_core.checkpoint import save_checkpoint
from bevnext_core.config import ModelConfig, load_config
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.detector import Detector
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from bevnext_tools.evaluation.inference import detect_scenes
from bevnext_tools.evaluation.metric import evaluate
from bevnext_tools.evaluation.submission import make_submission
from bevnext_world.recording.generate import Order, generate
from bevnext_world.recording.splits import scene_names
from training import train
from training.data.dataset import SampleRequest, TrainingDataset
from training.data.index import open_index
from training.data.shared_runs import RunDataset, SharedBatch
from training.losses.targets import DetectionTargets, detection_targets
from training.run import training_forward

SPLIT, SEED, FRAMES = "mini_train", 9, 6
"""A drive in which the ego does 34 m in these 2.5 s."""
(SCENE,) = scene_names(SPLIT, 1)
CONFIG = """
name: learning
channels: 16
image: {height: 64, width: 192}
backbone: {base_channels: 8, neck_channels: 32}
depth: {min: 1.0, max: 60.0, step: 2.0, mid_channels: 16, crf_iterations: 3}
bev: {extent: 51.2, cell: 1.6, z_min: -5.0, z_max: 3.0, encoder_channels: 16}
history: {frames: 2, interval: 0.5}
refinement: {heads: 4, height_anchors: 4, feedforward_ratio: 2}
head: {shared_channels: 16, branch_channels: 16}
training: {stage: 2, epochs: 1, global_batch: 6, learning_rate: 1.5e-2, warmup_iterations: 10, velocity_weight: 1.0,
           sync_bn_epoch: null, backbone_init: none, ema_decay: 0.95, ema_ramp: 40, ema_start: 0, head_scale: 0.02,
           perspective_weight: 1, augmentation: false, class_balanced: false, channels_last: true,
           optimizer: muon, decay: cosine, shared_run: 6, repeat: 90}
"""
BARS = {
    "mAP": (0.3, np.inf),
    "mATE": (0.0, 0.8),
    "mAOE": (0.0, 0.3),
    "depth": (0.0, 2.0),
    "poses": (0.0, 1e-3),
    "read-out": (0.0, 1.5),
}
"""Range of each result. ``poses`` is how far the cameras that training lifted from are from the stream's, metres (six
frames can be told apart whatever their past looks like: the mAP falls with wrong poses, but not enough). ``read-out``:
by what factor the loss on the patches' classes grows where another run goes on from the weights."""
BREAKAGES = {
    "nothing": (),
    "sign of the sub-cell offsets": ("mAP", "mATE"),
    "order of the BEV axes": ("mAP",),
    "weight of the depth loss": ("depth",),
    "poses of the history": ("poses",),
    "read-out of the patches' classes": ("read-out",),
}
"""What is broken, and the bars of which at least one must notice."""


def change_targets(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    def changed(boxes: Any, labels: Any, config: ModelConfig) -> DetectionTargets:
        return change(detection_targets(boxes, labels, config), config)

    monkeypatch.setattr(training_forward, "detection_targets", changed)


def break_training(what: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Break one thing in training only, as a slip would; returns options to add."""
    if what == "sign of the sub-cell offsets":
        signs = torch.tensor([-1.0, -1, 1, 1, 1, 1, 1, 1, 1, 1])
        change_targets(monkeypatch, lambda t, _: dataclasses.replace(t, values=t.values * signs))
    elif what == "order of the BEV axes":
        change_targets(
            monkeypatch,
            lambda t, config: dataclasses.replace(
                t,
                heatmaps=t.heatmaps.transpose(2, 3).contiguous(),
                cell=t.cell % config.bev.size * config.bev.size + t.cell // config.bev.size,
            ),
        )
    elif what == "weight of the depth loss":
        return ["--set", "training.depth_loss_weight=0"]
    elif what == "poses of the history":
        true = TrainingDataset._geometry

        def standing(data: TrainingDataset, present: int, window: Any, *rest: Any) -> Any:
            return true(data, present, [present] * len(window), *rest)

        monkeypatch.setattr(TrainingDataset, "_geometry", standing)
    elif what == "read-out of the patches' classes":
        monkeypatch.setattr(train, "load_read_out", lambda *_: "begins anew")
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learning")
    generate(Order(folder / "data", SPLIT, SEED, 1, (400, 225), False, FRAMES), 1)
    (folder / "learning.yaml").write_text(CONFIG)
    return folder


def results(folder: Path, checkpoint: Path) -> dict[str, float]:
    """The numbers of :data:`BARS` for a network but for the poses, boxes by the official metric and in a stream."""
    reader = NuScenesReader(folder / "data", "v1.0-mini", split=SPLIT)
    detector = Detector.from_checkpoint(checkpoint, "cpu")
    found = detect_scenes(detector, reader, reader.scenes, "streaming")[0]
    score = evaluate(reader.tables, make_submission(found, reader.sample_tokens()), SPLIT)
    return {
        "mAP": score.mean_ap,
        "mATE": float(score.summary["tp_errors"]["trans_err"]),
        "mAOE": float(score.summary["tp_errors"]["orient_err"]),
        "depth": depth_error(folder, checkpoint),
    }


def pose_error(folder: Path, checkpoint: Path) -> float:
    """Largest distance between a camera of a window as training has it now, and as the stream lifts from it."""
    detector = Detector.from_checkpoint(checkpoint)
    index = open_index(folder / "data", "v1.0-mini", folder / "index", progress=False)
    data = RunDataset(index, detector.config, [SCENE])
    training = data[SampleRequest(tuple(range(FRAMES)), 0, 0, 0)].geometry.translation.numpy()
    reader = NuScenesReader(folder / "data", "v1.0-mini", split=SPLIT)
    worst = 0.0
    for frame, expected in zip(reader.frames(SCENE), training, strict=True):
        lifted = detector.step(frame).info.ego_from_cameras
        assert lifted is not None
        worst = max(worst, float(np.linalg.norm(lifted[:, :, :3, 3] - expected, axis=-1).max()))
    return worst


def depth_error(folder: Path, checkpoint: Path) -> float:
    """Median difference of the expected depth from the lidar's, metres."""
    detector = Detector.from_checkpoint(checkpoint)
    config = detector.config
    index = open_index(folder / "data", "v1.0-mini", folder / "index", progress=False)
    data = TrainingDataset(index, config, [SCENE])
    bins = torch.tensor(config.depth.values).view(1, -1, 1, 1)
    differences = []
    for frame in range(FRAMES):
        sample = data[SampleRequest((frame,), 0, 0, 0)]
        present = sample.present_canvas()
        parameters = sample.geometry.frame(0).camera_parameters().flatten(0, 2)
        with torch.no_grad():
            encoded = detector.model.encode(
                normalize(present).flatten(0, 1), canvas_colors(present).flatten(0, 1), parameters
            )
        true = sample.depth.flatten(0, 1)
        known = (true >= config.depth.min) & (true < config.depth.max)
        differences.append(((encoded.depth * bins).sum(1) - true)[known].abs())
    return float(torch.cat(differences).median())


def patch_losses(run: Path) -> list[float]:
    """The losses on the patches' classes that a run has logged."""
    with (run / "curves.csv").open() as file:
        return [float(row["perspective"]) for row in csv.DictReader(file)]


def noticed(found: dict[str, float]) -> list[str]:
    """The bars that are missed."""
    return [name for name, (low, high) in BARS.items() if not low <= found[name] <= high]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # what is learned may depend on the order of sums
@pytest.mark.parametrize("broken", BREAKAGES if os.environ.get("BEVNEXT_BREAK") else ["nothing"])
def test_training_finds_the_objects(
    broken: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--stage", "2", "--config", str(folder / "learning.yaml"), "--dataroot", str(folder / "data")]
    options += ["--version", "v1.0-mini", "--scenes", SCENE, "--index-dir", str(folder / "index")]
    options += ["--batch", str(FRAMES), "--workers", "0", "--device", "cpu"]
    plain = RunDataset._sample

    @functools.cache  # without augmentation a run is always the same
    def cached(data: RunDataset, frames: tuple[int, ...]) -> SharedBatch:
        return plain(data, frames, np.random.default_rng(0), [])

    with monkeypatch.context() as patch:
        more = break_training(broken, patch)
        patch.setattr(RunDataset, "_sample", lambda data, frames, *_: SharedBatch(**vars(cached(data, frames))))
        assert train.main([*options, "--from-scratch", "--work-dir", str(tmp_path / "run"), *more]) == 0
        again = ["--fine-tune", str(tmp_path / "run" / "epoch_1.safetensors"), "--max-steps", "1"]
        again += ["--work-dir", str(tmp_path / "again"), *more, "--set", "training.head_scale=1"]
        assert train.main([*options, *again]) == 0
        learned = tmp_path / "run" / "epoch_1_ema.safetensors"
        poses = pose_error(folder, learned)
    read_out = patch_losses(tmp_path / "again")[0] / patch_losses(tmp_path / "run")[-1]
    found = results(folder, learned) | {"poses": poses, "read-out": read_out}
    print({name: round(value, 4) for name, value in found.items()})
    missed = noticed(found)
    if broken == "nothing":
        assert not missed, found
    else:
        assert set(missed) & set(BREAKAGES[broken]), found


@pytest.mark.usefixtures("one_thread")
def test_a_network_that_learned_nothing_finds_nothing(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = load_config(folder / "learning.yaml")
    save_checkpoint(tmp_path / "random.safetensors", BEVNeXt(config).state_dict(), config)
    found = results(folder, tmp_path / "random.safetensors") | {"poses": 0.0, "read-out": 1.0}
    assert found["mAP"] < 0.02
    assert {"mAP", "depth"} <= set(noticed(found))
