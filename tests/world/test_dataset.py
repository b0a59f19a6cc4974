# SPDX-License-Identifier: Apache-2.0
"""Synthetic data sets on disk: the devkit reads and scores them, they are as hard as promised, and repeatable."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from bevnext_core.boxes import box_corners
from bevnext_core.classes import CAMERAS, CLASSES
from bevnext_core.datasets.nuscenes import LIDAR, NuScenesReader
from bevnext_core.errors import DatasetError
from bevnext_core.geometry import invert_rigid, project
from bevnext_tools.cli.main import main
from bevnext_tools.evaluation.metric import evaluate
from bevnext_world.cli.synthesize import image_size
from bevnext_world.recording.generate import MANIFEST, Order, generate, shots
from bevnext_world.recording.rig import build_rig
from bevnext_world.recording.splits import scene_seed
from bevnext_world.recording.stage import Stage
from bevnext_world.recording.writer import visibility_level
from bevnext_world.streets.scenario import FIRST_KEY as KEY_TIME
from bevnext_world.streets.scenario import build_scenario
from tests.tools.test_evaluation import perfect
from tests.world.difficulty import RANGES, Difficulty, measure

VERSION, SPLIT = "v1.0-trainval", "val"
SCENES, KEYS = 5, 3


def order(out: Path, **changes: Any) -> Order:
    values: dict[str, Any] = {"split": "mini_val", "seed": 3, "scenes": 1, "image_size": (64, 36)}
    return Order(out, **{**values, "sweeps": True, "key_frames": 2, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small split: the beginnings of five scenes, small images."""
    folder = tmp_path_factory.mktemp("synthetic")
    small = order(
        folder, split=SPLIT, scenes=SCENES, image_size=(240, 136), sweeps=False, key_frames=KEYS, seed=5
    )
    assert generate(small, workers=2) == (SCENES, 0)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene of two key frames with sweeps, made by one process."""
    folder = tmp_path_factory.mktemp("tiny")
    generate(order(folder))
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- how hard it is ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def difficulty(root: Path) -> Difficulty:
    return measure((root / "parts").rglob("*.json"))


def test_the_world_is_as_hard_as_promised(difficulty: Difficulty) -> None:
    assert difficulty.key_frames == SCENES * KEYS
    assert difficulty.objects >= 25, str(difficulty)
    assert difficulty.far >= 0.40, str(difficulty)
    assert difficulty.occluded >= 0.25, str(difficulty)
    assert min(difficulty.sectors) >= 0.08, str(difficulty)
    assert set(difficulty.classes) == set(CLASSES)
    assert min(difficulty.classes.values()) > 0, str(difficulty)


def test_difficulty_counts_what_the_devkit_scores(root: Path, difficulty: Difficulty) -> None:
    from nuscenes.eval.common.config import config_factory

    assert config_factory("detection_cvpr_2019").class_range == RANGES
    reader = NuScenesReader(root, VERSION, split=SPLIT)
    found = 0
    for scene in reader.scenes:
        for ref in reader.refs(scene):
            truth = reader.ground_truth(ref)
            # The ego frame here is the front camera's, 35 ms before the lidar's: borders shift by half a metre.
            distance = np.hypot(*truth.boxes[:, :2].T)
            found += int((truth.num_points[distance < [RANGES[n] for n in truth.names]] > 0).sum())
    assert found / difficulty.key_frames == pytest.approx(difficulty.objects, rel=0.03)


# --- the official tools --------------------------------------------------------------------------------------


def test_the_devkit_loads_it_without_a_word(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from nuscenes.nuscenes import NuScenes

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = NuScenes(VERSION, str(root), verbose=False)
        for sample in tables.sample:
            assert set(sample["data"]) == {*CAMERAS, LIDAR}
        for name in tables.table_names:
            tokens = [row["token"] for row in getattr(tables, name)]
            assert len(set(tokens)) == len(tokens)
        for row in tables.map:
            pose = tables.get("ego_pose", tables.sample_data[0]["token"])
            assert row["mask"].mask().max() == 255 and pose["translation"][2] == 0
    assert capfd.readouterr() == ("", "")


def test_the_ego_drives_on_the_map(root: Path) -> None:
    from nuscenes.nuscenes import NuScenes

    tables = NuScenes(VERSION, str(root), verbose=False)
    for scene in tables.scene:
        mask = tables.get("map", tables.get("log", scene["log_token"])["map_token"])["mask"]
        sample = tables.get("sample", scene["first_sample_token"])
        for token in sample["data"].values():
            x, y, _ = tables.get("ego_pose", token)["translation"]
            assert mask.is_on_mask(x, y)


def test_chains_link_forth_and_back(tiny: Path) -> None:
    tables = {path.stem: json.loads(path.read_text()) for path in (tiny / "v1.0-mini").glob("*.json")}
    for name in ("sample", "sample_data", "sample_annotation"):
        rows = {row["token"]: row for row in tables[name]}
        for row in rows.values():
            if row["next"]:
                following = rows[row["next"]]
                assert following["prev"] == row["token"]
                if name == "sample_data":
                    assert following["timestamp"] > row["timestamp"]
                    assert following["calibrated_sensor_token"] == row["calibrated_sensor_token"]
    counts = {channel: 0 for channel in (*CAMERAS, LIDAR)}
    for row in tables["sample_data"]:
        counts[row["filename"].split("/")[1]] += 1
        assert (tiny / row["filename"]).is_file()
        assert row["filename"].startswith("samples/" if row["is_key_frame"] else "sweeps/")
    assert counts == {**dict.fromkeys(CAMERAS, 7), LIDAR: 2}
    for instance in tables["instance"]:
        chain = [row for row in tables["sample_annotation"] if row["instance_token"] == instance["token"]]
        assert len(chain) == instance["nbr_annotations"]
        assert chain[0]["token"] == instance["first_annotation_token"] and not chain[0]["prev"]


def test_perfect_predictions_score_the_maximum(root: Path, tmp_path: Path) -> None:
    reader = NuScenesReader(root, VERSION, split=SPLIT)
    path = perfect(reader, tmp_path / "perfect.json")
    result = evaluate(reader.tables, path, SPLIT)
    assert result.mean_ap > 0.99 and result.nd_score > 0.99
    for errors in result.summary["label_tp_errors"].values():
        assert np.nan_to_num(errors["vel_err"]) < 0.02 and np.nan_to_num(errors["attr_err"]) == 0


def test_check_calibration_draws_it(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = NuScenesReader(root, VERSION, split=SPLIT)
    arguments = ["--dataroot", str(root), "--version", VERSION, "--scene", reader.scenes[0], "--frame", "2"]
    assert main(["check-calibration", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "lidar points" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


# --- sensors and annotations agree ---------------------------------------------------------------------------


def test_lidar_points_lie_in_the_boxes_that_count_them(root: Path) -> None:
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    tables = NuScenes(VERSION, str(root), verbose=False)
    compared = 0
    for sample in tables.sample[:: KEYS // 2]:
        path, boxes, _ = tables.get_sample_data(sample["data"][LIDAR])
        points = LidarPointCloud.from_file(path).points
        for box in boxes:
            counted = tables.get("sample_annotation", box.token)["num_lidar_pts"]
            # The surface touches the box: rounding needs a millimetre. Points of a tree's crown may be inside too.
            box.wlh = box.wlh + 0.002
            inside = int(points_in_box(box, points[:3]).sum())
            assert inside >= counted
            compared += inside == counted
    total = sum(len(sample["anns"]) for sample in tables.sample[:: KEYS // 2])
    assert compared > 0.7 * total > 100


def test_lidar_depth_is_that_of_the_image(root: Path) -> None:
    """Where a beam ends on an object that stands still, its depth in a camera is the box's, within the box."""
    reader = NuScenesReader(root, VERSION, split=SPLIT)
    ref = reader.refs(reader.scenes[0])[1]
    frame, points = reader.load(ref), reader.lidar_points(ref)
    ground = points[np.abs(points[:, 2]) < 0.005]
    assert len(ground) > 0.2 * len(points), "flat ground is at z = 0"
    assert points[:, 2].min() > -0.01
    seen = 0
    for i in range(len(CAMERAS)):
        camera_from_ego = invert_rigid(
            invert_rigid(frame.global_from_ego) @ frame.global_from_camera_ego[i] @ frame.ego_from_camera[i]
        )
        in_camera = ground @ camera_from_ego[:3, :3].T + camera_from_ego[:3, 3]
        pixels, depth = project(in_camera, frame.intrinsics[i])
        width, height = frame.image_sizes[i]
        seen += int(((depth > 1) & (pixels >= 0).all(-1) & (pixels < [width, height]).all(-1)).sum())
    assert seen > 0.3 * len(ground)


