# SPDX-License-Identifier: Apache-2.0
"""Faults injected over DDS: each has its promised behaviour, none ends the node, every frame is accounted for."""

from __future__ import annotations

import random

import numpy as np
import psutil
import pytest

from bevnext_ros.messages.factory import message_class
from tests.ros.harness import DELAY_MS, MS, NAMES, SECOND, START, ego_pose, jpeg

pytestmark = pytest.mark.ros
CONFIGURE, ACTIVATE = 1, 3


def settle(rig, published: int, **drops: int) -> None:
    """Wait until so many frames are published and so many dropped, and nothing else."""

    def reached() -> bool:
        return len(rig.detections) == published and rig.drops() == drops

    rig.until(reached, what=f"{published} published and {drops}, got {len(rig.detections)} and {rig.drops()}")
    rig.fresh()
    assert len(rig.detections) == published and rig.drops() == drops
    assert rig.accounted() and rig.alive()


@pytest.mark.parametrize("policy", ["wait", "skip", "mask"])
def test_a_camera_stops_and_comes_back(start, policy):
    rig = start(missing_camera=policy, image_deadline=0.15)
    rig.ready()
    rig.drive(3)
    rig.drive(4, first=3, skip=("cam_back",))
    rig.spin(0.4)
    rig.drive(3, first=7)
    back = NAMES.index("cam_back")
    if policy == "mask":
        settle(rig, 10)
        masked = [step["stamp"] for step in rig.steps() if not step["valid"][back]]
        assert masked == [START + i * 100 * MS for i in range(3, 7)]
        assert all(step["images"][back] is None for step in rig.steps() if step["stamp"] in masked)
        assert all(sum(step["valid"]) >= 5 for step in rig.steps())
    else:
        settle(rig, 6, missing_camera=4)
        assert all(all(step["valid"]) for step in rig.steps())


def test_late_unordered_and_repeated_messages_make_the_same_frames(start):
    rig = start(image_deadline=0.6)
    rig.ready()
    rng = random.Random(4)
    stamps = [START + i * 100 * MS for i in range(6)]
    rig.publish_poses(START - 40 * MS, stamps[-1] + 60 * MS)
    for number in range(0, 6, 2):  # two sweeps at a time, shuffled; one camera comes 300 ms late; all twice
        images = [
            (n, s + DELAY_MS[n] * MS) for s in stamps[number : number + 2] for n in NAMES if n != "cam_back"
        ]
        rng.shuffle(images)
        for camera, stamp in images * 2:
            rig.publish_image(camera, stamp)
        rig.spin(0.3)
        for stamp in stamps[number : number + 2]:
            rig.publish_image("cam_back", stamp + DELAY_MS["cam_back"] * MS)
    rig.until(lambda: len(rig.detections) == 6)
    assert rig.stamps() == stamps
    for step in rig.steps():
        assert step["stamps"] == [step["stamp"] + DELAY_MS[name] * MS for name in NAMES]
    rig.fresh()
    assert rig.drops() == {"duplicate": 6} and rig.accounted()


def test_ten_percent_of_messages_lost(start):
    rig = start(image_deadline=0.1, transform_deadline=0.3)
    rig.ready()
    rng = random.Random(7)
    whole, anchors = 0, 0
    for i in range(30):
        stamp = START + i * 100 * MS
        for pose_stamp in range(stamp - 20 * MS, stamp + 41 * MS, 20 * MS):
            if rng.random() > 0.1:
                rig.publish_pose(pose_stamp)
        kept = [name for name in NAMES if rng.random() > 0.1]
        for name in sorted(kept, key=DELAY_MS.__getitem__):
            rig.publish_image(name, stamp + DELAY_MS[name] * MS)
        whole += len(kept) == 6
        anchors += "cam_front" in kept
        rig.spin(0.05)
    rig.publish_poses(START + 3000 * MS, START + 3100 * MS)
    rig.until(lambda: rig.value("node", "frames_in_flight") == "0" and len(rig.detections) >= whole - 2)
    rig.fresh()
    assert rig.accounted() and rig.value("node", "frames_seen") == str(anchors)
    assert whole - 2 <= len(rig.detections) <= whole  # a lost pose may cost a frame
    assert set(rig.drops()) <= {"missing_camera", "transform_not_yet", "transform_too_old"}


