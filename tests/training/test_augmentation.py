# SPDX-License-Identifier: Apache-2.0
"""Augmentation against the published code (PIL canvases, matrices, boxes), and lidar depth in the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bevnext_core.config import ImageConfig
from bevnext_core.geometry import invert_rigid
from tests import recipe
from tests.training.published_depth import cell_depth
from training.data.augmentation import (
    BevAugmentation,
    ImageAugmentation,
    draw_bev_augmentation,
    draw_image_augmentation,
    in_range,
    plain_image,
)
from training.data.cbgs import balanced_frames
from training.losses.depth_targets import lidar_depth_map

CASES = [
    ImageAugmentation(ratio, (int(1600 * ratio), int(900 * ratio)), crop, flip, degrees)
    for ratio, crop, flip, degrees in recipe.AUG_CASES
]
BEV_CASES = [BevAugmentation(*case) for case in recipe.BDA_CASES]


@pytest.fixture(scope="module")
def source_image() -> np.ndarray:
    blocks = recipe.generator("A", "mod/pil").integers(0, 256, (45, 80, 3))
    return np.kron(blocks, np.ones((20, 20, 1))).astype(np.uint8)


@pytest.mark.parametrize("case", range(4))
def test_canvases_equal_the_published_ones(
    case: int, source_image: np.ndarray, golden_path: Any, module_scalars: dict[str, Any]
) -> None:
    canvas = CASES[case].apply(source_image)
    stored = np.load(golden_path("mod_modules.npz"))[f"pil{case}.canvas_sub"]
    np.testing.assert_array_equal(canvas[::8, ::8], stored)
    expected = module_scalars[f"pil{case}"]
    assert list(canvas.shape) == expected["shape"] and recipe.digest(canvas) == expected["sha"]


@pytest.mark.parametrize("case", range(4))
def test_matrices_equal_the_published_ones(case: int, mod_geometry: dict[str, np.ndarray]) -> None:
    matrix = CASES[case].matrix()
    np.testing.assert_allclose(matrix[:2, :2], mod_geometry[f"geo{case}.post_rot"][:2, :2], atol=1e-6)
    np.testing.assert_allclose(matrix[:2, 2], mod_geometry[f"geo{case}.post_tran"][:2], atol=2e-4)
    np.testing.assert_allclose(BEV_CASES[case].matrix(), mod_geometry[f"geo{case}.bda"], atol=1e-6)


@pytest.mark.parametrize("case", range(4))
def test_boxes_move_with_the_frame_as_published(case: int, mod_geometry: dict[str, np.ndarray]) -> None:
    boxes, _ = recipe.make_gt("A", 40)
    moved, expected = BEV_CASES[case].apply(boxes), mod_geometry[f"bda{case}.boxes_gravity"]
    turn = moved[:, 6] - expected[:, 6]
    np.testing.assert_allclose(np.abs(np.exp(1j * turn) - 1), 0, atol=1e-5)
    columns = [0, 1, 2, 3, 4, 5, 7, 8]
    np.testing.assert_allclose(moved[:, columns], expected[:, columns], atol=2e-5)


def test_a_point_of_the_image_follows_the_matrix() -> None:
    """A bright square is found where the matrix says, for a draw with flip and rotation."""
    image = np.zeros((900, 1600, 3), np.uint8)
    image[598:603, 698:703] = 255
    for case in CASES:
        canvas = case.apply(image).astype(float).sum(-1)
        v, u = np.indices(canvas.shape)
        found = np.array([(canvas * u).sum(), (canvas * v).sum()]) / canvas.sum()
        expected = (case.matrix() @ (700.5, 600.5, 1))[:2]
        assert np.abs(found - expected).max() < 1.5  # pixel centres, whole-pixel resize, nearest rotation


def test_draws_stay_in_the_published_ranges_and_follow_the_seed() -> None:
    target = ImageConfig()
    draws = [draw_image_augmentation(np.random.default_rng(seed), 1600, 900, target) for seed in range(300)]
    assert draws[0] == draw_image_augmentation(np.random.default_rng(0), 1600, 900, target)
    ratios = np.array([d.ratio for d in draws])
    assert 0.38 <= ratios.min() < 0.39 and 0.54 < ratios.max() <= 0.55
    assert all(d.crop[3] == d.resized[1] and d.crop[0] >= 0 for d in draws)  # the bottom is kept
    assert all(d.crop[0] <= max(0, d.resized[0] - 704) for d in draws)
    assert 100 < sum(d.flip for d in draws) < 200 and max(abs(d.degrees) for d in draws) <= 5.4
    bev = [draw_bev_augmentation(np.random.default_rng(seed)) for seed in range(300)]
    assert max(abs(b.degrees) for b in bev) <= 22.5 and all(0.95 <= b.scale <= 1.05 for b in bev)
    assert 100 < sum(b.flip_x for b in bev) < 200 and 100 < sum(b.flip_y for b in bev) < 200


def test_the_plain_transform_is_the_one_of_inference(source_image: np.ndarray) -> None:
    from bevnext_core.streaming.preprocess import image_transform, resize_and_crop

    plain = plain_image(1600, 900, ImageConfig())
    expected = image_transform(1600, 900, ImageConfig())
    np.testing.assert_array_equal(plain.apply(source_image), resize_and_crop(source_image, expected))
    np.testing.assert_array_equal(plain.matrix()[:2, :2], expected.rotation[:2, :2])
    np.testing.assert_array_equal(plain.matrix()[:2, 2], expected.translation[:2])


def test_the_range_filter_is_strict() -> None:
    boxes = np.zeros((3, 9))
    boxes[:, 0] = 51.2, 51.19, -51.2
    assert in_range(boxes, 51.2).tolist() == [False, True, False]


def camera_from_lidar(info: dict[str, Any], camera: str) -> np.ndarray:
    record = info["cams"][camera]
    global_from_lidar = recipe.transform(info["ego2global_rotation"], info["ego2global_translation"]) @ (
        recipe.transform(info["lidar2ego_rotation"], info["lidar2ego_translation"])
    )
    global_from_camera = recipe.transform(record["ego2global_rotation"], record["ego2global_translation"]) @ (
        recipe.transform(record["sensor2ego_rotation"], record["sensor2ego_translation"])
    )
    return invert_rigid(global_from_camera) @ global_from_lidar


def test_lidar_depth_maps_equal_the_published_ones(mod_targets: dict[str, np.ndarray]) -> None:
    """The published map is in float32 at global coordinates (3e-4 m) and takes any of several points in a pixel
    that are nearer than 1.6 m to each other; so a few pixels differ by rounding and a few by choice."""
    info = recipe.make_infos("A", 1)[0]
    points = recipe.lidar_points("A")
    expected = np.zeros((6, 256, 704), np.float32)
    expected[tuple(mod_targets["lidar_depth.idx"].T.astype(int))] = mod_targets["lidar_depth.val"]
    maps = np.stack(
        [
            lidar_depth_map(
                points,
                camera_from_lidar(info, camera),
                np.array(info["cams"][camera]["cam_intrinsic"]),
                CASES[1].matrix(),
                256,
                704,
            )
            for camera in recipe.CAMERAS
        ]
    )
    both = (maps > 0) & (expected > 0)
    # a point that rounds to the neighbouring pixel counts twice
    assert ((maps > 0) != (expected > 0)).sum() <= 0.004 * (expected > 0).sum()
    difference = expected[both] - maps[both]
    assert difference.max() < 1.6 and difference.min() > -2e-3
    assert (np.abs(difference) > 2e-3).mean() < 0.02
    # the two steps of the published code in one
    import torch

    reduced = lidar_depth_map(
        points,
        camera_from_lidar(info, "CAM_FRONT"),
        np.array(info["cams"]["CAM_FRONT"]["cam_intrinsic"]),
        CASES[1].matrix(),
        256,
        704,
        stride=8,
    )
    np.testing.assert_array_equal(reduced, cell_depth(torch.from_numpy(maps[1])).numpy())


def test_points_dropped_before_the_exact_projection_are_out_of_the_image() -> None:
    """The map is that of all points, projected in double precision."""
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal(size=(20000, 3)) * (30, 30, 4), rng.uniform(size=(20000, 2))], 1)
    points = points.astype(np.float32)
    points[:3, :3] = np.array([np.nan, np.inf, 0])[:, None]
    intrinsics = np.array([[1266.0, 0, 800], [0, 1266, 450], [0, 0, 1]])
    for turn in np.linspace(0, 6, 13):
        right, down = np.array([np.sin(turn), -np.cos(turn), 0.05]), np.array([0.05 * np.cos(turn), 0, -1])
        rotation, _ = np.linalg.qr(np.stack([right, down, np.cross(right, down)], 1))
        camera = np.eye(4)
        camera[:3, :3], camera[:3, 3] = rotation.T, (0.3, 1.4, -0.2)
        image = draw_image_augmentation(rng, 1600, 900, ImageConfig(128, 352)).matrix()
        found = lidar_depth_map(points, camera, intrinsics, image, 128, 352, 8)
        with np.errstate(invalid="ignore", divide="ignore"):
            x, y, depth = camera[:3, :3] @ points[:, :3].astype(np.float64).T + camera[:3, 3:]
            pixels = np.rint(image @ np.stack([1266 * x / depth + 800, 1266 * y / depth + 450, np.ones_like(x)]))
            seen = (depth >= 1) & (depth < 60) & (pixels[0] >= 0) & (pixels[0] < 352)
            seen &= (pixels[1] >= 0) & (pixels[1] < 128)
        expected = np.full((16, 44), np.inf)
        cells = (pixels[:2, seen] // 8).astype(int)
        np.minimum.at(expected, (cells[1], cells[0]), depth[seen])
        assert np.isfinite(expected).sum() > 50
        np.testing.assert_allclose(found, np.where(np.isfinite(expected), expected, 0), atol=1e-5)


def test_cbgs_gives_every_class_the_same_share() -> None:
    rng = np.random.default_rng(0)
    frames = [[0] + ([1] if rng.uniform() < 0.05 else []) for _ in range(1000)] + [[]] * 50
    counts = [1000, sum(1 for f in frames if 1 in f)]
    drawn = balanced_frames(frames, 2, seed=3)
    total = sum(counts)
    assert len(drawn) == sum(int(n * (0.5 / (n / total))) for n in counts)
    rare = sum(1 for index in drawn if 1 in frames[index])
    assert rare >= len(drawn) / 2 and all(frames[index] for index in drawn)
    np.testing.assert_array_equal(drawn, balanced_frames(frames, 2, seed=3))
    assert not np.array_equal(drawn, balanced_frames(frames, 2, seed=4))


def test_cbgs_with_a_class_that_nobody_has_and_with_no_objects() -> None:
    assert set(balanced_frames([[0], [0, 2]], 4, seed=0)) <= {0, 1}
    assert len(balanced_frames([[], []], 4, seed=0)) == 0
