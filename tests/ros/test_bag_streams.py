# SPDX-License-Identifier: Apache-2.0
"""Other people's recordings, with foreign transforms, bad calibrations, namespaces: what is used, and what is said."""

from __future__ import annotations

import numpy as np
import pytest

from bevnext_ros.bags.writer import BagError
from tests.ros.recorded import INFO, SECOND, START, Recorded, drive, frames, transform, write_bag

MS = 1_000_000


def recorded(tf: Recorded, at: int) -> Recorded:
    tf.stamp_ns = at
    return tf


def two_publishers():
    for i in range(250):
        at = START - SECOND + i * 10 * MS
        yield transform(at, "base_link", "wheel")
        yield recorded(transform(at - 2 * SECOND, "base_link", "wheel"), at + 5 * MS)


def one_late_message():
    yield transform(START, "base_link", "wheel")
    yield recorded(transform(START - 2 * SECOND, "base_link", "wheel"), START + SECOND + MS)


def two_clocks():
    for i in range(40):
        at = START + i * SECOND // 20
        yield recorded(transform(at + i % 2 * 10**8 * SECOND, "map2", "marker"), at)


def a_second_odometry(behind: int, every: int = 1):
    for i in range(0, 60, every):
        at = START - SECOND + i * SECOND // 20 + 7 * MS
        yield recorded(transform(at - behind, "odom", "base_link", 50.0), at)


def a_moving_mast_of_two_publishers():
    """An edge that one camera needs, said again 3 s late."""
    for i in range(70):
        at = START - SECOND + i * SECOND // 20
        yield transform(at, "base_link", "mast")
        yield recorded(transform(at - 3 * SECOND, "base_link", "mast"), at + 9 * MS)


@pytest.mark.parametrize(
    "others",
    [
        two_publishers,
        one_late_message,
        two_clocks,
        lambda: a_second_odometry(3 * SECOND),
        lambda: a_second_odometry(-(10**8) * SECOND),
        lambda: a_second_odometry(10**8 * SECOND, 7),
        a_moving_mast_of_two_publishers,
    ],
)
def test_transforms_of_another_time_change_nothing(tmp_path, others):
    expected, _ = frames(write_bag(tmp_path / "plain", drive()))
    found, summary = frames(write_bag(tmp_path / "bag", [*drive(), *others()]))
    assert len(found) == 4 and not any(posed.reset_reason for posed in found) and not summary.drops
    for posed, plain in zip(found, expected, strict=True):
        np.testing.assert_array_equal(posed.global_from_camera_ego, plain.global_from_camera_ego)
        np.testing.assert_array_equal(posed.ego_from_camera, plain.ego_from_camera)


def changed(tmp_path, change, **options):
    """Frames of a recording whose camera infos were changed by ``change(message, number)``."""
    messages = drive()
    for number, item in enumerate(item for item in messages if item.kind == INFO):
        change(item.message, number)
    return frames(write_bag(tmp_path / "bag", messages), **options)


def radtan(message, number):
    message.distortion_model, message.d = "radtan", np.array([0.1, 0.01, 0, 0])


def eight(message, number):
    message.d = np.array([0.1, 0.01, 0, 0, 0.001, 0, 0, 0])


def nan(message, number):
    message.d = np.full(5, np.nan)


def zero_k(message, number):
    message.k = np.zeros(9)


def outside(message, number):
    message.roi.x_offset, message.roi.width, message.roi.height = 80, 100, 90


def binned(message, number):
    message.binning_x = 500


