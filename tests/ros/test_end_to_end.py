# SPDX-License-Identifier: Apache-2.0
"""The proof: a real scene as a bag, played over DDS to the node, gives the boxes of the detector fed directly."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bevnext_core.classes import CAMERAS
from bevnext_core.detections import Detections
from bevnext_ros.bags.detect import OUTPUTS, detect_bag
from bevnext_ros.bags.evaluate import submission_of_split
from bevnext_ros.bags.nuscenes_to_bag import convert_scene, image_topic
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagWriter
from bevnext_ros.messages.conversions import cloud_records, make_transform, stamp_ns
from bevnext_ros.node.parameters import make_options
from tests.ros import harness
from tests.ros.harness import ROOT

pytestmark = [pytest.mark.ros, pytest.mark.sample, pytest.mark.slow]
pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
SCENE = "scene-0103"
EVERYTHING = {"score_threshold": 0.0, "max_detections": 500}
OTHER_NAMES = ("left_front", "front", "right_front", "left_rear", "rear", "right_rear")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from bevnext_core.checkpoint import save_checkpoint
    from tests.published import build

    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    model = build("small2")
    # a low threshold, so that there are boxes enough to compare
    head = dataclasses.replace(model.config.head, score_threshold=0.05)
    save_checkpoint(path, model.state_dict(), dataclasses.replace(model.config, head=head))
    return path


@pytest.fixture(scope="module")
def bag(sample, tmp_path_factory) -> Path:
    from bevnext_core.datasets.nuscenes_tables import load_tables

    path = tmp_path_factory.mktemp("bag") / SCENE
    convert_scene(load_tables(sample, "v1.0-mini"), SCENE, path)
    return path


@pytest.fixture(scope="module")
def direct(sample, checkpoint) -> list[Detections]:
    """The detector fed with the data set's frames."""
    from bevnext_core.datasets.nuscenes import NuScenesReader
    from bevnext_core.detector import Detector

    detector = Detector.from_checkpoint(checkpoint)
    reader = NuScenesReader(sample, "v1.0-mini", scenes=[SCENE])
    found = [detector.step(frame) for frame in reader.frames(SCENE)]
    assert len(found) == 4 and min(map(len, found)) > 20
    return found


def assert_same_boxes(boxes, names, scores, expected: Detections, tolerance: float = 1e-3) -> None:
    """As sets: every box has a partner of its class within the tolerance, one to one."""
    assert len(boxes) == len(expected)
    free = list(range(len(expected)))
    for box, name, score in zip(boxes, names, scores, strict=True):
        for index in free:
            difference = np.abs(box - expected.boxes[index])
            difference[6] = abs((difference[6] + np.pi) % (2 * np.pi) - np.pi)
            if (
                name == expected.names[index]
                and difference.max() < tolerance
                and abs(score - expected.scores[index]) < tolerance
            ):
                free.remove(index)
                break
        else:
            raise AssertionError(f"no partner for {name} {box.tolist()} ({score})")


def check_clouds(clouds, direct: list[Detections]) -> None:
    assert [stamp_ns(cloud.header) for cloud in clouds] == [found.stamp_ns for found in direct]
    for cloud, expected in zip(clouds, direct, strict=True):
        records = cloud_records(cloud)
        boxes = np.stack([records[name] for name in records.dtype.names[:9]], 1)
        names = [expected.class_names[int(label)] for label in records["class"]]
        assert_same_boxes(boxes, names, records["score"], expected)


