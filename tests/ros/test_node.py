# SPDX-License-Identifier: Apache-2.0
"""The node over DDS, between processes: what it publishes, the poses it uses, its life cycle, its end."""

from __future__ import annotations

import signal
import sys

import numpy as np
import psutil
import pytest

from bevnext_core.geometry import invert_rigid
from bevnext_ros.messages.conversions import CLOUD_FIELDS, cloud_records, transform_boxes
from tests.ros.harness import DELAY_MS, MS, NAMES, START, camera_pose, ego_pose

pytestmark = pytest.mark.ros
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4


def test_every_frame_gives_all_outputs(start):
    rig = start()
    rig.ready()
    stamps = rig.drive(5)
    rig.until(lambda: len(rig.detections) == 5 == len(rig.boxes) == len(rig.markers) == len(rig.latencies))
    assert rig.stamps() == stamps
    assert rig.detections[0].header.frame_id == "base_link"
    for i in range(5):
        cloud = cloud_records(rig.boxes[i])
        assert cloud.dtype.names == CLOUD_FIELDS
        boxes = np.stack([cloud[name] for name in CLOUD_FIELDS[:7]], 1)
        np.testing.assert_allclose(boxes, rig.rows(i)[:, :7], atol=1e-5)
        assert rig.markers[i].markers[0].action == 3
    assert all(step["valid"] == [True] * 6 for step in rig.steps())
    rig.fresh()
    assert rig.accounted() and rig.drops() == {}
    assert rig.value("node", "frames_published") == "5" and rig.value("history", "frames") == "2"
    assert rig.stop(signal.SIGINT) == 0
    assert "Traceback" not in rig.output.read_text()


def test_callbacks_with_the_message_only_as_on_humble(start):
    rig = start(command=[sys.executable, "-m", "tests.ros.humble_node_process"])
    rig.ready()
    stamps = rig.drive(4)
    rig.until(lambda: len(rig.detections) == 4, what="detections")
    assert rig.stamps() == stamps
    rig.fresh()
    assert rig.accounted() and rig.drops() == {}
    assert "a callback failed" not in rig.output.read_text()


@pytest.mark.parametrize(
    "info, waits", [((), False), (({"received_timestamp": 1},), True), (({"received_timestamp": 0},), False)]
)
def test_an_image_callback_takes_the_message_with_and_without_its_info(dds, info, waits):
    from rclpy.subscription import Subscription

    from bevnext_ros.node.inputs import image_callback

    calls = []
    callback = image_callback(lambda message, waited_ns: calls.append((message, waited_ns > 0)))
    callback("image", *info)
    assert calls == [("image", waits)]
    subscription = Subscription.__new__(Subscription)
    subscription.callback = callback
    assert subscription._callback_type is Subscription.CallbackType.WithMessageInfo


