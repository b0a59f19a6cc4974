# SPDX-License-Identifier: Apache-2.0
"""Weights that meet another rig than those of training say so, in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bevnext_core.checkpoint import import_published, save_checkpoint, trained_on
from bevnext_core.detector import Detector
from bevnext_core.frame import CameraFrame
from bevnext_core.trained_on import NUSCENES, TrainedOn
from bevnext_tools.draw.cameras import draw_frame
from tests.paths import ROOT
from tests.published import build, published_state
from tests.rig import drive

DEMO = ROOT / "weights" / "demo_stage2.safetensors"
ORIGIN = TrainedOn("streets of paper", (200.0, 300.0), "bevnext_ros 0.1.0", "2026-11-28")


def with_focal_lengths(frame: CameraFrame, *focal: float) -> CameraFrame:
    intrinsics = np.array(frame.intrinsics)
    intrinsics[: len(focal), 0, 0] = intrinsics[: len(focal), 1, 1] = focal
    intrinsics[len(focal) :, 0, 0] = intrinsics[len(focal) :, 1, 1] = focal[-1]
    return replace(frame, intrinsics=intrinsics)


def test_a_checkpoint_tells_its_origin(tmp_path: Path) -> None:
    model = build("small2")
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), model.config, ORIGIN)
    assert trained_on(tmp_path / "a.safetensors") == ORIGIN
    save_checkpoint(tmp_path / "b.safetensors", model.state_dict(), model.config)
    assert trained_on(tmp_path / "b.safetensors") is None
    known, unknown = (Detector.from_checkpoint(tmp_path / f"{name}.safetensors") for name in "ab")
    assert unknown.trained_on is None and "trained" not in repr(unknown)
    assert repr(known).endswith(f"; trained on {ORIGIN})")


def test_the_demos_weights_tell_theirs() -> None:
    origin = trained_on(DEMO)
    assert origin is not None and "synthetic" in origin.data and origin.date
    assert origin.focal_lengths[1] < NUSCENES[0]


@pytest.mark.parametrize(
    ("focal", "named"),
    [((250.0,), ""), ((161.0,), ""), ((374.0,), ""), ((159.0,), "159 px"), ((250.0, 376.0, 500.0), "500 px")],
)
def test_only_a_rig_that_is_far_away_is_doubted(focal: tuple[float, ...], named: str) -> None:
    doubt = ORIGIN.doubt(with_focal_lengths(drive(1)[0], *focal))
    assert named in doubt if named else not doubt
    assert "\n" not in doubt


def test_cameras_without_an_image_are_not_asked() -> None:
    frame = with_focal_lengths(drive(1)[0], 1000.0, 250.0)
    assert frame.cameras[0] in ORIGIN.doubt(frame)
    masked = replace(frame, images=(None, *frame.images[1:]), valid=np.array([False] + [True] * 5))
    assert not ORIGIN.doubt(masked)


def test_a_detector_says_it_once_and_each_frame_carries_it(
    tmp_path: Path, said: Callable[[str], list[str]]
) -> None:
    model = build("small2")
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), model.config, ORIGIN)
    detector, lines = Detector.from_checkpoint(tmp_path / "a.safetensors"), said("bevnext_core.detector")
    near, far = (with_focal_lengths(drive(1)[0], focal) for focal in (250.0, 1000.0))
    assert detector.step(near).info.doubt == ""
    first, second = detector.step(far), detector.step(far)
    assert first.info.doubt == second.info.doubt != ""
    assert lines == [first.info.doubt] and "trained on streets of paper" in lines[0]
    plain = draw_frame(far, replace(first, info=replace(first.info, doubt="")).above(0.99))
    assert (draw_frame(far, first.above(0.99)) != plain).any()


def test_published_weights_were_trained_on_nuscenes(tmp_path: Path) -> None:
    model = build("small2")
    torch.save({"state_dict": published_state(model, "small2")}, tmp_path / "p.pth")
    import_published(tmp_path / "p.pth", tmp_path / "o.safetensors", model.config)
    origin = trained_on(tmp_path / "o.safetensors")
    assert origin is not None and origin.focal_lengths == NUSCENES
    assert str(origin) == "nuScenes v1.0-trainval, train; focal lengths 797 to 1273 px"
