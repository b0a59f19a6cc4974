# SPDX-License-Identifier: Apache-2.0
"""The nuScenes reader: on a made data set whose poses are known by formula, and on real key frames."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyquaternion import Quaternion

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")

from bevnext_core.classes import CAMERAS
from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.datasets.nuscenes_tables import load_tables, split_scenes
from bevnext_core.errors import DatasetError, FrameError
from bevnext_core.geometry import invert_rigid, rigid
from tests.nuscenes_dataroot import (
    DELAY,
    START,
    color_of,
    edit_table,
    ego_pose,
    object_at,
    write_dataroot,
)

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataroot(
        tmp_path_factory.mktemp("made") / "data", {"scene-0103": 3, "scene-0061": 1}, sweeps=4
    )


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A data set that the test may damage."""
    return write_dataroot(tmp_path / "data")


def pose_matrix(stamp_us: int) -> np.ndarray:
    rotation, translation = ego_pose(stamp_us)
    return rigid(rotation.elements, translation)


def first(reader: NuScenesReader) -> FrameRef:
    return reader.refs(reader.scenes[0])[0]


# ------------------------------------------------------------------------------------------------ frames
def test_key_frames_have_each_camera_s_own_stamp_and_pose(made: Path) -> None:
    reader = NuScenesReader(made, VERSION)
    assert reader.scenes == ("scene-0103", "scene-0061")
    assert len(reader) == 4 and len(reader.refs("scene-0103")) == 3
    for number, frame in enumerate(reader.frames("scene-0103")):
        stamp = START + number * 500_000
        assert frame.cameras == CAMERAS
        assert frame.token == f"scene-0103-sample{number}"
        assert frame.stamp_ns == (stamp + DELAY["CAM_FRONT"]) * 1000
        np.testing.assert_allclose(frame.global_from_ego, pose_matrix(stamp + DELAY["CAM_FRONT"]), atol=1e-9)
        assert frame.camera_stamps_ns is not None
        for index, camera in enumerate(CAMERAS):
            assert frame.camera_stamps_ns[index] == (stamp + DELAY[camera]) * 1000
            np.testing.assert_allclose(
                frame.global_from_camera_ego[index], pose_matrix(stamp + DELAY[camera]), atol=1e-9
            )
            image = frame.images[index]
            assert image is not None
            np.testing.assert_allclose(image[45, 80], color_of(camera, 5 * number), atol=3)
    optical_axis = frame.ego_from_camera[CAMERAS.index("CAM_BACK"), :3, 2]
    np.testing.assert_allclose(optical_axis, [-1, 0, 0], atol=1e-9)


def test_cameras_come_in_the_given_order_and_the_anchor_decides_the_ego_frame(made: Path) -> None:
    cameras = ("CAM_BACK", "CAM_FRONT_LEFT")
    reader = NuScenesReader(made, VERSION, scenes=["scene-0061"], cameras=cameras, anchor_camera="CAM_BACK")
    (frame,) = reader.frames("scene-0061")
    start = START + 60_000_000
    assert frame.cameras == cameras and frame.stamp_ns == (start + DELAY["CAM_BACK"]) * 1000
    np.testing.assert_allclose(frame.global_from_ego, pose_matrix(start + DELAY["CAM_BACK"]), atol=1e-9)


def test_sweeps_take_every_anchor_record_and_the_nearest_of_the_others(made: Path) -> None:
    reader = NuScenesReader(made, VERSION, scenes=["scene-0103"], sweeps=True)
    frames = list(reader.frames("scene-0103"))
    assert len(frames) == len(reader) == 11
    assert [frame.token for frame in frames if frame.token] == [f"scene-0103-sample{i}" for i in range(3)]
    assert [bool(frame.token) for frame in frames[:6]] == [True, False, False, False, False, True]
    for number, frame in enumerate(frames):
        assert frame.stamp_ns == (START + number * 100_000) * 1000
        assert frame.camera_stamps_ns is not None
        for index, camera in enumerate(CAMERAS):
            assert frame.camera_stamps_ns[index] == frame.stamp_ns + DELAY[camera] * 1000
            image = frame.images[index]
            assert image is not None
            np.testing.assert_allclose(image[45, 80], color_of(camera, number), atol=3)
    with pytest.raises(DatasetError, match="only key frames are annotated"):
        reader.ground_truth(reader.refs("scene-0103")[1])


