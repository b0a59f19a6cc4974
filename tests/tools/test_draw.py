# SPDX-License-Identifier: Apache-2.0
"""Pictures: what is drawn lies where the geometry says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevnext_core.boxes import box_corners
from bevnext_core.classes import CAMERAS, CLASSES
from bevnext_core.detections import Detections, StepInfo
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import project, rigid
from bevnext_core.images import read_image
from bevnext_tools.draw.bev import BevView, BoxLayer, draw_bev
from bevnext_tools.draw.cameras import (
    camera_from_ego,
    camera_mosaic,
    detection_layer,
    draw_boxes_in_camera,
    draw_frame,
    draw_points_in_camera,
    hidden_from_cameras,
    truth_layer,
    write_picture,
)
from bevnext_tools.draw.choice import without_doubles
from bevnext_tools.draw.colors import BACKGROUND, CLASS_COLORS, GRID, TRUTH_COLOR, class_color
from bevnext_tools.draw.text import Labels, draw_text, font
from bevnext_tools.rig.file import looking

RED = (255, 0, 0)


def frame(motion: float = 0.0, height: int = 90, width: int = 160) -> CameraFrame:
    """CAM_FRONT at the ego's origin looking along +x; it saw the world ``motion`` metres further on."""
    optical = np.eye(4)
    optical[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return CameraFrame(
        cameras=("CAM_FRONT",),
        images=(np.zeros((height, width, 3), np.uint8),),
        intrinsics=np.array([[[100.0, 0, width / 2], [0, 100.0, height / 2], [0, 0, 1]]]),
        ego_from_camera=optical[None],
        global_from_camera_ego=rigid([1, 0, 0, 0], [50 + motion, 20, 0])[None],
        global_from_ego=rigid([1, 0, 0, 0], [50.0, 20, 0]),
        stamp_ns=1,
    )


def box(x: float, y: float, z: float = 0.0, yaw: float = 0.0, vx: float = 0.0, vy: float = 0.0) -> np.ndarray:
    return np.array([[x, y, z, 4.0, 2.0, 1.5, yaw, vx, vy]])


def layer(boxes: np.ndarray, truth: bool = False) -> BoxLayer:
    return BoxLayer(boxes, [RED] * len(boxes), [""] * len(boxes), truth)


def detections(boxes: np.ndarray) -> Detections:
    count = len(boxes)
    return Detections(
        boxes.astype(np.float32),
        np.full(count, 0.8, np.float32),
        np.zeros(count, np.int64),
        CLASSES,
        1,
        np.eye(4),
    )


def project_to_camera(frame: CameraFrame, index: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``[..., 2]`` of ego-frame points ``[..., 3]`` in the full-size image, and depths ``[...]``."""
    transform = camera_from_ego(frame)[index]
    return project(points @ transform[:3, :3].T + transform[:3, 3], frame.intrinsics[index])


def drawn(image: np.ndarray) -> np.ndarray:
    """Rows and columns of pixels with red in them."""
    return np.argwhere(image[..., 0].astype(int) - image[..., 2] > 60)


# --------------------------------------------------------------------------------------------- projection
def test_projection_of_known_points() -> None:
    pixels, depths = project_to_camera(
        frame(), 0, np.array([[10.0, 0, 0], [10.0, 1, 0], [10.0, 0, 1], [-5.0, 0, 0]])
    )
    np.testing.assert_allclose(pixels[:3], [[80, 45], [70, 45], [80, 35]])
    np.testing.assert_allclose(depths, [10, 10, 10, -5])
    assert np.isnan(pixels[3]).all()


def test_projection_uses_the_camera_s_own_pose() -> None:
    pixels, depths = project_to_camera(frame(motion=2.0), 0, np.array([[10.0, 1.0, 0]]))
    assert depths[0] == pytest.approx(8.0)
    np.testing.assert_allclose(pixels[0], [80 - 100 / 8, 45])
    np.testing.assert_allclose(camera_from_ego(frame(motion=2.0))[0, :3, 3], [0, 0, -2], atol=1e-12)


@pytest.mark.sample
def test_ground_truth_projects_where_the_devkit_says(sample: Path) -> None:
    pytest.importorskip("nuscenes")
    from nuscenes.utils.geometry_utils import BoxVisibility, view_points

    from bevnext_core.datasets.nuscenes import NuScenesReader

    reader = NuScenesReader(sample, "v1.0-mini")
    compared = 0
    for scene in reader.scenes:
        for ref in reader.refs(scene):
            current, truth = reader.load(ref), reader.ground_truth(ref)
            for index, camera in enumerate(CAMERAS):
                _, others, intrinsics = reader.tables.get_sample_data(
                    ref.records[camera]["token"], box_vis_level=BoxVisibility.ANY
                )
                rows = {token: row for row, token in enumerate(truth.annotation_tokens)}
                for other in others:
                    if other.token not in rows:
                        continue  # no detection class
                    ours = truth.boxes[rows[other.token]]
                    pixel, depth = project_to_camera(current, index, ours[:3])
                    assert depth == pytest.approx(other.center[2], abs=1e-6)
                    if other.center[2] > 0.5:
                        expected = view_points(other.center[:, None], intrinsics, normalize=True)[:2, 0]
                        np.testing.assert_allclose(pixel, expected, atol=1e-4)
                        compared += 1
                    # Corners differ a little: our boxes stand upright in the ego frame, which is tilted.
                    corners = box_corners(ours[None])[0] @ camera_from_ego(current)[index][:3, :3].T
                    corners += camera_from_ego(current)[index][:3, 3]
                    distance = np.linalg.norm(corners[:, None] - other.corners().T[None], axis=-1).min(1)
                    assert distance.max() < 0.05 * np.linalg.norm(ours[3:6])
    assert compared > 200


# ------------------------------------------------------------------------------------------ camera images
def test_box_is_drawn_where_its_corners_project() -> None:
    image = np.zeros((90, 160, 3), np.uint8)
    draw_boxes_in_camera(image, frame(), 0, layer(box(10.0, 1.0), truth=True))
    pixels, _ = project_to_camera(frame(), 0, box_corners(box(10.0, 1.0))[0])
    found = drawn(image)
    np.testing.assert_allclose(found.min(0), pixels.min(0)[::-1], atol=1.3)
    np.testing.assert_allclose(found.max(0), pixels.max(0)[::-1], atol=1.3)


def test_box_in_a_scaled_image_is_scaled() -> None:
    image = np.zeros((45, 80, 3), np.uint8)
    draw_boxes_in_camera(image, frame(), 0, layer(box(10.0, 1.0), truth=True))
    pixels, _ = project_to_camera(frame(), 0, box_corners(box(10.0, 1.0))[0])
    np.testing.assert_allclose(drawn(image).min(0), pixels.min(0)[::-1] / 2, atol=1.3)
    np.testing.assert_allclose(drawn(image).max(0), pixels.max(0)[::-1] / 2, atol=1.3)


def test_box_behind_the_camera_is_not_drawn_and_one_around_it_is_cut() -> None:
    image = np.zeros((90, 160, 3), np.uint8)
    draw_boxes_in_camera(image, frame(), 0, layer(box(-10.0, 0.0)))
    assert not image.any()
    draw_boxes_in_camera(image, frame(), 0, layer(box(1.0, 0.9)))
    found = drawn(image)
    assert len(found) and found[:, 1].min() == 0, "its left side leaves the picture on the left"


def test_near_box_covers_the_far_one() -> None:
    image = np.zeros((90, 160, 3), np.uint8)
    boxes = np.concatenate([box(10.0, 0.0), box(30.0, 0.0)])
    both = BoxLayer(boxes, [(255, 0, 0), (0, 0, 255)], ["", ""])
    draw_boxes_in_camera(image, frame(), 0, both)
    swapped = np.zeros_like(image)
    draw_boxes_in_camera(swapped, frame(), 0, BoxLayer(boxes[::-1], both.colors[::-1], ["", ""]))
    np.testing.assert_array_equal(image, swapped)


def test_points_are_drawn_where_they_project_near_red_far_blue() -> None:
    image = np.zeros((90, 160, 3), np.uint8)
    points = np.array([[3.0, 1.0, 0], [55.0, -10.0, 0], [-4.0, 0, 0], [10.0, 40.0, 0]])
    assert draw_points_in_camera(image, frame(), 0, points) == 2
    near, far = image[45, 46], image[45, 98]
    assert near[0] > near[2] and far[2] > far[0]


# ---------------------------------------------------------------------------------------------- from above
@pytest.mark.parametrize(
    ("x", "y", "row", "column"), [(20, 0, 0, 1), (-20, 0, 2, 1), (0, 20, 1, 0), (0, -20, 1, 2)]
)
def test_forward_is_up_and_left_is_left(x: float, y: float, row: int, column: int) -> None:
    image = draw_bev([layer(box(x, y))], BevView(300, 30))
    center = drawn(image).mean(0)
    assert (int(center[0] // 100), int(center[1] // 100)) == (row, column)


def test_box_from_above_has_its_size_heading_and_velocity() -> None:
    view = BevView(600, 30)  # 10 pixels a metre
    found = drawn(draw_bev([layer(box(10.0, 5.0, yaw=np.pi / 2))], view))
    np.testing.assert_allclose(np.ptp(found, axis=0), [20, 40], atol=4)  # heading to the left: wide, not high
    moving = drawn(draw_bev([layer(box(10.0, 5.0, vx=8.0))], view))
    assert moving[:, 0].min() == pytest.approx(300 - 180, abs=4), (
        "the arrow ends where the box is in a second"
    )


def test_ground_truth_is_an_outline_and_a_detection_is_filled() -> None:
    view = BevView(600, 30)
    inside = tuple(np.round(view.pixels(np.array([9.0, 5.5]))).astype(int)[::-1])
    assert tuple(draw_bev([layer(box(10.0, 5.0), truth=True)], view)[inside]) == BACKGROUND
    assert draw_bev([layer(box(10.0, 5.0))], view)[inside][0] > 80


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_boxes_far_outside_or_not_finite_do_no_harm(bad: float) -> None:
    boxes = np.concatenate([box(bad, 0.0), box(10.0, 0.0, vx=bad)])
    assert len(drawn(draw_bev([layer(boxes)])))
    image = np.zeros((90, 160, 3), np.uint8)
    draw_boxes_in_camera(image, frame(), 0, layer(boxes))
    assert len(drawn(image))


def test_a_note_is_written_beside_the_doubts() -> None:
    found = detections(box(10.0, 1.0))
    plain, noted = (draw_frame(frame(), found, camera_width=400, note=note) for note in ("", "of the weights"))
    doubted = replace(found, info=replace(found.info, doubt="a doubt; of the weights"))
    changed = np.argwhere((noted != plain).any(-1))
    assert len(changed) and changed[:, 1].min() >= 1200
    both = draw_frame(frame(), doubted, camera_width=400)
    again = draw_frame(frame(), replace(found, info=replace(found.info, doubt="a doubt")), camera_width=400,
                       note="of the weights")  # fmt: skip
    np.testing.assert_array_equal(both, again)


@pytest.mark.parametrize(
    ("motion", "looks", "seen"),
    [
        (0.0, (0, 0, 0), 0.21), (2.0, (0, 0, 0), 0.2), (0.0, (30, -20, 5), 0.2),
        (0.0, (0, 0, 90), 0.12), (0.0, (0, -90, 0), 0.0004), (0.0, (0, 60, 0), 0),
    ],
)  # fmt: skip
def test_where_no_camera_looks_is_what_projects_beside_the_image(
    motion: float, looks: tuple[float, float, float], seen: float
) -> None:
    """Level, further on, to the left and down, a portrait, at the ground below, at the sky."""
    view, front = BevView(722, 50), frame(motion)  # a size that the coarser grid does not divide
    front.ego_from_camera[0, :3, :3] = looking(*looks)
    front.ego_from_camera[0, 2, 3] = 1.5
    hidden = hidden_from_cameras(front, view)
    assert (~hidden).mean() == pytest.approx(seen, rel=0.1, abs=1e-4)
    points = np.random.default_rng(0).uniform(-49, 49, (4000, 3))
    inside = np.zeros(4000, bool)
    for z in (0, 1, 2, 1.5):
        pixels, depth = project_to_camera(front, 0, points * [1, 1, 0] + [0, 0, z])
        inside |= (depth > 0) & ((pixels >= 0) & (pixels < [160, 90])).all(1)
    row = np.round(view.pixels(points)).astype(int)[:, ::-1]
    near = [np.clip(row + step, 0, 721) for step in np.argwhere(np.ones((17, 17))) - 8]
    around = np.stack([hidden[place[:, 0], place[:, 1]] for place in near])
    clear = around.all(0) | ~around.any(0)  # not within eight pixels of an edge
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(hidden[row[:, 0], row[:, 1]][clear], ~inside[clear])


def test_hatched_where_no_camera_looks_and_said_so() -> None:
    both = replace(frame(), cameras=("CAM_FRONT", "CAM_BACK"), images=frame().images * 2, **{
        name: np.concatenate([getattr(frame(), name)] * 2)
        for name in ("intrinsics", "ego_from_camera", "global_from_camera_ego", "camera_stamps_ns", "image_sizes")
    }, valid=np.array([True, True]))  # fmt: skip
    both.ego_from_camera[1] = rigid([0, 0, 0, 1], [0, 0, 0]) @ both.ego_from_camera[1]
    masked = replace(both, valid=np.array([True, False]))
    shares = {}
    for name, current in (("both", both), ("masked", masked)):
        picture = draw_frame(current, detections(np.zeros((0, 9))), camera_width=400)
        above = picture[:, 1200:]
        lines = (above == GRID).all(-1)
        end, middle = len(above) // 4, slice(len(above) // 2 + 5, len(above) // 2 + 30)
        shares[name] = [float(part.mean()) for part in (lines[:end, middle], lines[-end:, middle], lines[middle, :end])]
    assert {name: [share > 0.05 for share in found] for name, found in shares.items()} == {
        "both": [False, False, True],
        "masked": [False, True, True],
    }, shares
    with_text = draw_frame(masked, detections(np.zeros((0, 9))), camera_width=400)[-24:, 1200:1340]
    assert (with_text > 190).all(-1).sum() > 50, "the legend says what the hatching is"


# ------------------------------------------------------------------------------------------ colours, text
# Machado, Oliveira and Fernandes, 2009: what people without one kind of cone see, in linear RGB
VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear sRGB ``[N, 3]``."""
    xyz = linear @ np.array([[0.4125, 0.2127, 0.0193], [0.3576, 0.7152, 0.1192], [0.1804, 0.0722, 0.9503]])
    x, y, z = np.cbrt(np.clip(xyz / xyz_of_white(), 0.008856, None)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def xyz_of_white() -> np.ndarray:
    return np.array([0.9505, 1.0, 1.0888])


@pytest.mark.parametrize("kind", VISION)
def test_colours_of_the_classes_can_be_told_apart(kind: str) -> None:
    assert set(CLASS_COLORS) == set(CLASSES)
    colors = np.array([*CLASS_COLORS.values(), TRUTH_COLOR, BACKGROUND]) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = lab(np.clip(linear @ np.array(VISION[kind]).T, 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
    assert apart.min() > 15, "2 can just be told apart side by side"


def test_text_lies_where_it_was_asked_for_and_outside_costs_nothing() -> None:
    image = np.full((40, 120, 3), 128, np.uint8)
    draw_text(image, "car", 10, 30, RED)
    found, dark = drawn(image), np.argwhere((image < 60).all(-1))
    assert found[:, 0].max() in (29, 30) and 9 <= found[:, 1].min() <= 12 and len(dark) > 30
    before = image.copy()
    for x, y in ((500, 10), (10, -50), (-300, 10), (np.nan, 10)):
        draw_text(image, "car", x, y, RED)
    np.testing.assert_array_equal(image, before)
    draw_text(image, "car", -8, 5, RED)
    assert (image[:8, :20] != before[:8, :20]).any(), "a part of it is in the picture"


def test_labels_cover_no_other_label_and_stay_inside() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    labels = Labels(image)
    assert labels.put("car", 10, 30, 40, RED)
    plate = np.argwhere(image[..., 0] == 255)
    assert plate[:, 0].max() < 30 and plate[:, 1].min() == 10
    assert labels.put("bus", 12, 30, 40, (0, 0, 255)), "under the box, where above is taken"
    assert np.argwhere((image == (0, 0, 255)).all(-1))[:, 0].min() == 40
    before = image.copy()
    assert not labels.put("van", 14, 30, 40, RED), "no room"
    for x, above, below in ((90, 30, 40), (10, 5, 55), (np.nan, 30, 40), (10, np.nan, np.nan)):
        assert not labels.put("truck", x, above, below, RED)
    np.testing.assert_array_equal(image, before)


def test_small_boxes_have_no_label_and_the_nearest_has_its_first() -> None:
    def image_of(boxes: np.ndarray, texts: list[str]) -> np.ndarray:
        image = np.zeros((90, 160, 3), np.uint8)
        draw_boxes_in_camera(image, frame(), 0, BoxLayer(boxes, [RED] * len(boxes), texts))
        return image

    np.testing.assert_array_equal(image_of(box(40, 0), ["car"]), image_of(box(40, 0), [""]))
    assert (image_of(box(6, 0), ["car"]) != image_of(box(6, 0), [""])).any()
    both = np.concatenate([box(6.2, 0), box(6, 0)])
    for texts, same in ((["", "car"], True), (["car", "car"], True), (["bus", "car"], False)):
        above = image_of(both, texts)[:30]
        assert np.array_equal(above, image_of(both, ["", "car"])[:30]), same


# ------------------------------------------------------------------------------------------ whole picture
def test_picture_holds_cameras_and_map_in_even_size() -> None:
    truth = box(10.0, -1.0)
    picture = draw_frame(frame(), detections(box(10.0, 1.0)), truth, camera_width=201, title="scene")
    assert picture.dtype == np.uint8 and picture.shape[0] % 2 == 0 and picture.shape[1] % 2 == 0
    for color in (class_color("car"), TRUTH_COLOR):
        columns = np.argwhere((np.abs(picture.astype(int) - color) < 12).all(-1))[:, 1]
        assert (columns < 201).any() and (columns > 3 * 201).any(), "drawn in the image and on the map"


def test_picture_without_boxes_or_ground_truth() -> None:
    assert draw_frame(frame(), detections(np.zeros((0, 9)))).any()


def test_the_caption_counts_the_titles_are_the_given_ones_and_a_long_doubt_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words: list[tuple[str, float, int]] = []

    def note(image: np.ndarray, text: str, x: float, y: float, color: Any = (), size: int = 14, rim: int = 2) -> None:
        words.append((text, x + font(size).getlength(text), image.shape[1]))

    monkeypatch.setattr("bevnext_tools.draw.cameras.draw_text", note)
    doubt = "the focal lengths of CAM_FRONT are half of those of training, " * 3 + "so be careful; and another one"
    found = replace(detections(box(10.0, 1.0)), info=StepInfo(doubt=doubt))
    draw_frame(frame(), found, None, camera_width=600, of=85, titles={"CAM_FRONT": "nose (CAM_FRONT)"})
    texts = [text for text, *_ in words]
    assert texts[0] == "nose (CAM_FRONT)" and "1 of 85 detections drawn" in texts and texts[-1] == "and another one"
    start = texts.index("1 of 85 detections drawn") + 1
    assert " ".join(texts[start:]) == doubt.replace("; ", " ")
    assert all(end <= width for _, end, width in words[start:])


def test_of_boxes_on_one_another_the_best_is_drawn() -> None:
    found = detections(np.concatenate([box(10, 0), box(11, 0.3, yaw=0.2), box(10, 4)]))
    found = replace(found, scores=np.float32([0.5, 0.6, 0.2]))
    np.testing.assert_array_equal(without_doubles(found).boxes, found.boxes[1:])
    np.testing.assert_array_equal(without_doubles(found, 0.55).boxes, found.boxes[1:2])
    assert len(without_doubles(found, 0.7)) == 0


def test_camera_that_is_not_valid_is_a_dark_tile() -> None:
    whole = frame()
    two = CameraFrame(
        cameras=("CAM_FRONT", "CAM_BACK"),
        images=(np.full((90, 160, 3), 200, np.uint8), None),
        intrinsics=np.repeat(whole.intrinsics, 2, 0),
        ego_from_camera=np.repeat(whole.ego_from_camera, 2, 0),
        global_from_camera_ego=np.repeat(whole.global_from_camera_ego, 2, 0),
        global_from_ego=whole.global_from_ego,
        stamp_ns=1,
        valid=np.array([True, False]),
    )
    mosaic = camera_mosaic(
        two, [truth_layer(box(10.0, 0.0)), detection_layer(detections(box(9, 0)))], width=160
    )
    assert tuple(mosaic[60, 240]) == BACKGROUND and tuple(mosaic[80, 10]) == (200, 200, 200)


def test_png_keeps_the_colours(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    write_picture(picture, tmp_path / "new" / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "p.png", "picture"), picture)