def true_relift(now: int, past: int) -> np.ndarray:
    """ego (now) <- each camera at its own stamp around ``past``."""
    return np.stack(
        [
            invert_rigid(ego_pose(now)) @ ego_pose(past + DELAY_MS[name] * MS) @ camera_pose(name)
            for name in NAMES
        ]
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_history_is_lifted_with_the_true_pose_of_every_camera_stamp(start, frozen):
    """The car turns at 0.5 rad/s and drives 10 m/s; with a frozen pose the same comparison fails."""
    rig = start()
    rig.ready()
    still = ego_pose(START)
    stamps = [START + i * 100 * MS for i in range(5)]
    for stamp in range(START - 33 * MS, stamps[-1] + 60 * MS, 17 * MS):  # never at an image's stamp
        rig.publish_pose(stamp, still if frozen else None)
    for stamp in stamps:
        rig.sweep(stamp, poses=False)
    rig.until(lambda: len(rig.detections) == 5)
    steps = rig.steps()
    assert [len(step["history"]) for step in steps] == [0, 1, 2, 2, 2]
    worst = 0.0
    for step in steps:
        if not frozen:
            np.testing.assert_allclose(step["pose"], ego_pose(step["stamp"]), atol=1e-6)
        assert step["stamps"] == [step["stamp"] + DELAY_MS[name] * MS for name in NAMES]
        for past in step["history"]:
            error = np.abs(
                np.array(past["ego_from_cameras"]) - true_relift(step["stamp"], past["stamp"])
            ).max()
            worst = max(worst, float(error))
    assert worst > 0.1 if frozen else worst < 1e-4


def test_raw_images_other_topics_and_another_output_frame(start):
    rig = start(
        transports=["raw", "compressed", "raw", "raw", "compressed", "raw"],
        image_topics=["/rig/{camera}/picture"],
        output_frame="odom",
    )
    rig.ready()
    stamps = rig.drive(3)
    rig.until(lambda: len(rig.detections) == 3 == len(rig.boxes))
    assert rig.stamps() == stamps and rig.detections[0].header.frame_id == "odom"
    cloud = cloud_records(rig.boxes[2])
    in_odom = np.stack([cloud[name] for name in CLOUD_FIELDS[:9]], 1)
    back = transform_boxes(in_odom, invert_rigid(ego_pose(stamps[2])))
    # the stand-in's boxes are known to be within 30 m of the ego; in odom they are turned and moved
    np.testing.assert_allclose(rig.rows(2)[:, :7], in_odom[:, :7], atol=1e-4)
    assert not np.allclose(back[:, :2], in_odom[:, :2], atol=0.1) and np.abs(back[:, :2]).max() < 31


@pytest.mark.parametrize(
    "names",
    [
        {"tf_topic": "/robot1/tf", "tf_static_topic": "/robot1/tf_static"},
        {"tf_topic": "robot1/poses", "tf_static_topic": "robot1/mounts"},
        {"rig_tf": "/robot1/tf"},
    ],
)
def test_transforms_of_a_robot_with_a_namespace_by_parameter_and_by_remapping(start, names):
    rig = start(**names)
    rig.ready()
    rig.drive(2)
    rig.until(lambda: len(rig.detections) == 2, what="detections")
    assert rig.tf.topic_name != "/tf" and rig.accounted()


def test_max_rate_skips_on_purpose(start):
    rig = start(max_rate=5.0)
    rig.ready()
    rig.drive(10)
    rig.until(lambda: len(rig.detections) == 5 and rig.drops() == {"max_rate": 5}, what="every second frame")
    assert [step["stamp"] for step in rig.steps()] == [START + i * 200 * MS for i in range(5)]
    assert rig.accounted() and rig.status("drops")["level"] == 0


def test_nothing_is_computed_while_nobody_subscribes(start):
    rig = start()
    rig.ready()
    rig.drive(2)
    rig.until(lambda: len(rig.detections) == 2)
    rig.unsubscribe()
    rig.spin(0.5)
    rig.drive(3, first=2)
    rig.until(lambda: rig.drops().get("no_subscriber") == 3, what="frames that nobody wanted")
    assert len(rig.steps()) == 2 and rig.accounted()
    assert rig.status("drops")["level"] == 0  # no trouble
    assert rig.status("node")["message"] == "idle: nobody subscribes to the boxes"
    rig.subscribe()
    rig.until(lambda: rig.node.count_publishers("/detector/detections"))
    rig.spin(0.5)
    rig.drive(2, first=5)
    rig.until(lambda: len(rig.detections) == 4)
    assert len(rig.steps()) == 4


def test_ten_life_cycles_without_leaking(start):
    rig = start()
    rig.ready()
    process = psutil.Process(rig.process.pid)
    number, threads, memory = 0, [], []
    for cycle in range(10):
        assert rig.call(DEACTIVATE)
        if cycle % 3 == 2:
            assert rig.call(CLEANUP) and rig.call(CONFIGURE)
        assert rig.call(ACTIVATE)
        rig.until(lambda: all(p.get_subscription_count() == 1 for p in rig.images.values()))
        rig.ready()
        before = len(rig.steps())
        rig.drive(2, first=number)
        number += 2
        rig.until(lambda before=before: len(rig.steps()) == before + 2, what=f"frames in cycle {cycle}")
        # a step is noted before its result is out, and one that is under way at deactivation is dropped
        rig.until(lambda out=str(number): rig.value("node", "frames_published") == out, what="both published")
        threads.append(process.num_threads())
        memory.append(process.memory_info().rss)
    assert rig.steps()[-2]["reset"] == "activated" and rig.steps()[-1]["reset"] == ""
    assert max(threads[5:]) <= max(threads[:3]) + 1, threads
    assert memory[-1] - memory[2] < 20e6, memory
    rig.fresh()
    assert rig.value("node", "frames_published") == "20" and rig.accounted()


def set_parameter(rig, name, value):
    """-> (successful, reason)"""
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    client = rig.node.create_client(SetParameters, "/detector/set_parameters")
    rig.until(client.service_is_ready)
    future = client.call_async(
        SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    )
    rig.until(future.done)
    rig.node.destroy_client(client)
    result = future.result().results[0]
    return result.successful, result.reason


def test_a_missing_checkpoint_is_reported_and_can_be_mended(start):
    rig = start(checkpoint="missing.pt")
    rig.until(lambda: rig.status("node").get("level") == 2, what="an error")
    assert rig.status("node")["message"] == "no such checkpoint: missing.pt"
    assert not rig.call(CONFIGURE) and rig.alive()
    assert set_parameter(rig, "checkpoint", "there.pt") == (True, "")
    assert rig.call(CONFIGURE) and rig.call(ACTIVATE)
    rig.ready()
    rig.drive(1)
    rig.until(lambda: len(rig.detections) == 1, what="detections after all")


def test_parameters_are_checked_and_live_ones_take_effect(start):
    rig = start(max_detections=2)
    rig.ready()
    assert set_parameter(rig, "overload", "newest")[0] is False
    assert "clean it up first" in set_parameter(rig, "overload", "newest")[1]
    assert set_parameter(rig, "autostart", False)[0] is False
    assert "range" in set_parameter(rig, "score_threshold", 1.5)[1]
    assert "between 0 and 1, got 2" in set_parameter(rig, "score_threshold", 2)[1]
    assert "must be a number, got 'high'" in set_parameter(rig, "score_threshold", "high")[1]
    rig.drive(1)
    rig.until(lambda: len(rig.detections) == 1)
    assert len(rig.rows(0)) == 2
    assert set_parameter(rig, "score_threshold", 1) == (True, "")  # an integer is a number
    rig.drive(1, first=1)
    rig.until(lambda: len(rig.detections) == 2)
    assert len(rig.rows(1)) == 0


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_signals_during_inference_end_the_node_cleanly(start, signals):
    rig = start(wait=1.0)
    rig.ready()
    rig.drive(3)
    rig.until(lambda: len(rig.detections) >= 1)  # the next inference runs now
    assert rig.stop(*signals) == 0
    output = rig.output.read_text()
    assert "Traceback" not in output and "Fatal" not in output


def test_an_inference_that_does_not_end_does_not_hold_the_node(start):
    rig = start(wait=60.0)
    rig.ready()
    rig.drive(1)
    rig.spin(0.5)
    assert rig.stop(signal.SIGINT, signal.SIGINT) == 0


def test_a_slow_detector_shows_in_the_diagnostics(start):
    rig = start(wait=0.15, slow_frame=0.1, slow_frames=3)
    rig.ready()
    rig.drive(2)
    rig.until(lambda: rig.status("latency").get("level") == 1, what="a warning")
    rig.drive(4, first=2)
    rig.until(lambda: rig.status("latency").get("level") == 2, what="an error")
    assert "in a row took more than 0.1 s" in rig.status("latency")["message"]


SILENT = {
    "no transforms": ({"poses": False}, {}, "transform_not_connected", ""),
    "rubbish": ({}, {"data": b"rubbish" * 20}, "bad_image", "cam_back"),
    "zeros": ({}, {"data": bytes(500)}, "bad_image", "cam_back"),
}


@pytest.mark.parametrize("fault", SILENT)
def test_no_output_although_images_come_is_an_error_that_names_the_cause_until_it_is_healed(start, fault):
    sweep, changes, cause, bad = SILENT[fault]
    rig = start(no_output_after=0.5, transform_deadline=0.1, missing_camera="skip")
    rig.ready()
    stamp = START

    def drive(healthy: bool) -> None:
        nonlocal stamp
        stamp += 100 * MS
        rig.sweep(stamp, skip=() if healthy or not bad else (bad,), **({} if healthy else sweep))
        if bad and not healthy:
            rig.publish_image(bad, stamp + DELAY_MS[bad] * MS, **changes)

    def is_error() -> bool:
        drive(False)
        return rig.status("node").get("level") == 2 and cause in rig.status("node")["message"]

    rig.until(is_error, what=f"an error that names {cause}")
    assert "although images come" in rig.status("node")["message"] and not rig.detections
    if bad:
        cameras = rig.status("cameras")
        assert cameras["level"] > 0 and bad in cameras["message"], cameras

    def is_healed() -> bool:
        drive(True)
        return rig.detections and rig.status("node")["level"] == rig.status("cameras")["level"] == 0

    rig.until(is_healed, what="diagnostics that are well again")


def test_a_camera_with_refused_camera_infos_alone_is_not_ok(start):
    rig = start(no_output_after=0.5, transform_deadline=0.1)
    rig.ready(infos=False)
    stamp = START

    def is_error() -> bool:
        nonlocal stamp
        stamp += 100 * MS
        for name in NAMES:
            rig.publish_info(name, np.zeros((3, 3)) if name == "cam_back" else None)
        rig.sweep(stamp)
        return rig.status("node").get("level") == 2

    rig.until(is_error, what="an error")
    assert "no_camera_info" in rig.status("node")["message"]
    assert rig.status("cameras")["level"] > 0 and "cam_back" in rig.status("cameras")["message"]