def test_sweep_takes_the_record_that_is_nearest_in_time(fresh: Path, tmp_path: Path) -> None:
    root = write_dataroot(tmp_path / "other", {"scene-0103": 2}, sweeps=4)

    def shift(rows: list[dict]) -> None:
        for row in rows:
            if row["calibrated_sensor_token"] == "CAM_BACK" and not row["is_key_frame"]:
                row["timestamp"] += 60_000  # now nearer to the next anchor than to its own

    edit_table(root, "sample_data", shift)
    reader = NuScenesReader(root, VERSION, sweeps=True)
    refs = reader.refs("scene-0103")
    assert refs[2].records["CAM_BACK"]["token"] == "scene-0103-CAM_BACK-1"
    assert refs[2].records["CAM_FRONT"]["token"] == "scene-0103-CAM_FRONT-2"
    assert refs[5].records["CAM_BACK"]["token"] == "scene-0103-CAM_BACK-5"


def test_choice_of_scenes(made: Path) -> None:
    tables = load_tables(made, VERSION)
    assert NuScenesReader(made, VERSION, split="mini_val", tables=tables).scenes == ("scene-0103",)
    assert NuScenesReader(made, VERSION, split="mini_train", tables=tables).scenes == ("scene-0061",)
    reader = NuScenesReader(made, VERSION, scenes=["scene-0061", "scene-0061"], tables=tables)
    assert reader.scenes == ("scene-0061",) and reader.sample_tokens() == ("scene-0061-sample0",)
    assert len(split_scenes("val")) == 150 and len(split_scenes("test")) == 150


# ------------------------------------------------------------------------------------ boxes and points
def test_ground_truth_is_in_the_ego_frame_of_the_anchor(made: Path) -> None:
    reader = NuScenesReader(made, VERSION, scenes=["scene-0103"])
    for number, ref in enumerate(reader.refs("scene-0103")):
        truth = reader.ground_truth(ref)
        assert truth.names == ["car", "pedestrian", "traffic_cone"], "the animal is no detection class"
        assert truth.attributes.tolist() == ["vehicle.moving", "pedestrian.standing", ""]
        assert truth.num_points.tolist() == [10, 12, 14]
        stamp = START + number * 500_000
        rotation, translation = ego_pose(stamp + DELAY["CAM_FRONT"])
        for index in range(3):
            center, heading = object_at(index, stamp, START)
            np.testing.assert_allclose(
                truth.boxes[index, :3], rotation.inverse.rotate(center - translation), atol=1e-6
            )
            ahead = rotation.inverse.rotate(heading.rotate(np.array([1.0, 0, 0])))
            assert truth.boxes[index, 6] == pytest.approx(np.arctan2(ahead[1], ahead[0]), abs=1e-3)
        np.testing.assert_allclose(truth.boxes[0, 3:6], [4.6, 1.9, 1.7])
        velocity = rotation.inverse.rotate(np.array([4.0, 3.0, 0.0]))
        np.testing.assert_allclose(truth.boxes[0, 7:], velocity[:2], atol=0.01)
        np.testing.assert_allclose(truth.boxes[1:, 7:], 0, atol=1e-6)


def test_class_names_decide_labels(made: Path) -> None:
    reader = NuScenesReader(made, VERSION, scenes=["scene-0061"], class_names=("traffic_cone", "car"))
    truth = reader.ground_truth(first(reader))
    assert truth.names == ["car", "traffic_cone"] and truth.labels.tolist() == [1, 0]
    kept = truth.select(truth.labels == 0)
    assert kept.names == ["traffic_cone"] and kept.attributes.tolist() == [""] and len(kept.annotation_tokens) == 1


def test_frame_without_annotations_has_no_boxes(fresh: Path) -> None:
    edit_table(fresh, "sample_annotation", list.clear)
    edit_table(fresh, "instance", list.clear)
    reader = NuScenesReader(fresh, VERSION)
    truth = reader.ground_truth(first(reader))
    assert truth.boxes.shape == (0, 9) and len(truth) == 0