def test_transforms_missing_late_and_there(start):
    rig = start(transform_deadline=0.5)
    rig.ready()
    rig.drive(2, poses=False)  # none at all
    rig.until(lambda: rig.drops() == {"transform_not_connected": 2}, what="dropped at the deadline")
    rig.sweep(START + 200 * MS, poses=False)
    rig.spin(0.2)
    rig.publish_poses(START + 180 * MS, START + 260 * MS)  # late, but before the deadline
    rig.until(lambda: len(rig.detections) == 1)
    rig.sweep(START + 400 * MS, poses=False)  # newer than the newest
    rig.until(lambda: rig.drops().get("transform_not_yet") == 1)
    rig.sweep(START + 100 * MS + 500 * MS)
    settle(rig, 2, transform_not_connected=2, transform_not_yet=1)


def test_transforms_jump_and_hold_nan(start):
    rig = start()
    rig.ready()
    rig.drive(3)
    settle(rig, 3)
    broken = ego_pose(START)
    broken[0, 3] = np.nan
    for stamp in range(START + 205 * MS, START + 300 * MS, 10 * MS):
        rig.publish_pose(stamp, broken)
    rig.drive(1, first=3)
    settle(rig, 4)
    assert int(rig.value("drops", "transforms_invalid")) == 10
    moved = ego_pose(START)
    moved[:3, 3] = 1000.0
    for stamp in range(START + 445 * MS, START + 660 * MS, 20 * MS):
        rig.publish_pose(stamp, moved)
    rig.sweep(START + 500 * MS, poses=False)
    rig.sweep(START + 600 * MS, poses=False)
    rig.until(lambda: len(rig.detections) == 6)
    assert "ego pose jumped" in rig.steps()[4]["reset"] and rig.steps()[5]["reset"] == ""
    rig.fresh()
    assert "ego pose jumped" in rig.value("history", "last_reset")


def test_a_bag_that_loops_ten_times(start):
    rig = start(image_deadline=0.1)
    rig.ready()
    for _ in range(10):
        rig.drive(4, interval_ms=500)
        rig.spin(0.15)
    rig.until(lambda: len(rig.detections) + rig.drops().get("time_jump", 0) == 40, what="all frames")
    rig.fresh()
    # the last frame of a loop may still wait for a nearer image when time goes back
    assert rig.accounted() and set(rig.drops()) <= {"time_jump"} and len(rig.detections) >= 35
    first = [step for step in rig.steps() if step["stamp"] == START]
    assert len(first) == 10 and all(step["history"] == [] for step in first)
    assert all("time went back" in step["reset"] for step in first[1:])
    others = [step for step in rig.steps() if step["stamp"] != START]
    assert all(step["reset"] == "" and len(step["history"]) >= 1 for step in others)


def test_other_peoples_messages_of_another_time(start):
    """Stale and foreign transforms and images among the rig's own: no frame is lost, and none is reset."""
    rig = start()
    rig.ready()
    for number in range(12):
        stamp = START + number * 100 * MS
        for edge in (("base_link", "wheel"), ("odom", "base_link")):
            for other in (stamp - 3 * SECOND, stamp + 10**8 * SECOND):
                rig.publish_transform(*edge, ego_pose(START), other)
        rig.publish_transform("base_link", "wheel", ego_pose(START), stamp)
        if number > 2:
            rig.publish_image("cam_back", stamp - 3 * SECOND)
        rig.sweep(stamp)
    settle(rig, 12)
    assert all(step["reset"] == "" for step in rig.steps())
    for step in rig.steps():
        np.testing.assert_allclose(step["pose"], ego_pose(step["stamp"]), atol=1e-6)
    assert rig.value("cameras", "images_late") == "9"
    assert int(rig.value("drops", "transforms_late")) >= 22