def test_objects_are_where_their_boxes_are_in_the_images(root: Path) -> None:
    """Pixels of an object lie within its annotated box, projected as the tables say; and fill it near by."""
    reader = NuScenesReader(root, VERSION, split=SPLIT)
    world, look = scene_seed(SPLIT, 5, 0).spawn(2)
    stage = Stage(build_scenario(world, painted=False), build_rig((240, 136)), look, supersample=1)
    ref = reader.refs(reader.scenes[0])[2]
    frame, truth = reader.load(ref), reader.ground_truth(ref)
    still = {}
    for box in truth.boxes:
        place = (frame.global_from_ego @ [*box[:3], 1.0])[:2] + stage.scenario.site.origin
        distances = [np.hypot(*(actor.poses(1.1)[:2] - place)) for actor in stage.scenario.actors]
        nearest = int(np.argmin(distances))
        if stage.scenario.actors[nearest].static:
            still[nearest + 1] = box
    assert len(still) > 10
    filled = []
    for i, camera in enumerate(stage.rig.cameras):
        time = KEY_TIME + 2 * 0.5 + camera.delay
        camera_from_world = invert_rigid(stage.world_from_ego(time) @ camera.ego_from_camera)
        image = stage.renderer.render(stage.instances(time), camera.intrinsics, camera_from_world, 240, 136)
        camera_from_ego = invert_rigid(
            invert_rigid(frame.global_from_ego) @ frame.global_from_camera_ego[i] @ frame.ego_from_camera[i]
        )
        for number, box in still.items():
            corners = box_corners(box[None])[0] @ camera_from_ego[:3, :3].T + camera_from_ego[:3, 3]
            rows, columns = np.nonzero(image.ids == number)
            if not len(rows) or corners[:, 2].min() < 0.5:
                continue
            outline = cv2.convexHull(project(corners, frame.intrinsics[i])[0].astype(np.float32))
            for u, v in zip(columns.tolist(), rows.tolist()):
                assert cv2.pointPolygonTest(outline, (u, v), True) > -1.0
            alone = image.pixels[number][1]
            if alone > 20 and outline.min() > 0 and (outline.max((0, 1)) < (239, 135)).all():
                filled.append(alone / cv2.contourArea(outline))
    assert len(filled) >= 5 and min(filled) > 0.1 and np.mean(filled) > 0.4, filled


