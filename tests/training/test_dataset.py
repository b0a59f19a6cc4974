# SPDX-License-Identifier: Apache-2.0
"""Index file and samples, on a made data set and on the real key frames."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import training.data.index as index_module
from bevnext_core.config import ModelConfig, TaskConfig, load_config
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.errors import DatasetError
from tests.nuscenes_dataroot import edit_table, write_dataroot
from tests.paths import ROOT
from tests.training.tiny import with_training
from training.data.dataset import SampleRequest, TrainingDataset, join_samples
from training.data.index import DatasetIndex, index_path, open_index

SMALL = with_training(load_config(ROOT / "config/model/small_stage2.yaml"), augmentation=False)
ONE_FRAME = with_training(load_config(ROOT / "config/model/small_stage1.yaml"), augmentation=False)


@pytest.fixture
def dataroot(tmp_path: Path) -> Path:
    return write_dataroot(tmp_path / "data", {"scene-0103": 4, "scene-0061": 1})


def make(dataroot: Path, config: ModelConfig = SMALL, split: Any = "mini_val", **training: Any) -> TrainingDataset:
    index = open_index(dataroot, "v1.0-mini", dataroot.parent / "cache", progress=False)
    return TrainingDataset(index, with_training(config, **training), split)


def request(frame: int, position: int = 0, epoch: int = 0) -> SampleRequest:
    return SampleRequest((frame,), 7, epoch, position)


# ---------------------------------------------------------------------------------------------- index
def test_the_index_is_built_once_and_again_when_something_changes(
    dataroot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = []
    build = index_module._build

    def counted(*args: Any) -> DatasetIndex:
        builds.append(1)
        return build(*args)

    monkeypatch.setattr(index_module, "_build", counted)
    cache = dataroot.parent / "cache"

    def open_it() -> DatasetIndex:
        return open_index(dataroot, "v1.0-mini", cache, progress=False)

    first = open_it()
    second = open_it()
    assert len(builds) == 1
    for name in index_module._ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)

    edit_table(dataroot, "sample_annotation", lambda rows: rows[0].update(num_lidar_pts=0, num_radar_pts=0))
    assert open_it().points.tolist().count(0) == 1 and len(builds) == 2
    os.utime(dataroot / "v1.0-mini" / "sample.json", ns=(1, 1))
    open_it()
    assert len(builds) == 3
    changed = dataroot.parent / "boxes.py"
    source = next(path for path in index_module.SOURCES if path.name == changed.name)
    changed.write_bytes(source.read_bytes() + b"# another line\n")
    sources = [changed if path == source else path for path in index_module.SOURCES]
    monkeypatch.setattr(index_module, "SOURCES", sources)
    open_it()
    assert len(builds) == 4

    path = index_path(dataroot.resolve(), "v1.0-mini", cache)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert len(open_it()) == 5 and len(builds) == 5
    assert [p.name for p in cache.iterdir()] == [path.name]  # nothing half-written is left


def test_all_code_that_fills_the_index_is_part_of_its_key(dataroot: Path) -> None:
    used, names = set(), index_module._names(SMALL)
    sys.setprofile(lambda frame, event, argument: used.add(Path(frame.f_code.co_filename)))
    try:
        index_module._build(dataroot, "v1.0-mini", False, names)
    finally:
        sys.setprofile(None)
    root = index_module.SOURCES[0].parents[2]
    own = tuple(root / package for package in ("bevnext_core", "training"))
    assert {path for path in used if any(path.is_relative_to(package) for package in own)} <= set(index_module.SOURCES)
    assert len(used & set(index_module.SOURCES)) > 4


def test_an_interrupted_build_leaves_no_index(dataroot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any, **arrays: Any) -> None:
        args[0].write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)
    cache = dataroot.parent / "cache"
    with pytest.raises(KeyboardInterrupt):
        open_index(dataroot, "v1.0-mini", cache, progress=False)
    assert list(cache.iterdir()) == []


def test_the_index_says_what_the_reader_says(dataroot: Path) -> None:
    reader = NuScenesReader(dataroot, "v1.0-mini")
    index = open_index(dataroot, "v1.0-mini", dataroot.parent / "cache", progress=False)
    frame = 0
    for scene in reader.scenes:
        for number, ref in enumerate(reader.refs(scene)):
            camera_frame, truth = reader.load(ref), reader.ground_truth(ref)
            assert index.tokens[frame] == ref.sample_token and index.scenes[frame] == scene
            assert index.previous[frame] == (frame - 1 if number else -1)
            np.testing.assert_allclose(index.global_from_camera[frame], camera_frame.global_from_camera)
            np.testing.assert_allclose(index.global_from_ego[frame], camera_frame.global_from_ego)
            np.testing.assert_allclose(index.intrinsics[frame], camera_frame.intrinsics)
            boxes, labels = index.truth(frame)
            np.testing.assert_allclose(boxes, np.nan_to_num(truth.boxes), rtol=1e-6, atol=1e-5)
            np.testing.assert_array_equal(labels, truth.labels)
            frame += 1
    assert len(index) == frame


def test_nan_velocities_become_zero_and_boxes_without_points_are_left_out(dataroot: Path) -> None:
    edit_table(dataroot, "sample_annotation", lambda rows: rows[0].update(num_lidar_pts=0, num_radar_pts=0))
    index = open_index(dataroot, "v1.0-mini", dataroot.parent / "cache", progress=False)
    single = int(np.flatnonzero(index.scenes == "scene-0061")[0])  # one frame: the devkit's velocity is NaN
    assert np.isfinite(index.boxes).all() and not index.truth(single)[0][:, 7:].any()
    assert len(index.truth(0)[0]) == 2  # the car has no points, the animal no class


def test_a_pose_that_cannot_be_used_leaves_its_frame_out_with_a_reason(dataroot: Path) -> None:
    edit_table(dataroot, "ego_pose", lambda rows: rows[1].update(rotation=[0, 0, 0, 0]))
    index = open_index(dataroot, "v1.0-mini", dataroot.parent / "cache", progress=False)
    assert len(index) == 4 and len(index.faults) == 1 and "cannot be used" in index.faults[0][1]
    assert index.faults == open_index(dataroot, "v1.0-mini", dataroot.parent / "cache", progress=False).faults


def test_unknown_version_and_a_folder_without_tables(dataroot: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"unknown version 'v1\.0-trainval'.*v1\.0-mini"):
        open_index(dataroot, "v1.0-trainval", tmp_path)
    with pytest.raises(DatasetError, match="no nuScenes tables"):
        open_index(tmp_path, "v1.0-mini", tmp_path)


# ---------------------------------------------------------------------------------------------- samples
def test_history_is_the_previous_key_frames_and_the_present_at_the_start(dataroot: Path) -> None:
    data = make(dataroot)
    assert data.window(3) == [3, 2, 1] and data.window(1) == [1, 0, 1] and data.window(0) == [0, 0, 0]
    sample = data[request(1)]
    assert sample.canvas.shape == (1, 3, 6, 128, 352, 3) and sample.canvas.dtype == torch.uint8
    assert torch.equal(sample.canvas[:, 2], sample.canvas[:, 0])
    assert not torch.equal(sample.canvas[:, 1], sample.canvas[:, 0])
    assert torch.equal(sample.geometry.translation[:, 2], sample.geometry.translation[:, 0])
    moved = sample.geometry.translation[0, 0] - sample.geometry.translation[0, 1]
    assert (moved.norm(dim=-1) - 4.0).abs().max() < 0.3  # 8 m/s for half a second


def test_a_scene_with_one_frame(dataroot: Path) -> None:
    data = make(dataroot, split="mini_train")
    sample = data[request(int(data.frames[0]))]
    assert torch.equal(sample.canvas[:, 1], sample.canvas[:, 0])


def test_geometry_equals_that_of_the_detector(dataroot: Path) -> None:
    """Poses and image matrices of a sample are those that the streaming detector computes."""
    data = make(dataroot)
    sample = data[request(2)]
    reader = NuScenesReader(dataroot, "v1.0-mini")
    refs = reader.refs("scene-0103")
    key, past = reader.load(refs[2]), reader.load(refs[1])
    expected = np.linalg.inv(key.global_from_ego) @ past.global_from_camera
    np.testing.assert_allclose(sample.geometry.rotation[0, 1].numpy(), expected[:, :3, :3], atol=1e-6)
    np.testing.assert_allclose(sample.geometry.translation[0, 1].numpy(), expected[:, :3, 3], atol=1e-5)
    ratio = 352 / 160
    np.testing.assert_allclose(sample.geometry.image_rotation[0, 0, 0].numpy(), np.diag([ratio, ratio, 1]), rtol=1e-6)


def test_samples_follow_the_request_alone(dataroot: Path) -> None:
    data = make(dataroot, augmentation=True)
    a, b = data[request(2, 5)], data[request(2, 5)]
    c, d = data[request(2, 6)], data[request(2, 5, epoch=1)]
    assert torch.equal(a.canvas, b.canvas) and torch.equal(a.boxes[0], b.boxes[0])
    for other in (c, d):
        assert not torch.equal(a.geometry.bda, other.geometry.bda)
        assert not torch.equal(a.geometry.image_rotation, other.geometry.image_rotation)


def test_a_camera_keeps_its_draw_over_the_frames_and_cameras_differ(dataroot: Path) -> None:
    geometry = make(dataroot, augmentation=True)[request(3, 1)].geometry
    assert torch.equal(geometry.image_rotation[:, 0], geometry.image_rotation[:, 2])
    first = geometry.image_rotation[0, 0].flatten(1)
    assert len(torch.unique(first, dim=0)) == 6


def test_augmented_boxes_stay_on_their_objects(dataroot: Path) -> None:
    """A box centre projects to the same recorded pixel whatever the augmentation."""
    data = make(dataroot, config=ONE_FRAME, augmentation=True)

    def recorded_pixels(sample: Any) -> np.ndarray:
        g = sample.geometry
        centers = sample.boxes[0][:, :3].double().numpy() @ np.linalg.inv(g.bda[0].double().numpy()).T
        r, t = g.rotation[0, 0, 1].double().numpy(), g.translation[0, 0, 1].double().numpy()
        camera = (centers - t) @ r
        pixels = camera @ g.intrinsics[0, 0, 1].double().numpy().T
        return pixels[:, :2] / pixels[:, 2:]

    plain = recorded_pixels(make(dataroot, config=ONE_FRAME)[request(1)])
    for position in range(4):
        np.testing.assert_allclose(recorded_pixels(data[request(1, position)]), plain, atol=1e-2)


def test_enlarged_cameras_look_the_same_and_are_told_otherwise(dataroot: Path) -> None:
    """A point falls on the same pixel of the canvas; the intrinsics are those of recordings with more pixels."""
    alone = {"augmentation": True, "image_augmentation": False, "bev_augmentation": False}
    plain = make(dataroot, config=ONE_FRAME, **alone)
    width = int(plain.index.image_sizes.max())
    large = make(dataroot, config=ONE_FRAME, **alone, largest_width=4 * width)
    same = make(dataroot, config=ONE_FRAME, **alone, largest_width=width)
    assert torch.equal(same[request(1)].geometry.intrinsics, plain[request(1)].geometry.intrinsics)
    factors = []
    for position in range(3):
        one, other = plain[request(1, position)], large[request(1, position)]
        points = one.boxes[0][None, :, :3]
        (pixels, depth), (others, farther) = (sample.geometry.project(points, 0.1) for sample in (one, other))
        seen = depth > 1
        assert seen.sum() > 3
        np.testing.assert_allclose(pixels[seen].numpy(), others[seen].numpy(), rtol=1e-4, atol=0.02)
        np.testing.assert_allclose(depth.numpy(), farther.numpy(), atol=1e-3)
        assert torch.equal(one.canvas, other.canvas) and torch.equal(one.depth, other.depth)
        k, was = other.geometry.intrinsics[0, 0].double(), one.geometry.intrinsics[0, 0].double()
        factor = k[:, 0, 0] / was[:, 0, 0]
        factors += factor.tolist()
        # the centre of a pixel is at a whole coordinate: the image's edge at -0.5 stays at the edge
        np.testing.assert_allclose((k[:, 0, 2] + 0.5) / factor, was[:, 0, 2] + 0.5, rtol=1e-5)
    focal = plain.told_intrinsics()[:, 0, 0], large.told_intrinsics()[:, 0, 0]
    # what the weights say of themselves
    assert focal[1].min() == focal[0].min() and focal[1].max() == 4 * focal[0].max()
    assert 1 <= min(factors) < 1.6 and 2.5 < max(factors) <= 4 and len(set(factors)) == 18


def test_batches_join_samples(dataroot: Path) -> None:
    data = make(dataroot)
    batch = join_samples([data[request(1)], data[request(3)]])
    assert batch.canvas.shape[0] == 2 and len(batch.boxes) == 2 and batch.depth.shape == (2, 6, 16, 44)
    assert batch.tokens == ["scene-0103-sample1", "scene-0103-sample3"]
    assert batch.geometry.rotation.shape == (2, 3, 6, 3, 3) and batch.geometry.bda.shape == (2, 3, 3)


# ---------------------------------------------------------------------------------------------- bad input
def test_an_unreadable_image_is_reported_and_another_frame_taken(dataroot: Path) -> None:
    data = make(dataroot)
    path = dataroot / str(data.index.image_files[2, 4])
    path.write_bytes(path.read_bytes()[:200])
    sample = data[request(2)]
    assert sample.tokens != ["scene-0103-sample2"]
    assert ("scene-0103-sample2", True) in [(token, "CAM_BACK" in reason) for token, reason in sample.faults]


def test_an_unreadable_history_frame_is_reported_and_replaced_by_the_present(dataroot: Path) -> None:
    data = make(dataroot)
    (dataroot / str(data.index.image_files[1, 0])).unlink()
    sample = data[request(2)]
    assert sample.tokens == ["scene-0103-sample2"] and len(sample.faults) == 1
    assert torch.equal(sample.canvas[:, 1], sample.canvas[:, 0])
    assert torch.equal(sample.geometry.translation[:, 1], sample.geometry.translation[:, 0])
    assert not torch.equal(sample.canvas[:, 2], sample.canvas[:, 0])


def test_an_image_of_another_size_is_reported(dataroot: Path) -> None:
    data = make(dataroot, config=ONE_FRAME)
    Image.new("RGB", (80, 45)).save(dataroot / str(data.index.image_files[0, 1]), "JPEG")
    assert "the image is 80x45, but its calibration is for 160x90" in data[request(0)].faults[0][1]


def test_when_no_frame_can_be_read_the_list_is_given(dataroot: Path) -> None:
    data = make(dataroot, config=ONE_FRAME)
    shutil.rmtree(dataroot / "samples" / "CAM_FRONT")
    with pytest.raises(DatasetError, match=r"20 samples in a row could not be used; scene-0103-sample0: CAM_FRONT"):
        data[request(0)]


def test_missing_lidar(dataroot: Path) -> None:
    (dataroot / str(make(dataroot).index.lidar_files[1])).unlink()
    strict = make(dataroot, config=ONE_FRAME)[request(1)]
    assert strict.tokens != ["scene-0103-sample1"] and "training.missing_lidar" in strict.faults[0][1]
    lenient = make(dataroot, config=ONE_FRAME, missing_lidar="no-depth-loss")
    sample = lenient[request(1)]
    assert sample.tokens == ["scene-0103-sample1"] and not sample.faults and not sample.depth.any()
    assert lenient[request(2)].depth.any()


def test_truncated_lidar_is_reported(dataroot: Path) -> None:
    data = make(dataroot, config=ONE_FRAME)
    path = dataroot / str(data.index.lidar_files[1])
    path.write_bytes(path.read_bytes()[:-4])
    assert "truncated" in data[request(1)].faults[0][1]


def test_a_version_without_annotations_cannot_be_trained_on(dataroot: Path) -> None:
    edit_table(dataroot, "sample_annotation", lambda rows: rows.clear())
    edit_table(dataroot, "instance", lambda rows: rows.clear())
    with pytest.raises(DatasetError, match="no annotated objects"):
        make(dataroot)


def test_a_split_that_is_not_there(dataroot: Path) -> None:
    with pytest.raises(DatasetError, match=r"unknown split 'test' of v1.0-mini: it has mini_train, mini_val"):
        make(dataroot, split="test")
    with pytest.raises(DatasetError, match=r"no scene of \['scene-0001'\] .*holds scene-0061, scene-0103"):
        make(dataroot, split=["scene-0001"])


def test_the_configuration_decides_cameras_and_classes(dataroot: Path) -> None:
    tasks = (TaskConfig(("traffic_cone", "animal")), TaskConfig(("car",)))
    config = dataclasses.replace(SMALL, cameras=("CAM_BACK", "CAM_FRONT"), tasks=tasks)
    folder = dataroot.parent / "cache"
    plain = TrainingDataset(open_index(dataroot, "v1.0-mini", folder, False), SMALL, "mini_val")
    data = TrainingDataset(open_index(dataroot, "v1.0-mini", folder, False, config), config, "mini_val")
    found, published = data[request(1)], plain[request(1)]
    assert found.canvas.shape[2] == 2 and torch.equal(found.canvas[:, :, 1], published.canvas[:, :, 1])
    assert found.labels[0].tolist() == [2, 0, 1], "an animal is one by its category; the pedestrian is nothing here"
    assert published.labels[0].tolist() == [0, 8, 9]
    assert len(list(folder.glob("index-*"))) == 2, "each its own"


# ---------------------------------------------------------------------------------------------- real data
@pytest.mark.sample
def test_real_key_frames(sample: Path, tmp_path: Path) -> None:
    index = open_index(sample, "v1.0-mini", tmp_path, progress=False)
    assert len(index) == 5 and not index.faults
    data = TrainingDataset(index, ONE_FRAME, "mini_train")
    drawn = data[request(int(data.frames[0]))]
    known = drawn.depth[drawn.depth > 0]
    assert len(known) > 1000 and float(known.min()) >= 1 and float(known.max()) < 60
    assert len(drawn.boxes[0]) > 20
    history = TrainingDataset(index, with_training(SMALL, missing_lidar="no-depth-loss"), "mini_val")
    last = history[request(int(history.frames[-1]))]
    assert last.geometry.translation.shape == (1, 3, 6, 3) and not last.depth.any() and not last.faults


@pytest.mark.sample
def test_lidar_depth_falls_on_the_objects_of_the_image(sample: Path, tmp_path: Path) -> None:
    """At the image centre of near, well-hit boxes the lidar depth is that of the box: geometry is right."""
    index = open_index(sample, "v1.0-mini", tmp_path, progress=False)
    data = TrainingDataset(index, ONE_FRAME, "mini_train")
    frame = int(data.frames[0])
    drawn = data[request(frame)]
    boxes = index.boxes[index.box_start[frame] : index.box_start[frame + 1]]
    points = index.points[index.box_start[frame] : index.box_start[frame + 1]]
    g, errors = drawn.geometry, []
    for box in boxes[points > 5]:
        for camera in range(6):
            r, t = g.rotation[0, 0, camera].double().numpy(), g.translation[0, 0, camera].double().numpy()
            position = (box[:3] - t) @ r
            if position[2] < 3:
                continue
            pixel = g.intrinsics[0, 0, camera].double().numpy() @ position / position[2]
            pixel = g.image_rotation[0, 0, camera].double().numpy() @ pixel
            u, v = (pixel[:2] + g.image_translation[0, 0, camera].numpy()[:2]) / 8
            if 0 <= u < 44 and 0 <= v < 16 and drawn.depth[0, camera, int(v), int(u)] > 0:
                reach = box[3:5].max() / 2 + 0.5
                errors.append(abs(float(drawn.depth[0, camera, int(v), int(u)]) - position[2]) - reach)
    assert len(errors) >= 8 and np.mean(np.array(errors) < 0) > 0.7