def distorted(message, number):
    message.d = np.array([0.1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "change, options, words",
    [
        (radtan, {}, "'radtan' with 4 coefficients"),
        (eight, {}, "'plumb_bob' with 8 coefficients"),
        (nan, {}, "NaN"),
        (zero_k, {}, "K is singular"),
        (outside, {}, "region of interest 100x90 at (80, 0)"),
        (binned, {}, "binning 500x1"),
        (distorted, {"distortion": "refuse"}, "set the parameter distortion to 'rectify'"),
    ],
)
def test_why_a_camera_info_was_refused_is_said(tmp_path, change, options, words):
    found, summary = changed(tmp_path, change, **options)
    assert not found and summary.drops == {"no_camera_info": 4}
    assert any(words in line and "cam_front:" in line for line in summary.warnings), summary.warnings
    assert not any("no camera info has come" in line for line in summary.warnings)


@pytest.mark.parametrize("change", [zero_k, nan, radtan])
def test_with_rectified_images_only_p_matters(tmp_path, change):
    found, summary = changed(tmp_path, change, distortion="rectified")
    assert len(found) == 4 and not summary.warnings


def jitter(message, number):
    message.k = message.k * (1 + 1e-13 * number)


def through_float32(message, number):
    message.k = (message.k / 3).astype(np.float32).astype(float) * 3 if number % 2 else message.k


def jitter_of_d(message, number):
    message.d = np.array([0.1, 0.01, 0, 0, 0]) * (1 + 1e-12 * number)


@pytest.mark.parametrize("change", [jitter, through_float32, jitter_of_d])
def test_a_calibration_that_differs_by_rounding_resets_nothing(tmp_path, change):
    found, summary = changed(tmp_path, change)
    assert [posed.reset_reason for posed in found] == [""] * 4 and not summary.warnings


def test_a_calibration_that_changes_is_said(tmp_path):
    messages = drive()
    for number, item in enumerate(m for m in messages if m.topic == "/cam_back/camera_info"):
        item.message.k[[0, 4]] *= 1 + number / 10
    found, summary = frames(write_bag(tmp_path / "bag", messages))
    assert len(found) == 4
    assert summary.warnings == ["the past was forgotten 3 times: the calibration of cam_back changed"]


def test_a_frame_that_is_lost_hands_its_reset_on(tmp_path):
    messages = drive()
    infos = [m for m in messages if m.topic == "/cam_back/camera_info"]
    for item in infos[2:]:
        item.message.k[[0, 4]] *= 1.1
    images = [m for m in messages if m.topic == "/cam_back/image_raw/compressed"]
    images[2].message.data = images[2].message.data[:100]
    found, summary = frames(write_bag(tmp_path / "bag", messages))
    assert summary.drops == {"bad_image": 1}
    assert [posed.reset_reason for posed in found] == ["", "", "the calibration of cam_back changed"]


ROBOT = {
    "image_topics": ["/robot1/{camera}/image_raw/compressed"],
    "camera_info_topics": ["/robot1/{camera}/camera_info"],
}
TOPICS = {"tf_topic": "/robot1/tf", "tf_static_topic": "robot1/tf_static"}


def of_robot(name: str) -> list[Recorded]:
    messages = drive()
    for item in messages:
        item.topic = f"/{name}{item.topic}"
    return messages


@pytest.mark.parametrize("options", [TOPICS, {}])
def test_a_robot_with_a_namespace(tmp_path, options):
    found, summary = frames(write_bag(tmp_path / "bag", of_robot("robot1")), **ROBOT, **options)
    assert len(found) == 4
    assert summary.warnings == ([] if options else [
        "there is no /tf: transforms are taken from /robot1/tf (tf_topic)",
        "there is no /tf_static: transforms are taken from /robot1/tf_static (tf_static_topic)",
    ])  # fmt: skip


def test_two_robots_need_to_be_told_apart(tmp_path):
    bag = write_bag(tmp_path / "bag", [*of_robot("robot1"), *of_robot("robot2")])
    with pytest.raises(BagError, match=r"no topic /tf: .*set tf_topic to one of /robot1/tf, /robot2/tf"):
        frames(bag, **ROBOT)
    assert len(frames(bag, **ROBOT, **TOPICS)[0]) == 4


def test_two_parents_of_one_frame_are_named(tmp_path):
    gps = [transform(START - SECOND + i * SECOND // 20 + MS, "gps", "base_link") for i in range(70)]
    found, summary = frames(write_bag(tmp_path / "bag", [*drive(), *gps]))
    assert len(found) < 4
    assert any("'base_link' has two parents, 'gps' and 'odom'" in line for line in summary.warnings)


def test_a_missing_mount_is_named(tmp_path):
    messages = [m for m in drive() if m.topic != "/tf_static" or m.message.transforms[0].child_frame_id != "cam_back"]
    found, summary = frames(write_bag(tmp_path / "bag", messages))
    assert not found and any("no transform names 'cam_back'" in line for line in summary.warnings)


def test_a_missing_camera_is_named_with_its_topic(tmp_path):
    messages = [m for m in drive() if m.topic != "/cam_back/image_raw/compressed" or m.stamp_ns > START + SECOND]
    found, summary = frames(write_bag(tmp_path / "bag", messages))
    assert len(found) < 4 and any("cam_back (cam_back/image_raw/compressed)" in line for line in summary.warnings)
