# SPDX-License-Identifier: Apache-2.0
"""A camera frame refuses what cannot be used, and says which camera and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bevnext_core.errors import FrameError
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import rigid
from bevnext_core.streaming.calibration_watch import CalibrationWatch

CAMERAS = ("CAM_LEFT", "CAM_RIGHT")


def arguments() -> dict[str, Any]:
    return {
        "cameras": CAMERAS,
        "images": tuple(np.zeros((90, 160, 3), np.uint8) for _ in CAMERAS),
        "intrinsics": np.stack([np.array([[126.0, 0, 80], [0, 126.0, 45], [0, 0, 1]])] * 2),
        "ego_from_camera": np.stack([rigid([0.5, -0.5, 0.5, -0.5], [1.5, 0.5, 1.5])] * 2),
        "global_from_camera_ego": np.stack([rigid([1, 0, 0, 0], [i, 0, 0]) for i in range(2)]),
        "global_from_ego": rigid([1, 0, 0, 0], [0.5, 0, 0]),
        "stamp_ns": 10**18,
        "image_sizes": np.array([(160, 90)] * 2),
    }


def test_good_frame_gets_its_defaults() -> None:
    frame = CameraFrame(**arguments())
    assert frame.valid is not None and frame.valid.all()
    assert frame.camera_stamps_ns is not None and frame.camera_stamps_ns.tolist() == [10**18] * 2
    expected = arguments()["global_from_camera_ego"][1] @ arguments()["ego_from_camera"][1]
    np.testing.assert_allclose(frame.global_from_camera[1], expected)


def changed(name: str, index: Any, value: Any) -> dict[str, Any]:
    values = arguments()
    values[name] = np.array(values[name], np.float64)
    values[name][index] = value
    return values


BAD_CAMERA = {
    "singular intrinsics, focal length": (changed("intrinsics", (1, 0, 0), 0.0), "intrinsics are singular"),
    "singular intrinsics, last row": (changed("intrinsics", (1, 2), 0.0), "intrinsics are singular"),
    "negative focal length": (changed("intrinsics", (1, 1, 1), -126.0), "intrinsics are singular"),
    "NaN intrinsics": (changed("intrinsics", (1, 0, 2), np.nan), "intrinsics hold NaN or infinity"),
    "NaN calibration": (
        changed("ego_from_camera", (1, 0, 3), np.nan),
        r"calibration \(ego_from_camera\) cannot be used: it holds NaN",
    ),
    "infinite pose": (
        changed("global_from_camera_ego", (1, 2, 3), np.inf),
        "ego pose at its stamp cannot be used: it holds NaN or infinity",
    ),
    "scaled pose": (changed("global_from_camera_ego", (1, 0, 0), 1.1), "is no rotation"),
    "mirrored pose": (changed("global_from_camera_ego", (1, 0, 0), -1.0), "is no rotation"),
    "last row of a pose": (changed("global_from_camera_ego", (1, 3, 0), 0.1), "last row"),
}


@pytest.mark.parametrize("case", BAD_CAMERA)
def test_bad_camera_is_named_with_its_fault(case: str) -> None:
    values, message = BAD_CAMERA[case]
    with pytest.raises(FrameError, match=f"^CAM_RIGHT: .*{message}"):
        CameraFrame(**values)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "the image is missing"),
        (np.zeros((90, 161, 3), np.uint8), "the image is 161x90, but its calibration is for 160x90"),
        (np.zeros((90, 160), np.uint8), r"the image is uint8\[90, 160\]"),
        (np.zeros((90, 160, 3), np.float32), "the image is float32"),
        (np.zeros((0, 160, 3), np.uint8), r"the image is uint8\[0, 160, 3\]"),
    ],
)
def test_bad_image_is_named(image: np.ndarray | None, message: str) -> None:
    values = arguments()
    values["images"] = (values["images"][0], image)
    with pytest.raises(FrameError, match=f"^CAM_RIGHT: {message}"):
        CameraFrame(**values)


def test_camera_that_is_not_valid_may_lack_everything() -> None:
    values = changed("intrinsics", 1, np.nan)
    values["images"] = (values["images"][0], None)
    frame = CameraFrame(**values, valid=np.array([True, False]))
    assert frame.images[1] is None


def test_a_camera_that_was_masked_at_first_has_not_changed_when_it_is_there() -> None:
    """What stands in for its calibration says nothing of it; from its first image on it is watched."""
    other = changed("intrinsics", (1, 0, 0), 250.0)
    masked = CameraFrame(**changed("intrinsics", 1, np.eye(3)), valid=np.array([True, False]))
    watch = CalibrationWatch()
    for frame, change in ((masked, ""), (CameraFrame(**arguments()), ""), (masked, ""), (CameraFrame(**other), "1")):
        assert watch.change(frame) == (change and "intrinsics of CAM_RIGHT changed")
        watch.note(frame)


@pytest.mark.parametrize("value", [np.nan, 1.1])
def test_bad_anchor_pose_is_named_with_its_stamp(value: float) -> None:
    with pytest.raises(FrameError, match=f"the ego pose at {10**18} ns cannot be used"):
        CameraFrame(**changed("global_from_ego", (0, 0), value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("intrinsics", np.eye(3)[None]),
        ("ego_from_camera", np.eye(4)[None]),
        ("global_from_camera_ego", np.eye(4)),
        ("global_from_ego", np.eye(3)),
        ("images", (np.zeros((90, 160, 3), np.uint8),)),
        ("valid", [True]),
        ("camera_stamps_ns", [1, 2, 3]),
    ],
)
def test_missing_camera_entry_is_named(name: str, value: Any) -> None:
    with pytest.raises(FrameError, match=name):
        CameraFrame(**{**arguments(), name: value})