def test_a_clock_that_goes_back_is_borne_out_by_one_pose(start):
    rig = start(use_sim_time=True)
    rig.ready()
    rig.publish_clock(START + 300 * MS)
    rig.drive(4, interval_ms=1000)
    rig.publish_clock(START + 3 * SECOND)
    rig.until(lambda: len(rig.detections) == 4)
    rig.publish_clock(START)
    rig.until(lambda: rig.status()["stamp"] == START, what="the clock to go back")
    rig.publish_poses(START - 20 * MS, START + 60 * MS)
    rig.until(lambda: rig.status()["stamp"] == START)
    rig.drive(1)
    settle(rig, 5)
    assert [step["reset"] for step in rig.steps()][4].startswith("time went back by 3.")


def test_zero_stamps_and_a_paused_clock(start):
    """use_sim_time without a clock: deadlines run on the steady clock, so nothing hangs."""
    rig = start(use_sim_time=True, image_deadline=0.1)
    rig.ready()
    rig.drive(2)
    for camera in NAMES:
        rig.publish_image(camera, 0)
    rig.publish_pose(0)
    rig.drive(1, first=2, skip=("cam_back",))
    rig.drive(1, first=3)
    settle(rig, 3, zero_stamp=1, missing_camera=1)
    assert rig.status()["stamp"] == 0  # the node's clock really stood still
    assert rig.value("drops", "transforms_zero_stamp") == "1"


BAD = {
    "truncated": {"data": jpeg((64, 40), 1)[:150]},
    "empty": {"data": b""},
    "other size": {"data": jpeg((80, 40), 1)},
}


@pytest.mark.parametrize("policy", ["skip", "mask"])
def test_bad_images(start, policy):
    """Truncated, empty, of another size; on a raw topic an unknown encoding and too few bytes."""
    raw = ["raw" if name == "cam_front_left" else "compressed" for name in NAMES]
    rig = start(missing_camera=policy, transports=raw)
    rig.ready()
    rig.drive(1)
    faults = [("cam_back", {"data": item["data"]}) for item in BAD.values()]
    faults += [("cam_front_left", {"encoding": "nv12"}), ("cam_front_left", {"data": b"123"})]
    for number, (camera, changes) in enumerate(faults, 1):
        stamp = START + number * 100 * MS
        rig.publish_poses(stamp - 20 * MS, stamp + 40 * MS)
        for name, delay in sorted(DELAY_MS.items(), key=lambda item: item[1]):
            rig.publish_image(name, stamp + delay * MS, **(changes if name == camera else {}))
        rig.spin(0.05)
    rig.drive(1, first=6)
    if policy == "skip":
        settle(rig, 2, bad_image=5)
        assert rig.value("drops", "last_fault")
    else:
        settle(rig, 7)
        invalid = [NAMES[step["valid"].index(False)] for step in rig.steps() if not all(step["valid"])]
        assert invalid == [camera for camera, _ in faults]
        assert rig.value("cameras", "images_masked") == "5"
    assert "nv12" in rig.output.read_text() or policy == "skip" or rig.value("drops", "last_fault")


def test_camera_info_with_zeros_is_ignored_and_a_changed_one_resets(start):
    rig = start()
    rig.ready()
    rig.drive(2)
    settle(rig, 2)
    rig.publish_info("cam_front", np.zeros((3, 3)))
    rig.spin(0.1)
    rig.drive(1, first=2)
    settle(rig, 3)
    assert rig.value("cameras", "camera_info_invalid") == "1"
    changed = rig.intrinsics() * [[1.25], [1.25], [1.0]]
    rig.publish_info("cam_front", changed)
    rig.spin(0.1)
    rig.drive(2, first=3)
    settle(rig, 5)
    front = NAMES.index("cam_front")
    np.testing.assert_allclose(rig.steps()[2]["intrinsics"][front], rig.intrinsics())
    np.testing.assert_allclose(rig.steps()[3]["intrinsics"][front], changed)
    assert [step["reset"] for step in rig.steps()[2:]] == ["", "the calibration of cam_front changed", ""]


