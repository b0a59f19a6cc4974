# SPDX-License-Identifier: Apache-2.0
"""Streams with a part taken away, and guesses without images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevnext_core.checkpoint import load_checkpoint, save_checkpoint
from bevnext_core.detector import Detector
from bevnext_core.export.package import ExportError
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_tools.export.onnx import export_onnx
from tests.published import build
from tests.rig import drive
from tests.training.tiny import arguments, tiny_config, tiny_dataroot
from training import ablate, train
from training.data.index import DatasetIndex, open_index
from training.run.ablations import (
    FrozenPose,
    WarpedMaps,
    WithoutHistory,
    likely_places,
    mean_places,
    warp,
)

EXTENT, SIZE = 51.2, 64


@pytest.fixture(scope="module")
def small2() -> BEVNeXt:
    return build("small2")


def planar(x: float, y: float, yaw: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:2, 3] = x, y
    return pose


def blob(x: float, y: float) -> torch.Tensor:
    """A map with a Gaussian of 2 m about (x, y); rows are y, columns x."""
    centers = (torch.arange(SIZE) + 0.5) * (2 * EXTENT / SIZE) - EXTENT
    square = (centers[None, :] - x) ** 2 + (centers[:, None] - y) ** 2
    return torch.exp(-square / 8)[None, None]


def test_a_warped_map_shows_what_stands_still_where_it_is_now() -> None:
    torch.testing.assert_close(warp(blob(9, 3), np.eye(4), EXTENT), blob(9, 3), rtol=0, atol=1e-4)
    for pose in (planar(1.6, 0, 0), planar(0, -4.8, 0), planar(3.1, -1.2, 0.4), planar(-2, 5, np.pi / 2)):
        place = invert_rigid(pose) @ [9.0, 3.0, 0.0, 1.0]
        found = warp(blob(9, 3), pose, EXTENT)
        assert float((found - blob(place[0], place[1])).abs().max()) < 0.15, "bilinear sampling flattens the peak"
        assert float((found - blob(place[1], place[0])).abs().max()) > 0.3
    assert float(warp(blob(0, 0), planar(200, 0, 0), EXTENT).abs().max()) == 0


def standing(frames: list[CameraFrame]) -> list[CameraFrame]:
    first = frames[0]
    return [
        dataclasses.replace(
            frame,
            global_from_ego=first.global_from_ego,
            global_from_camera_ego=np.broadcast_to(first.global_from_ego, (6, 4, 4)),
        )
        for frame in frames
    ]


def test_warped_maps_are_lifted_ones_while_the_vehicle_stands(small2: BEVNeXt) -> None:
    frames = drive(4)
    for moving, given in ((False, standing(frames)), (True, frames)):
        warped, lifted = WarpedMaps(small2), Detector(small2)
        for frame in given:
            one, other = warped.step_maps(frame), lifted.step_maps(frame)
        difference = (one.tasks[0]["heatmap"] - other.tasks[0]["heatmap"]).norm() / other.tasks[0]["heatmap"].norm()
        assert difference > 1e-3 if moving else difference < 1e-4


def test_a_frozen_pose_is_that_of_a_vehicle_that_stands(small2: BEVNeXt) -> None:
    frames = drive(3)
    frozen, still = FrozenPose(small2), Detector(small2)
    for frame, other in zip(frames, standing(frames), strict=True):
        found, expected = frozen.step(frame), still.step(other)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    assert found.info.history_frames == 2
    np.testing.assert_array_equal(found.global_from_ego, frames[2].global_from_ego)


def test_without_history_every_frame_is_the_first(small2: BEVNeXt) -> None:
    frames = drive(3)
    alone, fresh = WithoutHistory(small2), Detector(small2)
    for frame in frames:
        found = alone.step(frame)
    expected = fresh.step(frames[2])
    assert found.info.history_frames == 0
    np.testing.assert_array_equal(found.boxes, expected.boxes)


# ------------------------------------------------------------------------------------------------- without a block
@pytest.mark.parametrize("left_out", ["depth.crf_iterations", "refinement.heads"])
def test_a_network_without_the_block_is_trained_and_streams(left_out: str, tmp_path: Path) -> None:
    tiny_dataroot(tmp_path)
    assert train.main(arguments(tmp_path, "run", "--max-steps", "2", "--set", f"{left_out}=0", "--amp", "bf16")) == 0
    network = load_checkpoint(tmp_path / "run" / "step_2.safetensors")
    config, state = network.config, network.state_dict()
    lost = {name.split(".")[0] for name in BEVNeXt(tiny_config(tmp_path)).state_dict().keys() - state.keys()}
    assert lost == ({"crf"} if left_out.startswith("depth") else {"refinement", "depth_embedding"})
    trained = torch.load(next((tmp_path / "run").glob("*.pt")), weights_only=True)["optimizer"]["state"]
    assert len(trained) == len(list(network.parameters())), "every parameter has had a gradient"
    detector = Detector.from_checkpoint(tmp_path / "run" / "step_2_ema.safetensors", "cpu")
    for frame in drive(2):
        maps = detector.step_maps(frame)
    assert all(torch.isfinite(value).all() for task in maps.tasks for value in task.values())
    images = torch.randn(6, 3, 64, 96)
    encoded = network.eval().encode(images, torch.zeros(6, 3, 8, 12), torch.zeros(6, 27))
    if left_out.startswith("depth"):
        logits, _ = network.depth_net(network.neck(network.backbone(images)), torch.zeros(6, 27))
        torch.testing.assert_close(encoded.depth, logits.softmax(1))
    else:
        bev = torch.randn(1, 3 * config.channels, 16, 16)
        dark = dataclasses.replace(encoded, context=torch.zeros_like(encoded.context))
        one, other = (network.detect(bev, cameras, None) for cameras in (encoded, dark))  # type: ignore[arg-type]
        for name, value in one.tasks[0].items():
            torch.testing.assert_close(value, other.tasks[0][name])
        with pytest.raises(ExportError, match="has no perspective refinement"):
            export_onnx(network, tmp_path / "x.onnx")


# ------------------------------------------------------------------------------------------------- guesses
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablate")
    tiny_dataroot(folder)
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> DatasetIndex:
    return open_index(folder / "data", "v1.0-mini", folder / "cache", progress=False)


def test_mean_places(index: DatasetIndex) -> None:
    frames = np.arange(len(index))
    prior = mean_places(index, frames, 10)
    truth = [index.truth(int(frame)) for frame in frames]
    cars = np.concatenate([boxes[labels == 0] for boxes, labels in truth])
    assert prior.labels.tolist() == sorted({int(label) for _, labels in truth for label in labels})
    np.testing.assert_allclose(prior.boxes[0, :6], cars[:, :6].mean(0), rtol=1e-5)
    assert prior.scores[0] == min(1.0, len(cars) / len(frames))


def test_likely_places(index: DatasetIndex) -> None:
    frames = np.arange(len(index))
    prior = likely_places(index, frames, 10, EXTENT, 1.6)
    boxes = np.concatenate([index.truth(int(frame))[0] for frame in frames])
    assert len(prior.boxes) <= 500
    for box in prior.boxes:
        assert np.hypot(*(boxes[:, :2] - box[:2]).T).min() < 1.6 * np.sqrt(2)
    cars = prior.scores[prior.labels == 0]
    assert (np.diff(cars) <= 0).all() and cars.sum() <= 1 + 1e-6 if len(cars) else True


def test_the_command_scores_every_row(folder: Path, tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    network = BEVNeXt(tiny_config(folder))
    save_checkpoint(folder / "c.safetensors", network.state_dict(), network.config)
    data = ["--dataroot", str(folder / "data"), "--version", "v1.0-mini", "--split", "mini_train"]
    prior = ["--prior-dataroot", str(folder / "data"), "--prior-version", "v1.0-mini", "--prior-split", "mini_train"]
    out = tmp_path / "rows.json"
    command = ["--checkpoint", str(folder / "c.safetensors"), *data, *prior, "--out", str(out)]
    assert ablate.main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == [*ablate.STREAMS, *ablate.GUESSES]
    text = capsys.readouterr().out
    assert all(name in text for name in rows)
    likely = rows["no image: the likeliest places of each class"]
    assert likely["mAP"] > rows["as trained"]["mAP"], "its own frames are guessed better than by random weights"
    assert ablate.main(["--checkpoint", str(tmp_path / "none"), *data]) == 1
    assert "error:" in capsys.readouterr().err