def test_lidar_points_go_through_the_lidar_s_own_pose(made: Path) -> None:
    reader = NuScenesReader(made, VERSION, scenes=["scene-0103"])
    ref = reader.refs("scene-0103")[1]
    raw = np.fromfile(made / "samples" / "LIDAR_TOP" / "scene-0103_005.pcd.bin", np.float32).reshape(-1, 5)[
        :, :3
    ]
    in_ego = raw.astype(float)[:, [1, 0, 2]] * [1, -1, 1] + [0.9, 0.0, 1.8]  # turned by -90 degrees
    stamp = START + 500_000
    transform = invert_rigid(pose_matrix(stamp + DELAY["CAM_FRONT"])) @ pose_matrix(
        stamp + DELAY["LIDAR_TOP"]
    )
    np.testing.assert_allclose(
        reader.lidar_points(ref), in_ego @ transform[:3, :3].T + transform[:3, 3], atol=1e-5
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_bad_lidar_file_is_named(fresh: Path, damage: str) -> None:
    path = fresh / "samples/LIDAR_TOP/scene-0103_000.pcd.bin"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:1001] if damage == "truncated" else b"")
    reader = NuScenesReader(fresh, VERSION)
    with pytest.raises(DatasetError, match=r"LIDAR_TOP: .*scene-0103_000\.pcd\.bin"):
        reader.lidar_points(first(reader))


# -------------------------------------------------------------------------------------------- bad images
@pytest.mark.parametrize("damage", ["missing", "truncated", "other size"])
def test_bad_image_is_named_with_camera(fresh: Path, damage: str) -> None:
    path = fresh / "samples/CAM_BACK/scene-0103_000.jpg"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:400])
    else:
        Image.new("RGB", (80, 45)).save(path)
    reader = NuScenesReader(fresh, VERSION)
    message = {
        "missing": r"CAM_BACK: the image file is missing: .*CAM_BACK/scene-0103_000\.jpg",
        "truncated": r"CAM_BACK \(.*scene-0103_000\.jpg\): the image cannot be decoded",
        "other size": "CAM_BACK: the image is 80x45, but its calibration is for 160x90",
    }[damage]
    with pytest.raises(FrameError, match=message):
        reader.load(first(reader))
    assert reader.load(reader.refs("scene-0103")[1]).token == "scene-0103-sample1"


def test_missing_camera_of_a_sample_is_named(fresh: Path) -> None:
    def drop(rows: list[dict]) -> None:
        rows[:] = [row for row in rows if row["token"] != "scene-0103-CAM_BACK-0"]
        for row in rows:
            row["prev"] = "" if row["prev"] == "scene-0103-CAM_BACK-0" else row["prev"]

    edit_table(fresh, "sample_data", drop)
    reader = NuScenesReader(fresh, VERSION)
    with pytest.raises(FrameError, match="CAM_BACK: sample scene-0103-sample0 has no record of this camera"):
        reader.load(first(reader))


def test_missing_anchor_camera_is_named(fresh: Path) -> None:
    edit_table(
        fresh,
        "sample_data",
        lambda rows: rows.remove(next(r for r in rows if r["token"] == "scene-0061-CAM_FRONT-0")),
    )
    reader = NuScenesReader(fresh, VERSION)
    with pytest.raises(
        DatasetError, match="sample scene-0061-sample0 of scene 'scene-0061' has no record of CAM_FRONT"
    ):
        reader.refs("scene-0061")


def set_field(table: str, token: str, key: str, value: Any) -> Any:
    def change(rows: list[dict]) -> None:
        next(row for row in rows if row["token"] == token)[key] = value

    return table, change