def test_annotated_velocities_are_true(root: Path) -> None:
    reader = NuScenesReader(root, VERSION, split=SPLIT)
    parked = moving = 0
    for scene in reader.scenes:
        truth = reader.ground_truth(reader.refs(scene)[1])
        speed = np.hypot(*truth.boxes[:, 7:9].T)
        for attribute, value in zip(truth.attributes, speed):
            if np.isnan(value):
                continue  # annotated once
            if attribute == "vehicle.parked":
                assert value < 0.01
                parked += 1
            elif attribute == "vehicle.moving" and value > 0.8:
                moving += 1
    assert parked > 20 and moving > 20


def test_each_camera_has_its_own_stamp_and_pose(tiny: Path) -> None:
    reader = NuScenesReader(tiny, "v1.0-mini", sweeps=True)
    refs = reader.refs(reader.scenes[0])
    assert [ref.is_key for ref in refs] == [True, *[False] * 5, True]
    frame = reader.load(refs[0])
    by_time = [CAMERAS[i] for i in np.argsort(frame.camera_stamps_ns)]
    expected = sorted(build_rig().cameras, key=lambda camera: camera.delay)
    assert by_time == [camera.name for camera in expected]
    interval = np.diff([ref.stamp_ns for ref in refs]) * 1e-9
    assert interval == pytest.approx(1 / 12, abs=1e-5)
    assert frame.images[0].shape == (36, 64, 3)


def test_visibility_levels() -> None:
    assert [visibility_level(seen, 100) for seen in (0, 39, 40, 59, 60, 79, 80, 100)] == list("11223344")
    assert visibility_level(0, 0) == "1"


