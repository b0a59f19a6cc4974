# SPDX-License-Identifier: Apache-2.0
"""What is in a converted bag equals the data set's tables and files; bad data and existing bags are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bevnext_core.classes import CAMERAS
from bevnext_core.datasets.nuscenes_tables import load_tables
from bevnext_core.errors import DatasetError
from bevnext_core.geometry import invert_rigid, rigid
from bevnext_ros.bags import nuscenes_to_bag
from bevnext_ros.bags.nuscenes_to_bag import convert_scene, image_topic, info_topic, verify
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagError, BagWriter
from bevnext_ros.messages.conversions import (
    calibration_from_camera_info,
    cloud_records,
    detection_rows,
    read_transforms,
    stamp_ns,
)
from bevnext_ros.streams.transform_buffer import TransformBuffer
from tests.nuscenes_dataroot import write_dataroot

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    root = write_dataroot(tmp_path_factory.mktemp("data") / "root", {"scene-0103": 3}, sweeps=2)
    return load_tables(root, "v1.0-mini")


def read_all(path: Path) -> dict[str, list]:
    messages: dict[str, list] = {}
    with BagReader(path) as bag:
        for message in bag.messages():
            messages.setdefault(message.topic, []).append((message.stamp_ns, message.decode()))
    return messages


def transforms_of(messages: dict[str, list]) -> TransformBuffer:
    buffer = TransformBuffer(keep=1000.0)
    for topic in ("/tf_static", "/tf"):
        for _, message in messages[topic]:
            for item in read_transforms(message):
                buffer.add(*item, topic == "/tf_static")
    assert buffer.drops.total == 0
    return buffer


def check_cameras(tables, scene: str, messages: dict[str, list], sweeps: bool) -> int:
    """Every image byte, stamp, intrinsic and pose equals the tables; returns the number of images."""
    scene_token = next(row["token"] for row in tables.scene if row["name"] == scene)
    samples = {row["token"] for row in tables.sample if row["scene_token"] == scene_token}
    buffer = transforms_of(messages)
    count = 0
    for camera in CAMERAS:
        rows = [r for r in tables.sample_data if r["channel"] == camera and r["sample_token"] in samples]
        rows = sorted((r for r in rows if sweeps or r["is_key_frame"]), key=lambda r: r["timestamp"])
        images, infos = messages[image_topic(camera)], messages[info_topic(camera)]
        assert [stamp for stamp, _ in images] == [row["timestamp"] * 1000 for row in rows]
        for row, (_, image), (_, info) in zip(rows, images, infos, strict=True):
            stamp = row["timestamp"] * 1000
            assert stamp_ns(image.header) == stamp_ns(info.header) == stamp
            assert bytes(image.data) == (Path(tables.dataroot) / row["filename"]).read_bytes()
            assert image.header.frame_id == camera.lower()
            sensor = tables.get("calibrated_sensor", row["calibrated_sensor_token"])
            calibration = calibration_from_camera_info(info)
            np.testing.assert_array_equal(calibration.intrinsics, sensor["camera_intrinsic"])
            assert calibration.size == (row["width"], row["height"])
            pose = tables.get("ego_pose", row["ego_pose_token"])
            expected = rigid(pose["rotation"], pose["translation"])
            np.testing.assert_allclose(
                buffer.lookup("map", "base_link", stamp).transform, expected, atol=1e-9
            )
            expected = expected @ rigid(sensor["rotation"], sensor["translation"])
            found = buffer.lookup("map", camera.lower(), stamp).transform
            np.testing.assert_allclose(found, expected, atol=1e-9)
            count += 1
    return count


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("sweeps", [False, True])
def test_round_trip(synthetic, tmp_path, storage, sweeps):
    done = convert_scene(
        synthetic,
        "scene-0103",
        tmp_path / "bag",
        storage=storage,
        sweeps=sweeps,
        lidar=True,
        ground_truth=True,
    )
    verify(done)
    messages = read_all(tmp_path / "bag")
    assert check_cameras(synthetic, "scene-0103", messages, sweeps) == 6 * (7 if sweeps else 3)
    files = list((tmp_path / "bag").iterdir())
    assert any(file.suffix == (".mcap" if storage == "mcap" else ".db3") for file in files)


def test_lidar_and_ground_truth_equal_the_tables(synthetic, tmp_path):
    convert_scene(synthetic, "scene-0103", tmp_path / "bag", lidar=True, ground_truth=True)
    messages = read_all(tmp_path / "bag")
    samples = sorted(synthetic.sample, key=lambda row: row["timestamp"])
    assert len(messages["/ground_truth"]) == len(samples)
    for sample, (stamp, truth) in zip(samples, messages["/ground_truth"], strict=True):
        assert stamp == stamp_ns(truth.header) == sample["timestamp"] * 1000
        assert truth.header.frame_id == "map"
        rows = [synthetic.get("sample_annotation", token) for token in sample["anns"]]
        for row, item, (box, _, _) in zip(rows, truth.detections, detection_rows(truth), strict=True):
            np.testing.assert_allclose(box[:3], row["translation"])
            np.testing.assert_allclose(box[[4, 3, 5]], row["size"])
            q = item.bbox.center.orientation
            np.testing.assert_allclose([q.w, q.x, q.y, q.z], row["rotation"])
            assert item.id == row["instance_token"]
        names = [item.results[0].hypothesis.class_id for item in truth.detections]
        assert {"car", "pedestrian", "traffic_cone"} <= set(names)
    lidar = synthetic.get("sample_data", samples[0]["data"]["LIDAR_TOP"])
    points = np.fromfile(Path(synthetic.dataroot) / lidar["filename"], np.float32).reshape(-1, 5)
    records = cloud_records(messages["/lidar_top/points"][0][1])
    np.testing.assert_array_equal(np.stack([records[n] for n in records.dtype.names], 1), points)


def test_static_transforms_are_latched_and_types_carry_their_hashes(synthetic, tmp_path):
    convert_scene(synthetic, "scene-0103", tmp_path / "bag", ground_truth=True)
    with BagReader(tmp_path / "bag") as bag:
        assert bag.latched == {"/tf_static"}
        # as published by the distributions (rihs01 of their own definitions)
        official = {
            "/tf": "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
            image_topic(
                "CAM_FRONT"
            ): "RIHS01_15640771531571185e2efc8a100baf923961a4d15d5569652e6cb6691e8e371a",
            "/ground_truth": "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
        }
        assert {topic: bag.hashes[topic] for topic in official} == official


def test_an_existing_bag_is_never_overwritten(synthetic, tmp_path):
    (tmp_path / "bag").mkdir()
    with pytest.raises(BagError, match="exists"):
        convert_scene(synthetic, "scene-0103", tmp_path / "bag")
    assert list((tmp_path / "bag").iterdir()) == []


def test_a_missing_file_names_itself_and_leaves_nothing(synthetic, tmp_path):
    tables = load_tables(write_dataroot(tmp_path / "root", {"scene-0103": 2}), "v1.0-mini")
    victim = next(r for r in tables.sample_data if r["channel"] == "CAM_BACK")["filename"]
    (Path(tables.dataroot) / victim).unlink()
    with pytest.raises(DatasetError, match=rf"CAM_BACK.*{Path(victim).name}"):
        convert_scene(tables, "scene-0103", tmp_path / "out" / "bag")
    assert list((tmp_path / "out").iterdir()) == []


def test_verification_notices_a_changed_byte_and_a_lost_message(synthetic, tmp_path):
    done = convert_scene(synthetic, "scene-0103", tmp_path / "bag")
    key = next(key for key in done.digests if key[0] == image_topic("CAM_FRONT"))
    right = done.digests[key]
    done.digests[key] = "0" * 64
    with pytest.raises(BagError, match=f"{image_topic('CAM_FRONT')} at {key[1]} ns"):
        verify(done)
    done.digests[key] = right
    done.counts["/tf"] += 1
    with pytest.raises(BagError, match="were written"):
        verify(done)


def test_the_command(synthetic, tmp_path, capsys):
    arguments = ["--dataroot", str(synthetic.dataroot), "--out", str(tmp_path)]
    assert nuscenes_to_bag.main([*arguments, "--scene", "scene-9999"]) == 2
    assert "unknown scene 'scene-9999'" in capsys.readouterr().err
    assert nuscenes_to_bag.main(arguments) == 0
    assert "verified" in capsys.readouterr().out
    assert nuscenes_to_bag.main(arguments) == 2
    error = capsys.readouterr().err
    assert "exists" in error and error.count("\n") == 1
    assert nuscenes_to_bag.main(["--dataroot", str(tmp_path / "no"), "--out", str(tmp_path)]) == 2


def test_damaged_and_missing_bags_are_errors(tmp_path, synthetic):
    with pytest.raises(BagError, match="no such bag"), BagReader(tmp_path / "none"):
        pass
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metadata.yaml").write_text("no bag")
    with pytest.raises(BagError, match="cannot be read"), BagReader(tmp_path / "empty"):
        pass
    convert_scene(synthetic, "scene-0103", tmp_path / "bag")
    file = next((tmp_path / "bag").glob("*.db3"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BagError), BagReader(tmp_path / "bag") as bag:
        list(bag.messages())
    with pytest.raises(BagError, match="mcap or sqlite3"):
        BagWriter(tmp_path / "other", storage="zip")
    with pytest.raises(BagError, match=r"one of any, humble, .*got 'noetic'"):
        BagWriter(tmp_path / "other", "noetic")


@pytest.mark.sample
def test_real_scenes_equal_the_tables_and_the_devkit(sample, tmp_path):
    """Real JPEGs; transforms looked up from the bag against the devkit's own chain for a box."""
    tables = load_tables(sample, "v1.0-mini")
    verify(convert_scene(tables, "scene-0103", tmp_path / "bag", ground_truth=True))
    messages = read_all(tmp_path / "bag")
    assert check_cameras(tables, "scene-0103", messages, False) == 24
    buffer = transforms_of(messages)
    row = next(r for r in tables.sample_data if r["channel"] == "CAM_BACK_LEFT" and r["is_key_frame"])
    row = next(r for r in tables.sample_data if r["filename"].endswith("CAM_BACK_LEFT__1533151604047405.jpg"))
    _, boxes, _ = tables.get_sample_data(row["token"])
    assert boxes
    camera_from_map = invert_rigid(buffer.lookup("map", "cam_back_left", row["timestamp"] * 1000).transform)
    for box in boxes:
        in_map = np.array(tables.get("sample_annotation", box.token)["translation"])
        np.testing.assert_allclose((camera_from_map @ [*in_map, 1])[:3], box.center, atol=1e-6)


@pytest.mark.sample
def test_absent_lidar_files_of_the_sample_are_an_error(sample, tmp_path):
    tables = load_tables(sample, "v1.0-mini")
    with pytest.raises(DatasetError, match="LIDAR_TOP: the file is missing"):
        convert_scene(tables, "scene-0103", tmp_path / "bag", lidar=True)
