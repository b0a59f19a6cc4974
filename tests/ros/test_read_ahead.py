# SPDX-License-Identifier: Apache-2.0
"""A recording is known as a whole: what was recorded after the images that need it loses no frame."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest

from bevnext_core.classes import CAMERAS
from tests.ros.recorded import INFO, SECOND, START, Recorded, drive, frames, transform, write_bag

STEP = SECOND // 2


def used(tmp_path, messages, **options):
    """Stamps of the frames in half seconds from the first, the reasons of resets, drops."""
    found, summary = frames(write_bag(tmp_path / "bag", messages), **options)
    stamps = [(posed.assembled.stamp_ns - START) // STEP for posed in found]
    return stamps, [posed.reset_reason for posed in found if posed.reset_reason], summary.drops


def later(messages: list[Recorded], by_ns: int, *topics: str) -> list[Recorded]:
    """The messages whose topic ends so, recorded later."""
    for item in messages:
        if item.topic.endswith(topics):
            item.stamp_ns += by_ns
    return messages


def test_as_recorded_in_order(tmp_path):
    assert used(tmp_path, drive()) == ([0, 1, 2, 3], [], {})


@pytest.mark.parametrize(
    "topics, by_s",
    [
        (("/tf_static",), 11.0),
        (("/tf",), 0.6),
        (("/tf",), 30.0),
        (("/tf", "/tf_static", "/camera_info"), 30.0),
        (("/camera_info",), 1.2),
        (("cam_back/image_raw/compressed",), 0.8),
        (("cam_front/image_raw/compressed",), 0.9),
    ],
)
def test_messages_recorded_late_lose_no_frame(tmp_path, topics, by_s):
    assert used(tmp_path, later(drive(), int(by_s * SECOND), *topics)) == ([0, 1, 2, 3], [], {})


@pytest.mark.parametrize("at", [0, 1, 3, 40])
def test_a_single_calibration_per_camera_holds_for_the_whole_recording(tmp_path, at):
    kept, seen = [], set()
    for item in drive():
        if item.kind == INFO:
            if item.topic in seen:
                continue
            seen.add(item.topic)
            item.stamp_ns = START + at * STEP
        kept.append(item)
    assert used(tmp_path, kept) == ([0, 1, 2, 3], [], {})


def test_random_latencies_of_everything_but_images_lose_no_frame(tmp_path):
    chance = random.Random(4)
    messages = drive()
    for item in messages:
        if "image" not in item.topic:
            item.stamp_ns += chance.randrange(SECOND * 9 // 10)
    assert used(tmp_path, messages)[0] == [0, 1, 2, 3]


def test_a_calibration_that_changes_holds_from_then_on_and_not_before(tmp_path):
    messages = later(drive(), 700_000_000, "/tf")  # poses are read ahead, calibrations are not
    for item in messages:
        if item.topic == "/cam_back/camera_info" and item.stamp_ns > START + STEP * 3 // 2:
            item.message.k[0] = item.message.p[0] = 150.0
    found, summary = frames(write_bag(tmp_path / "bag", messages))
    back = CAMERAS.index("CAM_BACK")
    assert [posed.rectifiers[back].intrinsics[0, 0] for posed in found] == [120.0, 120.0, 150.0, 150.0]
    assert [bool(posed.reset_reason) for posed in found] == [False, False, True, False] and not summary.drops


def test_a_static_transform_that_changes_holds_from_then_on_and_not_before(tmp_path):
    moved = transform(START + STEP * 2 + 3_000_000, "base_link", "cam_back", 2.0, topic="/tf_static")
    found, _ = frames(write_bag(tmp_path / "bag", [*drive(), moved]))
    back = CAMERAS.index("CAM_BACK")
    assert [posed.ego_from_camera[back, 0, 3] for posed in found] == [0.0, 0.0, 2.0, 2.0]


def test_the_first_calibration_may_be_rubbish(tmp_path):
    messages = drive()
    for item in messages:
        if item.topic == "/cam_back/camera_info" and item.stamp_ns < START + STEP:
            item.message.k[:] = 0.0
    assert used(tmp_path, messages)[0] == [0, 1, 2, 3]


def test_each_frame_has_the_poses_of_its_stamps_however_late_they_were_recorded(tmp_path):
    expected, _ = frames(write_bag(tmp_path / "in order", drive()))
    found, _ = frames(write_bag(tmp_path / "late", later(drive(), 5 * SECOND, "/tf")))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.global_from_camera_ego, other.global_from_camera_ego)
        np.testing.assert_array_equal(one.global_from_ego, other.global_from_ego)


def test_a_frame_whose_poses_never_come_costs_no_other(tmp_path):
    beginning = [item for item in drive() if item.topic != "/tf" or item.stamp_ns > START + STEP // 2]
    stamps, _, drops = used(tmp_path / "beginning", beginning)
    assert stamps == [1, 2, 3] and drops == {"transform_too_old": 1}
    ending = [item for item in drive() if item.topic != "/tf" or item.stamp_ns < START + 3 * STEP]
    stamps, _, drops = used(tmp_path / "ending", ending)
    assert stamps == [0, 1, 2] and drops == {"transform_not_yet": 1}


def test_a_recording_of_a_loop_resets_once_and_uses_every_frame(tmp_path):
    again = later(copy.deepcopy(drive()), 3 * SECOND, "")
    messages = later([*drive(), *again], 200_000_000, "/tf")
    stamps, resets, drops = used(tmp_path, messages)
    assert stamps == [0, 1, 2, 3] * 2 and not drops
    assert len(resets) == 1 and "time went back" in resets[0]