# --- repeatable, resumable, careful --------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tiny: Path, tmp_path: Path) -> None:
    generate(order(tmp_path / "again"), workers=2)
    assert digests(tmp_path / "again") == digests(tiny)


def test_another_seed_gives_other_images(tiny: Path, tmp_path: Path) -> None:
    generate(order(tmp_path / "other", seed=4, key_frames=1, sweeps=False))
    for path in (tmp_path / "other" / "samples").rglob("*.jpg"):
        assert path.read_bytes() != (tiny / path.relative_to(tmp_path / "other")).read_bytes()
        with Image.open(path) as image:
            assert image.size == (64, 36)


def test_what_is_finished_is_not_made_again(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    steps: list[int] = []
    small = {"key_frames": 1, "sweeps": False, "scenes": 1}
    assert generate(order(folder, **small)) == (1, 0)
    before = {path: path.stat().st_mtime_ns for path in (folder / "samples").rglob("*.*")}
    assert generate(order(folder, **{**small, "scenes": 2}), progress=steps.append) == (1, 1)
    assert sum(steps) == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert len(json.loads((folder / "v1.0-mini" / "scene.json").read_text())) == 2
    # A scene whose part is missing was interrupted: it is made anew, to the same bytes.
    whole = digests(folder)
    part = next((folder / "parts").rglob("*.json"))
    part.unlink()
    next((folder / "samples" / "CAM_FRONT").iterdir()).write_bytes(b"half")
    assert generate(order(folder, **{**small, "scenes": 2}))[0] == 1
    assert digests(folder) == whole


def test_splits_of_one_version_share_a_folder(tmp_path: Path) -> None:
    small = {"key_frames": 1, "sweeps": False, "image_size": (32, 32)}
    generate(order(tmp_path, **small))
    generate(order(tmp_path, **{**small, "image_size": (64, 36), "split": "mini_train"}))
    reader = NuScenesReader(tmp_path, "v1.0-mini")
    assert len(reader.scenes) == 2
    for split, size in (("mini_val", (32, 32)), ("mini_train", (64, 36))):
        part = NuScenesReader(tmp_path, "v1.0-mini", split=split)
        frame = part.load(part.refs(part.scenes[0])[0])
        assert tuple(frame.image_sizes[0]) == size and frame.images[0].shape[:2] == size[::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 9}, "with seed 3 \\(asked for: 9\\)"),
        ({"sweeps": False}, "sweeps True \\(asked for: False\\)"),
        ({"image_size": (800, 450)}, "image_size \\[64, 36\\]"),
        ({"key_frames": 3}, "key_frames 2"),
    ],
)
def test_other_parameters_are_refused(tiny: Path, change: dict[str, Any], message: str) -> None:
    before = digests(tiny)
    with pytest.raises(DatasetError, match=message):
        generate(order(tiny, **change))
    assert digests(tiny) == before


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="is not empty and was not made by this command"):
        generate(order(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(DatasetError, match="is a file"):
        generate(order(tmp_path / "notes.txt"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / MANIFEST).write_text("{")
    with pytest.raises(DatasetError, match="damaged"):
        generate(order(tmp_path / "d"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["synthesize", "--out", str(tmp_path / "x"), "--seed", "0"]
    assert main([*common, "--scenes", "3", "--split", "mini_val"]) == 2
    assert "has 1 to 2 scenes, not 3" in capsys.readouterr().err
    assert main([*common, "--scenes", "1", "--split", "nowhere"]) == 2
    assert "unknown split 'nowhere'" in capsys.readouterr().err
    assert main([*common, "--scenes", "1", "--workers", "0"]) == 2
    assert main([*common[:-1], "-1", "--scenes", "1"]) == 2
    assert not (tmp_path / "x").exists()
    for text in ("800", "800x", "0x450", "99999x10", "axb"):
        with pytest.raises(SystemExit):
            main([*common, "--scenes", "1", "--image-size", text])
    assert image_size("1600x900") == (1600, 900)


def test_sweeps_belong_to_the_key_frame_that_follows(tmp_path: Path) -> None:
    made = list(shots(order(tmp_path), range(2)))
    front = sorted((shot.offset, shot.key, shot.is_key) for shot in made if shot.channel == "CAM_FRONT")
    assert [(key, is_key) for _, key, is_key in front] == [
        *((0, True), (1, False), (1, False), (1, False), (1, False), (1, False), (1, True))
    ]
