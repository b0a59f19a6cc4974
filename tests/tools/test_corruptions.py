# SPDX-License-Identifier: Apache-2.0
"""Spoilt images: the same ones in every run, worse with every severity, and cameras that are gone are masked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevnext_core.checkpoint import save_checkpoint
from bevnext_core.detector import Detector
from bevnext_core.errors import BevnextError, FrameError
from bevnext_core.frame import CameraFrame
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_tools.cli.main import main
from bevnext_tools.evaluation.corruptions import IMAGES, NAMES, Corruption
from tests.rig import drive


@pytest.fixture(scope="module")
def frame() -> CameraFrame:
    return drive(1)[0]


def difference(a: CameraFrame, b: CameraFrame) -> float:
    return float(np.mean([np.abs(x.astype(float) - y) for x, y in zip(a.images, b.images, strict=True)]))  # type: ignore


@pytest.mark.parametrize("name", IMAGES)
def test_every_severity_is_worse_and_the_same_each_time(name: str, frame: CameraFrame) -> None:
    before = [np.array(image) for image in frame.images]
    spoilt = [Corruption(name, severity).apply(frame, "scene") for severity in (1, 2, 3)]
    errors = [difference(frame, other) for other in spoilt]
    assert 1 < errors[0] < 0.9 * errors[1] < 0.81 * errors[2], errors
    assert difference(Corruption(name, 2).apply(frame, "scene"), spoilt[1]) == 0
    for image, own in zip(spoilt[2].images, before, strict=True):
        assert image is not None and image.dtype == np.uint8 and image.shape == own.shape
    assert all(np.array_equal(a, b) for a, b in zip(frame.images, before, strict=True)), "the frame stays as it was"
    assert spoilt[2].valid.all() and spoilt[2].token == frame.token


def test_cameras_and_frames_are_spoilt_in_their_own_ways(frame: CameraFrame) -> None:
    grey = dataclasses.replace(frame, images=(np.full((224, 352, 3), 90, np.uint8),) * 6)
    for name in ("snow", "fog", "darkness"):
        here, there = (Corruption(name, 2).apply(dataclasses.replace(grey, token=t), "scene") for t in ("a", "b"))
        assert difference(here, there) > 0
        assert not np.array_equal(here.images[0], here.images[1])  # type: ignore[arg-type]


def lost(corruption: Corruption, frame: CameraFrame, scene: str = "scene") -> set[str]:
    spoilt = corruption.apply(frame, scene)
    gone = {camera for camera, image in zip(spoilt.cameras, spoilt.images, strict=True) if image is None}
    assert gone == {camera for camera, valid in zip(spoilt.cameras, spoilt.valid, strict=True) if not valid}
    return gone


def test_a_crash_takes_the_same_cameras_of_a_whole_scene() -> None:
    frames = drive(3)
    few, more, most = (lost(Corruption("camera-crash", severity), frames[0]) for severity in (1, 2, 3))
    assert [len(few), len(more), len(most)] == [2, 4, 5] and few < more < most
    assert all(lost(Corruption("camera-crash", 1), frame) == few for frame in frames)
    assert len({frozenset(lost(Corruption("camera-crash", 1), frames[0], f"scene-{n}")) for n in range(9)}) > 2


def test_lost_images_are_others_in_every_frame() -> None:
    frames = drive(12)
    gone = [[lost(Corruption("frame-lost", severity), frame) for frame in frames] for severity in (1, 2, 3)]
    assert all(a <= b <= c for a, b, c in zip(*gone, strict=True))
    shares = [np.mean([len(cameras) / 6 for cameras in one]) for one in gone]
    assert shares == pytest.approx([2 / 6, 4 / 6, 5 / 6], abs=0.15)
    assert len({frozenset(cameras) for cameras in gone[0]}) > 4


def test_a_frame_that_lacks_images_is_skipped_where_that_is_the_policy() -> None:
    with pytest.raises(FrameError, match=r"CAM_\w+, CAM_\w+: the image is lost \(camera-crash:1, skip\)"):
        Corruption("camera-crash", 1, "skip").apply(drive(1)[0], "scene")


def test_the_detector_goes_on_with_the_cameras_that_are_left(tmp_path: Path) -> None:
    from tests.training.tiny import tiny_config

    torch.manual_seed(0)
    detector = Detector(BEVNeXt(tiny_config(tmp_path)))
    frames = [Corruption("frame-lost", 3).apply(frame, "scene") for frame in drive(6)]
    assert min(int(frame.valid.sum()) for frame in frames) == 0, "one of them has no image at all"
    for frame in frames:
        detector.step(frame)
        detector.window([frame])


@pytest.mark.parametrize("text", ["hail:1", "fog", "fog:4", "fog:0", "fog:x", ":1"])
def test_what_is_not_known_is_one_line(text: str) -> None:
    with pytest.raises(BevnextError, match="expected NAME:SEVERITY") as caught:
        Corruption.parse(text)
    assert all(name in str(caught.value) for name in NAMES) and "\n" not in str(caught.value)


def test_the_score_says_what_was_spoilt(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    from tests.training.tiny import tiny_config, tiny_dataroot

    data = tiny_dataroot(tmp_path)
    torch.manual_seed(0)
    network = BEVNeXt(tiny_config(tmp_path))
    save_checkpoint(tmp_path / "c.safetensors", network.state_dict(), network.config)
    command = ["evaluate", "--checkpoint", str(tmp_path / "c.safetensors"), "--dataroot", str(data), "--device", "cpu"]
    command += ["--split", "mini_train", "--out", str(tmp_path / "out.json")]
    assert main([*command, "--corrupt", "fog:2"]) == 0
    assert "fp32, fog:2" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["inference"]["corruption"] == "fog:2"
    assert main([*command, "--corrupt", "camera-crash:1", "--missing-camera", "skip"]) == 0
    assert "8 of 8 frames have no boxes" in capsys.readouterr().err
    assert main([*command, "--corrupt", "hail:1"]) == 2
    assert capsys.readouterr().err.startswith("bevnext: error: --corrupt hail:1: expected NAME:SEVERITY")
    assert main([*command, "--corrupt", "fog:1", "--shuffle-images"]) == 2