def test_a_latched_camera_info_sent_before_the_node_started_reaches_it(start):
    from rclpy.qos import DurabilityPolicy, QoSProfile

    rig = start(autostart=False)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    kind = message_class("sensor_msgs/msg/CameraInfo")
    for camera in NAMES[:5]:  # the last one's is periodic
        rig.node.destroy_publisher(rig.infos[camera])
        rig.infos[camera] = rig.node.create_publisher(kind, f"/{camera}/camera_info", latched)
        rig.publish_info(camera)
    rig.until(lambda: rig.value("node", "state") == "unconfigured", what="the node")
    assert rig.call(CONFIGURE) and rig.call(ACTIVATE)
    rig.ready(infos=False)
    rig.publish_info(NAMES[5])
    rig.drive(2)
    settle(rig, 2)
    np.testing.assert_allclose(rig.steps()[0]["intrinsics"], [rig.intrinsics()] * 6)


def test_camera_infos_computed_anew_each_time_reset_nothing(start):
    rig = start()
    rig.ready()
    for number in range(6):
        for camera in NAMES:
            rig.publish_info(camera, rig.intrinsics() * (1 + 1e-13 * number))
        rig.spin(0.05)
        rig.drive(1, first=number)
    settle(rig, 6)
    assert [step["reset"] for step in rig.steps()] == [""] * 6 and len(rig.steps()[-1]["history"]) == 2


DISTORTED = {"d": [-0.2, 0.0, 0.0, 0.0, 0.0]}


def test_distortion_is_refused_with_the_remedy(start):
    rig = start(distortion="refuse", transform_deadline=0.2)
    rig.ready()
    rig.publish_info("cam_front", **DISTORTED)
    rig.spin(0.2)
    rig.drive(1)
    settle(rig, 1)  # the good calibration before stays in force
    assert rig.value("cameras", "camera_info_refused") == "1"
    rig.until(lambda: "set the parameter distortion to 'rectify'" in rig.output.read_text())


def test_distortion_is_rectified(start):
    rig = start(distortion="rectify")
    rig.ready()
    rig.drive(1)
    rig.until(lambda: len(rig.steps()) == 1)
    rig.publish_info("cam_front", **DISTORTED)
    rig.spin(0.2)
    rig.drive(1, first=1)
    rig.until(lambda: len(rig.steps()) == 2)
    before, after = (step["images"] for step in rig.steps())
    assert [a == b for a, b in zip(before, after)] == [name != "cam_front" for name in NAMES]


@pytest.mark.slow
def test_thirty_hertz_on_a_node_that_manages_one_frame_a_second(start):
    """Memory stays flat, the newest frame wins, the others are counted as overload."""
    rig = start(wait=1.0, overload="newest", frame_queue=1000)
    rig.ready()
    process = psutil.Process(rig.process.pid)
    memory = []
    for number in range(150):
        rig.sweep(START + number * 33 * MS, pause=False)
        rig.spin(0.033)
        if number % 30 == 0:
            memory.append(process.memory_info().rss)
    seen = ("node", "frames_seen"), ("node", "frames_in_flight")
    rig.until(lambda: [rig.value(*key) for key in seen] == ["150", "0"], 60, what="the last frame")
    rig.fresh()
    assert rig.accounted() and set(rig.drops()) == {"overload"}
    assert rig.stamps() == sorted(set(rig.stamps())) and rig.stamps()[-1] == START + 149 * 33 * MS
    assert max(memory[2:]) - memory[1] < 15e6, memory