BAD_ROWS = {
    "NaN translation": (
        *set_field("ego_pose", "scene-0103-CAM_BACK-0", "translation", [0, float("nan"), 0]),
        "NaN",
    ),
    "NaN rotation": (
        *set_field("ego_pose", "scene-0103-CAM_BACK-0", "rotation", [float("nan"), 0, 0, 0]),
        "ego pose",
    ),
    "zero rotation": (
        *set_field("ego_pose", "scene-0103-CAM_BACK-0", "rotation", [0, 0, 0, 0]),
        "non-zero norm",
    ),
    "short rotation": (*set_field("calibrated_sensor", "CAM_BACK", "rotation", [1, 0, 0]), "the calibration"),
    "singular": (
        *set_field(
            "calibrated_sensor", "CAM_BACK", "camera_intrinsic", [[0, 0, 80.0], [0, 0, 45.0], [0, 0, 1]]
        ),
        "the intrinsics are singular",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_pose_or_calibration_is_named_with_camera(fresh: Path, case: str) -> None:
    table, change, message = BAD_ROWS[case]
    edit_table(fresh, table, change)
    reader = NuScenesReader(fresh, VERSION)
    with pytest.raises(FrameError, match=f"CAM_BACK: .*{message}"):
        reader.load(first(reader))


# ------------------------------------------------------------------------------------------- bad choices
def test_unknown_scene_lists_what_there_is(made: Path) -> None:
    with pytest.raises(DatasetError, match=r"unknown scene 'scene-9999': .*holds scene-0103, scene-0061"):
        NuScenesReader(made, VERSION, scenes=["scene-9999"])


def test_unknown_version_lists_what_there_is(made: Path) -> None:
    with pytest.raises(DatasetError, match=r"unknown version 'v1\.0-trainval': .*holds v1\.0-mini"):
        NuScenesReader(made, "v1.0-trainval")


def test_unknown_split_lists_what_there_is(made: Path) -> None:
    with pytest.raises(DatasetError, match=r"unknown split 'mini' of v1.0-mini: it has mini_train, mini_val"):
        NuScenesReader(made, VERSION, split="mini")


def test_split_of_another_version_lists_those_that_fit(made: Path) -> None:
    with pytest.raises(DatasetError, match=r"unknown split 'val' of v1.0-mini: it has mini_train, mini_val"):
        NuScenesReader(made, VERSION, split="val")
    with pytest.raises(DatasetError, match=r"unknown split 'mini_val' of v1.0-test: it has test$"):
        split_scenes("mini_val", "v1.0-test")
    with pytest.raises(DatasetError, match=r"unknown split 'mini': there are mini_train, .*, val$"):
        split_scenes("mini", "my-own")


def test_split_that_is_not_here_lists_what_there_is(tmp_path: Path) -> None:
    root = write_dataroot(tmp_path / "data", version="own")
    with pytest.raises(DatasetError, match=r"no scene of the split 'test' is in .*scene-0103"):
        NuScenesReader(root, "own", split="test")


def test_scenes_and_split_exclude_each_other(made: Path) -> None:
    with pytest.raises(DatasetError, match="not both"):
        NuScenesReader(made, VERSION, split="mini_val", scenes=["scene-0103"])


def test_scene_that_was_not_chosen(made: Path) -> None:
    with pytest.raises(DatasetError, match="scene 'scene-0061' was not chosen; the reader has scene-0103"):
        NuScenesReader(made, VERSION, scenes=["scene-0103"]).refs("scene-0061")


def test_unknown_camera_lists_what_there_is(made: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no camera CAM_TOP; it has CAM_BACK, .*CAM_FRONT_RIGHT"):
        NuScenesReader(made, VERSION, cameras=(*CAMERAS, "CAM_TOP"))
    with pytest.raises(DatasetError, match="the anchor camera 'CAM_FRONT' is not one of CAM_BACK"):
        NuScenesReader(made, VERSION, cameras=("CAM_BACK",))


def test_empty_scene_is_named(tmp_path: Path) -> None:
    root = write_dataroot(tmp_path / "data", {"scene-0103": 1, "scene-0061": 0})
    with pytest.raises(DatasetError, match=r"scene 'scene-0061' of .* is empty"):
        NuScenesReader(root, VERSION)
    assert len(NuScenesReader(root, VERSION, scenes=["scene-0103"])) == 1


def test_missing_dataroot_and_dataroot_without_tables(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no such dataroot: .*gone"):
        load_tables(tmp_path / "gone", VERSION)
    with pytest.raises(DatasetError, match="holds no nuScenes tables"):
        load_tables(tmp_path, VERSION)


def test_damaged_tables_are_named(fresh: Path) -> None:
    path = fresh / VERSION / "ego_pose.json"
    good = path.read_text()
    path.write_text(good[: len(good) // 2])
    with pytest.raises(DatasetError, match=r"the table 'ego_pose' .*v1.0-mini/ego_pose.json. is no valid JSON"):
        load_tables(fresh, VERSION)
    path.unlink()
    with pytest.raises(DatasetError, match=r"the table 'ego_pose' is missing: no file .*v1.0-mini/ego_pose.json"):
        load_tables(fresh, VERSION)
    path.write_text(good)
    edit_table(fresh, "sample_data", lambda rows: rows[0].update(calibrated_sensor_token="gone"))
    with pytest.raises(DatasetError, match=r"'calibrated_sensor_token' is 'gone'; it must be the token of a row of"):
        load_tables(fresh, VERSION)


def test_row_that_is_missing_is_named(fresh: Path) -> None:
    edit_table(fresh, "ego_pose", list.clear)
    reader = NuScenesReader(fresh, VERSION)
    with pytest.raises(FrameError, match="the table 'ego_pose' has no row with token 'scene-0103-CAM"):
        reader.load(first(reader))


def test_without_the_devkit_the_error_says_what_to_install(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(DatasetError, match=r"pip install 'bevnext_ros\[nuscenes\]'"):
        load_tables(made, VERSION)


def test_nothing_is_printed(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reader = NuScenesReader(made, VERSION)
    reader.ground_truth(first(reader))
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


# ------------------------------------------------------------------------------------------ real frames
@pytest.mark.sample
def test_real_key_frames(sample: Path) -> None:
    reader = NuScenesReader(sample, VERSION)
    counts = [len(reader.ground_truth(ref)) for ref in reader.refs("scene-0103")]
    assert counts == [23, 30, 33, 38]
    frames = list(reader.frames("scene-0103"))
    steps = np.diff([frame.stamp_ns for frame in frames])
    assert (np.abs(steps - 5e8) < 5e6).all()
    for frame in frames:
        assert {image.shape for image in frame.images if image is not None} == {(900, 1600, 3)}
        assert (
            frame.camera_stamps_ns is not None and np.abs(frame.camera_stamps_ns - frame.stamp_ns).max() < 6e7
        )
    reader = NuScenesReader(sample, VERSION, split="mini_train", tables=reader.tables)
    (ref,) = reader.refs("scene-0061")
    points = reader.lidar_points(ref)
    # the road lies at z = 0 of the ego frame
    near = points[(np.abs(points[:, 1]) < 2) & (points[:, 0] > 5) & (points[:, 0] < 12)]
    assert abs(np.median(near[:, 2])) < 0.15
    truth = reader.ground_truth(ref)
    inside = [np.count_nonzero(_inside(points, box)) for box in truth.boxes]
    rows = [reader.tables.get("sample_annotation", token) for token in truth.annotation_tokens]
    counted = np.array([row["num_lidar_pts"] for row in rows])
    seen = counted > 20
    ratio = np.array(inside)[seen] / counted[seen]
    assert seen.sum() > 5 and np.median(ratio) == pytest.approx(1.0, abs=0.1)


def _inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    turn = Quaternion(axis=[0, 0, 1], radians=-box[6]).rotation_matrix
    return (np.abs((points - box[:3]) @ turn.T) <= box[3:6] / 2).all(1)


@pytest.mark.sample
def test_absent_lidar_file_of_a_real_key_frame_is_named(sample: Path) -> None:
    reader = NuScenesReader(sample, VERSION, scenes=["scene-0103"])
    with pytest.raises(DatasetError, match=r"LIDAR_TOP: the file is missing: .*1533151603547590\.pcd\.bin"):
        reader.lidar_points(first(reader))


@pytest.mark.sample
def test_version_is_the_folder_with_the_tables(sample: Path, tmp_path: Path) -> None:
    for name in ("samples", "sweeps", "maps"):
        (tmp_path / name).symlink_to(sample / name)
    shutil.copytree(sample / VERSION, tmp_path / "v1.0-own")
    assert len(NuScenesReader(tmp_path, "v1.0-own")) == 5
