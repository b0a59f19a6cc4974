# SPDX-License-Identifier: Apache-2.0
"""Box conversions against independent geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyquaternion import Quaternion

from bevnext_core.boxes import (
    box_corners,
    boxes_from_nuscenes,
    nuscenes_from_boxes,
    wrap_angle,
)
from bevnext_core.geometry import invert_rigid, rigid
from bevnext_ros.messages.conversions import transform_boxes

BOX = np.array([[10.0, -4.0, 1.0, 4.6, 1.9, 1.7, 0.7, 3.0, -1.0]])


def random_boxes(count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            rng.uniform(-50, 50, (count, 2)),
            rng.uniform(-2, 2, (count, 1)),
            rng.uniform(0.3, 12, (count, 3)),
            rng.uniform(-np.pi, np.pi, (count, 1)),
            rng.uniform(-10, 10, (count, 2)),
        ],
        1,
    )


def test_corners_have_the_box_s_size_and_the_front_face_first() -> None:
    corners = box_corners(random_boxes())
    boxes = random_boxes()
    np.testing.assert_allclose(corners.mean(1), boxes[:, :3], atol=1e-9)
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1)
    left = np.stack([-heading[:, 1], heading[:, 0]], 1)
    front = corners[:, :4].mean(1) - corners[:, 4:].mean(1)
    np.testing.assert_allclose(front[:, :2], heading * boxes[:, 3:4], atol=1e-9)
    sideways = corners[:, [0, 1, 4, 5]].mean(1) - corners[:, [2, 3, 6, 7]].mean(1)
    np.testing.assert_allclose(sideways[:, :2], left * boxes[:, 4:5], atol=1e-9)
    up = corners[:, [0, 3, 4, 7]].mean(1) - corners[:, [1, 2, 5, 6]].mean(1)
    np.testing.assert_allclose(up[:, 2], boxes[:, 5])


def test_corners_equal_those_of_the_devkit() -> None:
    data_classes = pytest.importorskip("nuscenes.utils.data_classes")
    for box, corners in zip(random_boxes(), box_corners(random_boxes())):
        other = data_classes.Box(box[:3], box[[4, 3, 5]], Quaternion(axis=[0, 0, 1], radians=box[6]))
        # the devkit's front face comes first too, in another order
        for ours, theirs in ((corners[:4], other.corners().T[:4]), (corners[4:], other.corners().T[4:])):
            np.testing.assert_allclose(
                ours[np.lexsort(ours.T.round(6))], theirs[np.lexsort(theirs.T.round(6))]
            )


def test_known_box_in_the_global_frame() -> None:
    # The ego stands at (100, 200, 5) and looks along global +y.
    pose = rigid([np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)], [100.0, 200.0, 5.0])
    (record,) = nuscenes_from_boxes(BOX, pose)
    np.testing.assert_allclose(record["translation"], [104.0, 210.0, 6.0], atol=1e-12)
    np.testing.assert_allclose(record["size"], [1.9, 4.6, 1.7])
    assert Quaternion(record["rotation"]).yaw_pitch_roll[0] == pytest.approx(0.7 + np.pi / 2)
    np.testing.assert_allclose(record["velocity"], [1.0, 3.0], atol=1e-12)


angle = st.floats(-np.pi, np.pi)


@settings(max_examples=60, deadline=None)
@given(yaw=angle, x=st.floats(-2e3, 2e3), y=st.floats(-2e3, 2e3))
def test_round_trip_is_exact_for_a_level_ego(yaw: float, x: float, y: float) -> None:
    pose = rigid([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)], [x, y, 1.0])
    boxes = random_boxes(5)
    back = round_trip(boxes, pose)
    back[:, 6] = boxes[:, 6] + wrap_angle(back[:, 6] - boxes[:, 6])
    np.testing.assert_allclose(back, boxes, atol=1e-6)


def test_round_trip_with_a_tilted_ego_differs_only_in_the_order_of_the_tilt_squared() -> None:
    tilt = 0.03
    pose = rigid(
        (Quaternion(axis=[0, 0, 1], radians=0.8) * Quaternion(axis=[1, 0, 0], radians=tilt)).elements,
        [9, 8, 7],
    )
    boxes = random_boxes()
    back = round_trip(boxes, pose)
    np.testing.assert_allclose(back[:, :6], boxes[:, :6], atol=1e-9)
    assert np.abs(wrap_angle(back[:, 6] - boxes[:, 6])).max() < tilt**2
    assert np.abs(back[:, 7:] - boxes[:, 7:]).max() < 10 * tilt**2
    records = nuscenes_from_boxes(boxes, pose)
    rotations, velocities = (np.array([record[key] for record in records]) for key in ("rotation", "velocity"))
    exact = with_submission_undone(back, rotations, velocities, pose)
    np.testing.assert_allclose(
        exact[:, [0, 1, 2, 3, 4, 5, 7, 8]], boxes[:, [0, 1, 2, 3, 4, 5, 7, 8]], atol=1e-9
    )
    assert np.abs(wrap_angle(exact[:, 6] - boxes[:, 6])).max() < 1e-9


def with_submission_undone(
    boxes: np.ndarray, rotations: np.ndarray, velocities: np.ndarray, global_from_ego: np.ndarray
) -> np.ndarray:
    """``boxes`` with the headings and planar velocities that a submission turns into exactly these, under any tilt."""
    planar = np.linalg.inv(global_from_ego[:2, :2])
    headings = np.array([Quaternion(q).rotation_matrix[:2, 0] for q in rotations]).reshape(-1, 2) @ planar.T
    yaws = np.arctan2(headings[:, 1], headings[:, 0])
    return np.concatenate([boxes[:, :6], yaws[:, None], velocities[:, :2] @ planar.T], 1)


def round_trip(boxes: np.ndarray, global_from_ego: np.ndarray) -> np.ndarray:
    records = nuscenes_from_boxes(boxes, global_from_ego)
    columns = [[record[key] for record in records] for key in ("translation", "size", "rotation", "velocity")]
    return boxes_from_nuscenes(*columns, invert_rigid(global_from_ego))


def test_moving_boxes_to_another_frame_equals_going_through_the_global_frame() -> None:
    first = rigid([np.cos(0.1), 0, 0, np.sin(0.1)], [5.0, 1.0, 0.2])
    second = rigid([np.cos(0.4), 0, 0, np.sin(0.4)], [-3.0, 2.0, 0.1])
    boxes = random_boxes()
    moved = transform_boxes(boxes, invert_rigid(second) @ first)
    for a, b in zip(nuscenes_from_boxes(boxes, first), nuscenes_from_boxes(moved, second)):
        np.testing.assert_allclose(a["translation"], b["translation"], atol=1e-9)
        np.testing.assert_allclose(a["velocity"], b["velocity"], atol=1e-9)
        assert Quaternion.absolute_distance(Quaternion(a["rotation"]), Quaternion(b["rotation"])) < 1e-7


def test_no_boxes_stay_no_boxes() -> None:
    empty = np.zeros((0, 9))
    assert nuscenes_from_boxes(empty, np.eye(4)) == []
    assert boxes_from_nuscenes([], [], [], [], np.eye(4)).shape == (0, 9)
    assert box_corners(empty).shape == (0, 8, 3) and transform_boxes(empty, np.eye(4)).shape == (0, 9)


def test_missing_velocity_stays_missing() -> None:
    box = boxes_from_nuscenes([[0, 0, 0]], [[1, 2, 3]], [[1, 0, 0, 0]], [[np.nan, np.nan, np.nan]], np.eye(4))
    assert np.isnan(box[0, 7:]).all() and np.isfinite(box[0, :7]).all()


def test_wrapped_angles_lie_in_the_half_open_circle() -> None:
    angles = np.array([-np.pi, np.pi, 3 * np.pi, 0.1, -7.0])
    wrapped = wrap_angle(angles)
    assert (wrapped >= -np.pi).all() and (wrapped < np.pi).all()
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * angles), atol=1e-12)