def play_to_node(start, bag: Path, checkpoint: Path, tmp_path: Path, *played: str, **parameters):
    """Node and player, with the options ``played``, in processes of their own -> the rig's listener with what the node
    published."""
    rig = start(
        command=[sys.executable, "-m", "bevnext_ros.node.main"],
        checkpoint=str(checkpoint),
        precision="fp32",  # as what it is compared with
        max_detections=500,
        # two cores, and a network of seconds per frame: nothing may be dropped for being late
        image_deadline=10.0,
        transform_deadline=10.0,
        **parameters,
    )
    rig.until(lambda: rig.value("node", "state") == "active", timeout=300, what="the network to load")
    rig.spin(0.3)
    output = (tmp_path / "player.txt").open("w")
    player = subprocess.Popen(
        [sys.executable, "-m", "tests.ros.play_process", str(bag), *played],
        cwd=ROOT,
        env={**rig_environment(), "OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    rig.until(lambda: len(rig.detections) == 4 == len(rig.boxes), timeout=300, what="four frames from the bag")
    assert player.wait(120) == 0, (tmp_path / "player.txt").read_text()
    rig.fresh()
    assert rig.drops() == {} and rig.accounted()
    return rig


def rig_environment() -> dict[str, str]:
    return {**os.environ, **harness.environment()}


def test_a_played_scene_gives_the_direct_detections_and_a_score(
    start, bag, checkpoint, direct, sample, tmp_path
):
    rig = play_to_node(start, bag, checkpoint, tmp_path)
    check_clouds(rig.boxes, direct)
    # recorded, the node's output is a submission that the official metric takes
    write_recording(tmp_path / "recorded", rig)
    from bevnext_core.datasets.nuscenes import NuScenesReader
    from bevnext_core.datasets.nuscenes_tables import load_tables
    from bevnext_core.detector import Detector
    from bevnext_tools.cli.detect import detect
    from bevnext_tools.evaluation.metric import evaluate

    tables = load_tables(sample, "v1.0-mini")
    submission = submission_of_split(tmp_path / "recorded", tables, "mini_val")
    assert sum(map(bool, submission["results"].values())) == 4
    score = evaluate(tables, submission, "mini_val")
    assert score.samples == 4 and score.boxes == sum(map(len, direct)) and 0 <= score.nd_score < 1
    # and equals what `bevnext detect` writes for the data set itself
    reader = NuScenesReader(sample, "v1.0-mini", scenes=[SCENE], tables=tables)
    detect(reader, Detector.from_checkpoint(checkpoint), tmp_path / "detect", pictures=False)
    expected = json.loads((tmp_path / "detect" / "submission.json").read_text())["results"]
    found = json.loads(json.dumps(submission))["results"]
    assert found.keys() == expected.keys()
    for token, records in expected.items():
        assert_same_records(found[token], records)


def assert_same_records(found: list[dict], expected: list[dict]) -> None:
    """As sets: one partner each, within 1e-3 in every number."""

    def numbers(record: dict) -> np.ndarray:
        q = np.array(record["rotation"])
        q = q * np.sign(q[np.argmax(np.abs(q))])
        values = [*record["translation"], *record["size"], *q, *record["velocity"], record["detection_score"]]
        return np.array(values)

    assert len(found) == len(expected)
    free = list(expected)
    for record in found:
        partners = [
            other
            for other in free
            if other["detection_name"] == record["detection_name"]
            and np.abs(numbers(other) - numbers(record)).max() < 1e-3
        ]
        assert partners, record
        free.remove(partners[0])


def write_recording(path: Path, rig) -> None:
    """The messages that came over DDS as a bag, as ``ros2 bag record`` would."""
    from rclpy.serialization import serialize_message

    from bevnext_ros.bags.types import make_typestore

    store = make_typestore()
    with BagWriter(path) as writer:
        for topic, kind, messages in (
            (OUTPUTS[0], "vision_msgs/msg/Detection3DArray", rig.detections),
            (OUTPUTS[1], "sensor_msgs/msg/PointCloud2", rig.boxes),
        ):
            for message in messages:
                copied = store.deserialize_cdr(serialize_message(message), kind)
                writer.write(topic, kind, copied, stamp_ns(message.header))


def test_the_offline_runner_gives_the_same(bag, checkpoint, direct, tmp_path):
    from bevnext_core.detector import Detector

    options = make_options(EVERYTHING, "the test")
    detect_bag(bag, Detector.from_checkpoint(checkpoint), tmp_path, options, pictures=False)
    with BagReader(tmp_path / "detections") as reader:
        check_clouds([message.decode() for message in reader.messages({OUTPUTS[1]})], direct)


def other_rig(bag: Path, path: Path) -> Path:
    """The same recording from a rig with other names and a deeper tree.

    map -> odom (a real offset) -> base_link -> NAME_link -> NAME_optical, split by a rotation.
    """
    names = {camera.lower(): new for camera, new in zip(CAMERAS, OTHER_NAMES)}
    turn = np.array([0.5, -0.5, 0.5, -0.5])
    back = turn * [1, -1, -1, -1]

    def times(a, b):
        w, x, y, z = a
        p, q, r, s = b
        return np.array(
            [
                w * p - x * q - y * r - z * s,
                w * q + x * p + y * s - z * r,
                w * r - x * s + y * p + z * q,
                w * s + x * r - y * q + z * p,
            ]
        )

    with BagReader(bag) as source, BagWriter(path) as writer:
        for item in source.messages():
            message, topic = item.decode(), item.topic
            parts = topic.strip("/").split("/")
            if parts[0] in names:
                topic = f"/rig/{names[parts[0]]}/{'info' if parts[-1] == 'camera_info' else 'jpeg'}"
                message.header.frame_id = f"{names[parts[0]]}_optical"
            elif topic == "/tf_static":
                transforms = []
                for entry in message.transforms:
                    r, t = entry.transform.rotation, entry.transform.translation
                    rotation, offset = np.array([r.w, r.x, r.y, r.z]), [t.x, t.y, t.z]
                    child = entry.child_frame_id
                    if child in names:
                        link, optical = f"{names[child]}_link", f"{names[child]}_optical"
                        made = [
                            ("base_link", link, times(rotation, back), offset),
                            (link, optical, turn, [0, 0, 0]),
                        ]
                    elif child == "odom":
                        made = [("map", "odom", np.array([0.8, 0, 0, 0.6]), [100.0, -50.0, 3.0])]
                    else:
                        made = [(entry.header.frame_id, child, rotation, offset)]
                    for parent, child_, q, xyz in made:
                        transforms.append(
                            make_transform(writer.factory, parent, child_, q, xyz, item.stamp_ns)
                        )
                message = writer.factory.make("tf2_msgs/msg/TFMessage", transforms=transforms)
            writer.write(topic, item.kind, message, item.stamp_ns, item.topic in source.latched)
    return path


OTHER_RIG = {
    "cameras": list(OTHER_NAMES),
    "image_topics": ["/rig/{camera}/jpeg"],
    "camera_info_topics": ["/rig/{camera}/info"],
    "fixed_frame": "map",
}


def test_another_rig_with_a_deeper_tree_gives_the_same(start, bag, checkpoint, direct, tmp_path):
    """Offline, and the bag that is written then, played to the node without the detections that are in it."""
    from bevnext_core.detector import Detector

    renamed = other_rig(bag, tmp_path / "other")
    with BagReader(renamed) as reader:
        assert "/rig/left_front/jpeg" in reader.topics and image_topic("CAM_FRONT") not in reader.topics
    options = make_options({**EVERYTHING, **OTHER_RIG}, "the test")
    detect_bag(renamed, Detector.from_checkpoint(checkpoint), tmp_path / "out", options, pictures=False)
    written = tmp_path / "out" / "detections"
    with BagReader(written) as reader:
        check_clouds([message.decode() for message in reader.messages({OUTPUTS[1]})], direct)
    rig = play_to_node(start, written, checkpoint, tmp_path, "--exclude-topics", *OUTPUTS, **OTHER_RIG)
    check_clouds(rig.boxes, direct)
