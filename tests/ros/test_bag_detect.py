# SPDX-License-Identifier: Apache-2.0
"""`bevnext detect --bag` sees exactly the data set's frames; its bag scores like the detections themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from bevnext_core.classes import CAMERAS
from bevnext_core.config import ModelConfig
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.datasets.nuscenes_tables import load_tables
from bevnext_core.detections import Detections
from bevnext_ros.bags.detect import OUTPUTS, detect_bag
from bevnext_ros.bags.evaluate import run_evaluate_bag, submission_from_bag, submission_of_split
from bevnext_ros.bags.nuscenes_to_bag import convert_scene
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagError, BagWriter
from bevnext_ros.messages.conversions import detection_rows, stamp_ns
from bevnext_ros.node.parameters import make_options
from bevnext_tools.evaluation.submission import make_submission, submission_records
from tests.nuscenes_dataroot import write_dataroot
from tests.ros.stand_in import StandIn

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
EVERYTHING = {"score_threshold": 0.0, "max_detections": 500}


def options(**values):
    return make_options({**EVERYTHING, **values}, "the test")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_dataroot(tmp_path_factory.mktemp("data") / "root", {"scene-0103": 4}, sweeps=2)


@pytest.fixture(scope="module")
def bag(root, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bag") / "bag"
    convert_scene(load_tables(root, "v1.0-mini"), "scene-0103", path)
    return path


def assert_same_frames(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.stamp_ns == b.stamp_ns and a.valid.all()
        np.testing.assert_array_equal(a.camera_stamps_ns, b.camera_stamps_ns)
        for name in ("intrinsics", "ego_from_camera", "global_from_camera_ego", "global_from_ego"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-9, err_msg=name)
        for one, other in zip(a.images, b.images, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sweeps", [False, True])
def test_the_frames_of_a_bag_are_those_of_the_data_set(root, tmp_path, sweeps):
    reader = NuScenesReader(root, "v1.0-mini", scenes=["scene-0103"], sweeps=sweeps)
    convert_scene(reader.tables, "scene-0103", tmp_path / "bag", sweeps=sweeps)
    detector = StandIn()
    summary = detect_bag(tmp_path / "bag", detector, tmp_path / "out", options(), pictures=False)
    assert not summary.drops and not summary.warnings
    assert_same_frames(detector.frames, list(reader.frames("scene-0103")))
    assert detector.resets == ["new bag"]


@pytest.mark.sample
def test_the_frames_of_the_real_scene_are_those_of_the_data_set(sample, tmp_path):
    reader = NuScenesReader(sample, "v1.0-mini", scenes=["scene-0103"])
    convert_scene(reader.tables, "scene-0103", tmp_path / "bag")
    detector = StandIn()
    detect_bag(tmp_path / "bag", detector, tmp_path / "out", options(), pictures=False)
    assert_same_frames(detector.frames, list(reader.frames("scene-0103")))


def test_recorded_boxes_equal_the_detections_and_pictures_are_written(root, bag, tmp_path):
    reader = NuScenesReader(root, "v1.0-mini", scenes=["scene-0103"])
    expected = [StandIn().step(frame) for frame in reader.frames("scene-0103")]
    summary = detect_bag(bag, StandIn(), tmp_path / "out", options())
    assert summary.frames == 4 and summary.boxes == 12
    assert [path.name for path in summary.pictures] == [f"00{i}.png" for i in range(4)]
    assert summary.video is not None and summary.video.stat().st_size > 0
    with BagReader(tmp_path / "out" / "detections") as reader_:
        assert {topic: reader_.counts[topic] for topic in OUTPUTS} == dict.fromkeys(OUTPUTS, 4)
        arrays = [message.decode() for message in reader_.messages({OUTPUTS[0]})]
    for message, detections in zip(arrays, expected, strict=True):
        assert stamp_ns(message.header) == detections.stamp_ns and message.header.frame_id == "base_link"
        boxes = np.array([box for box, _, _ in detection_rows(message)])
        np.testing.assert_allclose(boxes[:, :6], detections.boxes[:, :6], atol=1e-6)


def leaves(node) -> list[str]:
    return [node] if isinstance(node, str) else leaves(node["first"]) + leaves(node["second"])


def layout_topics(out: Path) -> set[str]:
    """All topics that the layouts name, besides those of TF."""
    foxglove = json.loads((out / "foxglove.json").read_text())
    assert sorted(leaves(foxglove["layout"])) == sorted(foxglove["configById"])
    rviz = yaml.safe_load((out / "detector.rviz").read_text())["Visualization Manager"]["Displays"]
    text = json.dumps([foxglove, rviz])
    return set(re.findall(r'"(/[^" .]+)', text))


OWN = {
    "cameras": list("abcdef"),
    "image_topics": ["{camera}/picture"],
    "camera_info_topics": ["/rig/{camera}/info"],
    "fixed_frame": "world",
    "base_frame": "car",
}


def rename(topic: str, message):
    """The bag as another rig with names as in :data:`OWN` would have recorded it."""
    for letter, camera in zip("abcdef", CAMERAS):
        topic = topic.replace(f"/{camera.lower()}/image_raw/compressed", f"/{letter}/picture")
        topic = topic.replace(f"/{camera.lower()}/camera_info", f"/rig/{letter}/info")
    for item in getattr(message, "transforms", ()):
        names = {"odom": "world", "base_link": "car"}
        item.header.frame_id = names.get(item.header.frame_id, item.header.frame_id)
        item.child_frame_id = names.get(item.child_frame_id, item.child_frame_id)
    return topic, message


@pytest.mark.parametrize("own", [False, True], ids=["nuScenes", "own names"])
def test_the_bag_that_is_written_opens_alone(bag, tmp_path, own):
    """It gives the same detections again; nothing of the rig is missing or changed, and its layouts fit."""
    given, late = options(**(OWN if own else {})), 100_000_000_000 if own else 0
    with BagReader(bag) as source, BagWriter(tmp_path / "source") as writer:
        for item in source.messages():
            topic, message = rename(item.topic, item.decode()) if own else (item.topic, item.decode())
            # recorded on another clock than that of the stamps
            writer.write(topic, item.kind, message, item.stamp_ns + late, item.topic in source.latched)
    results = []
    for place, take in (("source", tmp_path / "source"), ("copy", tmp_path / "out_source" / "detections")):
        out, seen = tmp_path / f"out_{place}", []
        detect_bag(take, StandIn(), out, given, pictures=False, view=lambda *shown, seen=seen: seen.append(shown))
        with BagReader(out / "detections") as found, BagReader(tmp_path / "source") as source:
            assert found.counts == {**source.counts, **dict.fromkeys(OUTPUTS, 4)}
            assert found.latched == {"/tf_static"} and found.span_ns == source.span_ns
            assert list(found.messages(source.topics)) == list(source.messages()), "byte by byte, at the same times"
            kinds = [message.topic for message in found.messages() if message.kind.endswith(("Image", "3DArray"))]
            messages = list(found.messages({OUTPUTS[0]}))
            results.append(([frame for frame, *_ in seen], [(m.stamp_ns, m.data) for m in messages]))
            assert [name == OUTPUTS[0] for name in kinds] == 4 * ([False] * 6 + [True]), "boxes after their images"
            assert layout_topics(out) == {OUTPUTS[2], *(t for t in source.topics if "tf" not in t)}
    (frames, boxes), (again, same) = results
    assert_same_frames(again, frames)
    assert boxes == same
    text = (tmp_path / "out_copy" / "foxglove.json").read_text()
    assert (f'"followTf": "{given.base_frame}"' in text) and ("base_link" in text) is not own
    rviz = yaml.safe_load((tmp_path / "out_copy" / "detector.rviz").read_text())["Visualization Manager"]
    assert rviz["Global Options"]["Fixed Frame"] == given.fixed_frame
    cameras = [display["Name"] for display in rviz["Displays"] if display["Class"].endswith("/Image")]
    assert cameras == (OWN["cameras"] if own else [camera.lower() for camera in CAMERAS])


def test_a_bag_of_detections_only(bag, tmp_path):
    detect_bag(bag, StandIn(), tmp_path / "out", options(), pictures=False, recording=False)
    with BagReader(tmp_path / "out" / "detections") as found:
        assert found.counts == dict.fromkeys(OUTPUTS, 4)
    assert layout_topics(tmp_path / "out") == {OUTPUTS[2]}


def test_thresholds_limit_what_is_written(bag, tmp_path):
    wanted = {"pictures": False, "json_lines": True}
    summary = detect_bag(bag, StandIn(), tmp_path / "out", options(max_detections=2), **wanted)
    lines = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    assert len(lines) == summary.frames and all(len(json.loads(line)["boxes"]) == 2 for line in lines)
    assert summary.boxes == 8
    summary = detect_bag(bag, StandIn(), tmp_path / "none", options(score_threshold=1.0), pictures=False)
    assert summary.frames == 4 and summary.boxes == 0


def test_a_view_takes_the_frames_with_what_pictures_show(bag, tmp_path):
    seen = []
    wanted = {"pictures": False, "picture_threshold": 0.6, "view": lambda *given: seen.append(given)}
    detector = StandIn()
    summary = detect_bag(bag, detector, tmp_path / "out", options(), **wanted)
    assert [frame for frame, *_ in seen] == detector.frames and not any(truth for *_, truth in seen)
    shown = [found for _, found, _ in seen]
    assert 0 < sum(map(len, shown)) < summary.boxes and all((found.scores >= 0.6).all() for found in shown)


@pytest.mark.parametrize("output_frame", ["", "odom", "map"])
def test_a_submission_from_the_bag_equals_the_direct_one(root, bag, tmp_path, output_frame):
    tables = load_tables(root, "v1.0-mini")
    reader = NuScenesReader(root, "v1.0-mini", scenes=["scene-0103"], tables=tables)
    expected = {
        frame.token: submission_records(StandIn().step(frame)) for frame in reader.frames("scene-0103")
    }
    direct = make_submission(expected, reader.sample_tokens())
    detect_bag(bag, StandIn(), tmp_path / "out", options(output_frame=output_frame), pictures=False)
    found = submission_from_bag(tmp_path / "out" / "detections", tables, list(reader.sample_tokens()))
    assert found["meta"] == direct["meta"] and list(found["results"]) == list(direct["results"])
    for token, records in direct["results"].items():
        for a, b in zip(found["results"][token], records, strict=True):
            assert a["detection_name"] == b["detection_name"]
            # with another output frame, the tilt of the ego does not fit into a yaw
            level = 0.05 if output_frame else 1e-4
            for key in ("translation", "size", "velocity"):
                np.testing.assert_allclose(a[key], b[key], atol=1e-3 if key != "velocity" else 0.5)
            dot = abs(np.dot(a["rotation"], b["rotation"]))
            assert 2 * np.arccos(min(dot, 1.0)) < level


@pytest.mark.sample
def test_ground_truth_recorded_as_detections_gets_the_known_score(sample, tmp_path, capsys):
    """The official mAP of all ground truth of the sample is known: 0.2980."""
    from bevnext_tools.evaluation.metric import evaluate

    class Truth(StandIn):
        def step(self, frame):
            ref = refs[frame.stamp_ns]
            truth = reader.ground_truth(ref)
            boxes = np.nan_to_num(truth.boxes).astype(np.float32)
            scores = np.full(len(boxes), 0.5, np.float32)
            return Detections(
                boxes, scores, truth.labels, truth.class_names, frame.stamp_ns, frame.global_from_ego
            )

    reader = NuScenesReader(sample, "v1.0-mini", scenes=["scene-0103"])
    refs = {ref.stamp_ns: ref for ref in reader.refs("scene-0103")}
    convert_scene(reader.tables, "scene-0103", tmp_path / "bag")
    detect_bag(tmp_path / "bag", Truth(), tmp_path / "out", options(), pictures=False)
    recorded = tmp_path / "out" / "detections"
    submission = submission_of_split(recorded, reader.tables, "mini_val")
    assert sum(map(bool, submission["results"].values())) == 4
    assert evaluate(reader.tables, submission, "mini_val").mean_ap == pytest.approx(0.2980, abs=5e-4)
    assert run_evaluate_bag(recorded, sample, "v1.0-mini", "mini_val", out=tmp_path / "score.json") == 0
    assert "mAP" in capsys.readouterr().out and (tmp_path / "score.json").is_file()


def test_other_names_are_set_by_parameters_and_missing_topics_are_named(bag, tmp_path):
    with pytest.raises(BagError, match=r"no topic /a/image.*It has: /cam_back/camera_info"):
        detect_bag(
            bag, StandIn(), tmp_path / "out", options(cameras=list("abcdef"), image_topics=["{camera}/image"])
        )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def rewrite(bag: Path, path: Path, change) -> Path:
    """A copy of a bag with ``change(topic, message) -> message or None`` applied."""
    with BagReader(bag) as source, BagWriter(path) as writer:
        for item in source.messages():
            message = change(item.topic, item.decode())
            if message is not None:
                writer.write(item.topic, item.kind, message, item.stamp_ns, item.topic in source.latched)
    return path


def test_a_truncated_image_stops_its_frame_or_masks_its_camera(bag, tmp_path):
    first = []

    def damage(topic, message):
        if topic == "/cam_back/image_raw/compressed" and not first:
            first.append(True)
            message.data = message.data[:200]
        return message

    broken = rewrite(bag, tmp_path / "broken", damage)
    summary = detect_bag(broken, StandIn(), tmp_path / "skip", options(), pictures=False)
    assert summary.frames == 3 and summary.drops == {"bad_image": 1}
    assert "cam_back" in summary.warnings[0]
    detector = StandIn()
    summary = detect_bag(broken, detector, tmp_path / "mask", options(missing_camera="mask"), pictures=False)
    assert summary.frames == 4
    assert detector.frames[0].valid.tolist() == [camera != "CAM_BACK" for camera in CAMERAS]
    assert detector.frames[1].valid.all()


def test_a_bag_without_poses_or_complete_frames_is_an_error(bag, tmp_path):
    frozen = rewrite(bag, tmp_path / "no_tf", lambda topic, message: None if topic == "/tf" else message)
    with pytest.raises(BagError, match="no topic /tf"):
        detect_bag(frozen, StandIn(), tmp_path / "a", options())
    silent = rewrite(
        bag,
        tmp_path / "no_infos",
        lambda topic, message: None if topic.endswith("back/camera_info") else message,
    )
    with pytest.raises(BagError, match="no topic /cam_back/camera_info"):
        detect_bag(silent, StandIn(), tmp_path / "b", options())
    with pytest.raises(BagError, match=r"no frame could be used \(transform_not_connected 4\).*'moon'"):
        detect_bag(bag, StandIn(), tmp_path / "c", options(fixed_frame="moon"))
    assert not (tmp_path / "c" / "detections").exists()


def test_evaluating_a_foreign_bag_is_an_error(root, bag, tmp_path):
    tables = load_tables(root, "v1.0-mini")
    tokens = [row["token"] for row in tables.sample]
    with pytest.raises(BagError, match="expected one Detection3DArray topic"):
        submission_from_bag(bag, tables, tokens)
    detect_bag(bag, StandIn(), tmp_path / "out", options(output_frame="cam_front"), pictures=False)
    with pytest.raises(BagError, match="boxes are in 'cam_front'"):
        submission_from_bag(tmp_path / "out" / "detections", tables, tokens)
    assert ModelConfig().anchor_camera == "CAM_FRONT"
