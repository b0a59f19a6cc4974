# SPDX-License-Identifier: Apache-2.0
"""The transform buffer: look-ups over a tree, interpolation on SE(3), answers, bounds, time that goes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyquaternion import Quaternion

from bevnext_core.geometry import interpolate_rigid, invert_rigid, rigid
from bevnext_ros.streams.transform_buffer import SECOND, Answer, TransformBuffer

IDENTITY = np.array([1.0, 0, 0, 0])
finite = st.floats(-100, 100, allow_nan=False)
quaternions = st.tuples(*[st.floats(-1, 1)] * 4).map(np.array).filter(lambda q: np.linalg.norm(q) > 0.1)
unit_quaternions = quaternions.map(lambda q: q / np.linalg.norm(q))
offsets = st.tuples(finite, finite, finite).map(np.array)


def arc(t: float, speed: float = 10.0, turn_rate: float = 0.5) -> np.ndarray:
    """Pose at time t of a vehicle that drives a circle: a constant twist, in closed form."""
    angle = turn_rate * t
    radius = speed / turn_rate
    transform = rigid(Quaternion(axis=[0, 0, 1], radians=angle).elements, [0, 0, 0])
    transform[:3, 3] = radius * np.sin(angle), radius * (1 - np.cos(angle)), 0.0
    return transform


def add_pose(
    buffer: TransformBuffer, parent: str, child: str, pose: np.ndarray, stamp: float, **more
) -> bool:
    quaternion = Quaternion(matrix=pose[:3, :3], rtol=1e-6, atol=1e-6).elements
    return buffer.add(parent, child, quaternion, pose[:3, 3], round(stamp * SECOND), **more)


def deep_tree() -> TransformBuffer:
    """map -> odom -> base_link -> camera_link -> camera_optical, and a second branch under base_link."""
    buffer = TransformBuffer()
    add_pose(buffer, "map", "odom", rigid([0.9, 0, 0, 0.1], [5, 6, 0]), 0, static=True)
    for i in range(11):
        add_pose(buffer, "odom", "base_link", arc(i * 0.1), 100 + i * 0.1)
    add_pose(buffer, "base_link", "camera_link", rigid([0.7, 0, 0, 0.7], [1.5, 0.2, 1.4]), 0, static=True)
    add_pose(
        buffer, "camera_link", "camera_optical", rigid([0.5, -0.5, 0.5, -0.5], [0, 0, 0.1]), 0, static=True
    )
    add_pose(buffer, "base_link", "lidar", rigid([1, 0, 0, 0], [0, 0, 2.0]), 0, static=True)
    return buffer


def test_lookup_multiplies_along_the_chain_and_across_branches():
    buffer = deep_tree()
    stamp = round(100.3 * SECOND)
    base_from_camera = rigid([0.7, 0, 0, 0.7], [1.5, 0.2, 1.4]) @ rigid([0.5, -0.5, 0.5, -0.5], [0, 0, 0.1])
    expected = rigid([0.9, 0, 0, 0.1], [5, 6, 0]) @ arc(0.3) @ base_from_camera
    np.testing.assert_allclose(buffer.lookup("map", "camera_optical", stamp).transform, expected, atol=1e-9)
    np.testing.assert_allclose(
        buffer.lookup("camera_optical", "map", stamp).transform, invert_rigid(expected), atol=1e-9
    )
    lidar = buffer.lookup("lidar", "camera_optical", stamp).transform
    np.testing.assert_allclose(lidar, rigid([1, 0, 0, 0], [0, 0, -2.0]) @ base_from_camera, atol=1e-9)
    np.testing.assert_allclose(buffer.lookup("/base_link", "base_link", 1).transform, np.eye(4))


def test_a_steady_turn_is_interpolated_on_its_arc():
    buffer = deep_tree()
    for t in (0.05, 0.33, 0.9999):
        found = buffer.lookup("odom", "base_link", round((100 + t) * SECOND)).transform
        np.testing.assert_allclose(found, arc(t), atol=1e-7)
    chord = (arc(0.0) + arc(0.1)) / 2
    assert np.abs(chord[:3, 3] - arc(0.05)[:3, 3]).max() > 1e-3  # straight interpolation would be visibly off


def test_answers_are_distinct_and_say_why():
    buffer = deep_tree()
    assert buffer.lookup("odom", "base_link", round(101.5 * SECOND)).answer is Answer.NOT_YET
    assert "0.500 s older" in buffer.lookup("odom", "base_link", round(101.5 * SECOND)).detail
    assert buffer.lookup("odom", "base_link", round(99.9 * SECOND)).answer is Answer.TOO_OLD
    for unknown in ("nowhere", ""):
        answer = buffer.lookup("base_link", unknown, round(100.5 * SECOND))
        assert answer.answer is Answer.NOT_CONNECTED and answer.transform is None
    buffer.add("world", "drone", IDENTITY, np.zeros(3), 0, static=True)
    assert "'drone' hangs under 'world'" in buffer.lookup("base_link", "drone", 1).detail


@pytest.mark.parametrize(
    "cause, parent, child, rotation, offset, stamp",
    [
        ("invalid", "a", "b", [np.nan, 0, 0, 0], [0, 0, 0], 5),
        ("invalid", "a", "b", [1, 0, 0, 0], [0, np.inf, 0], 5),
        ("invalid", "a", "b", [0, 0, 0, 0], [0, 0, 0], 5),
        ("invalid", "a", "b", [0.5, 0, 0, 0], [0, 0, 0], 5),
        ("zero_stamp", "a", "b", [1, 0, 0, 0], [0, 0, 0], 0),
        ("self_transform", "a", "/a", [1, 0, 0, 0], [0, 0, 0], 5),
    ],
)
def test_bad_transforms_are_counted_and_change_nothing(cause, parent, child, rotation, offset, stamp):
    buffer = TransformBuffer()
    assert not buffer.add(parent, child, np.array(rotation, float), np.array(offset, float), stamp)
    assert buffer.drops.snapshot() == {cause: 1}
    assert buffer.sample_count == 0


def test_late_messages_are_sorted_in_and_duplicates_counted():
    buffer = TransformBuffer()
    for t in (1.0, 1.2, 1.1, 1.2):
        add_pose(buffer, "odom", "base_link", arc(t), t)
    assert buffer.sample_count == 3 and buffer.drops["duplicate"] == 1
    np.testing.assert_allclose(buffer.lookup("odom", "base_link", round(1.1 * SECOND)).transform, arc(1.1))


def test_what_moves_can_be_forgotten_and_what_is_static_stays():
    buffer = deep_tree()
    add_pose(buffer, "base_link", "wheel", np.eye(4), 100.0)
    for frame in ("base_link", "camera_link", "nowhere"):
        buffer.forget(frame)
    assert buffer.lookup("odom", "base_link", round(100.5 * SECOND)).answer is Answer.NOT_CONNECTED
    assert buffer.lookup("base_link", "camera_optical", 1).ok
    assert buffer.lookup("base_link", "wheel", 100 * SECOND).ok
    buffer.clear_dynamic()
    assert not buffer.lookup("base_link", "wheel", 100 * SECOND).ok


def test_the_moving_edges_between_two_frames():
    buffer = deep_tree()
    add_pose(buffer, "camera_link", "gimbal", np.eye(4), 100.0)
    assert buffer.dynamic_edges("map", "/camera_optical") == {("odom", "base_link")}
    assert buffer.dynamic_edges("gimbal", "odom") == {("odom", "base_link"), ("camera_link", "gimbal")}
    assert buffer.dynamic_edges("lidar", "gimbal") == {("camera_link", "gimbal")}
    assert buffer.dynamic_edges("lidar", "camera_link") == buffer.dynamic_edges("map", "moon") == set()
    before = buffer.version
    add_pose(buffer, "camera_link", "gimbal", np.eye(4), 101.0)
    assert buffer.version == before
    add_pose(buffer, "lidar", "gimbal", np.eye(4), 102.0)
    assert buffer.version > before
    assert buffer.dynamic_edges("lidar", "gimbal") == {("lidar", "gimbal")}


def two_parents(buffer):
    for i in range(3):
        for parent in ("odom", "gps"):
            add_pose(buffer, parent, "base_link", np.eye(4), 101 + i * 0.1)


@pytest.mark.parametrize(
    "spoil, query, words",
    [
        (two_parents, ("odom", "lidar", 101.1), "'base_link' has two parents, 'gps' and 'odom'"),
        (two_parents, ("gps", "lidar", 101.0), "'base_link' has two parents, 'gps' and 'odom'"),
        (lambda b: b.forget("base_link"), ("map", "lidar", 100.5), "comes between 'map' and 'base_link'"),
        (lambda b: None, ("moon", "lidar", 100.5), "no transform names 'moon'"),
        (lambda b: None, ("map", "lidar", 101.5), "the newest 'odom' -> 'base_link' is 0.500 s older"),
        (
            lambda b: b.refuse("odom", "base_link", "late", 2.0),
            ("map", "lidar", 101.5),
            "of 'odom' -> 'base_link' a sample was refused that came 2.0 s too late",
        ),
    ],
)
def test_a_failed_look_up_names_the_edge_and_the_frames(spoil, query, words):
    buffer = deep_tree()
    spoil(buffer)
    found = buffer.lookup(query[0], query[1], round(query[2] * SECOND))
    assert not found.ok and words in found.detail, found.detail


def test_memory_is_bounded_in_time_samples_and_frames():
    buffer = TransformBuffer(keep=2.0, max_samples=50, max_frames=3)
    for i in range(1000):
        add_pose(buffer, "odom", "base_link", np.eye(4), 100 + i * 0.1)
    assert buffer.sample_count <= 21
    for i in range(1000):
        add_pose(buffer, "odom", "fast", np.eye(4), 100 + i * 0.001)
    assert buffer.sample_count <= 21 + 50
    for i in range(10):
        buffer.add("odom", f"frame{i}", IDENTITY, np.zeros(3), 1, static=True)
    assert buffer.drops["too_many_frames"] == 9


def test_a_cycle_and_a_new_parent_end_in_an_answer():
    buffer = TransformBuffer()
    buffer.add("a", "b", IDENTITY, np.zeros(3), 0, static=True)
    buffer.add("b", "a", IDENTITY, np.zeros(3), 0, static=True)
    assert buffer.lookup("a", "c", 1).answer is Answer.NOT_CONNECTED
    buffer = deep_tree()
    buffer.add("gps", "base_link", IDENTITY, np.zeros(3), 101 * SECOND)
    assert buffer.lookup("odom", "base_link", 101 * SECOND).answer is Answer.NOT_CONNECTED
    assert buffer.drops["other_parent_replaced"] == 11


@settings(max_examples=200, deadline=None)
@given(unit_quaternions, offsets, unit_quaternions, offsets, st.floats(0, 1))
def test_interpolation_is_rigid_symmetric_and_left_invariant(qa, ta, qb, tb, fraction):
    result = interpolate_rigid(qa, ta, qb, tb, fraction)
    np.testing.assert_allclose(result[:3, :3].T @ result[:3, :3], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(interpolate_rigid(qa, ta, qb, tb, 0.0), rigid(qa, ta), atol=1e-7)
    np.testing.assert_allclose(interpolate_rigid(qa, ta, qb, tb, 1.0), rigid(qb, tb), atol=1e-7)
    angle = 2 * np.arccos(np.clip(abs(qa @ qb), 0, 1))
    if angle < np.pi - 0.01:  # at half a turn there are two shortest ways
        np.testing.assert_allclose(interpolate_rigid(qb, tb, qa, ta, 1 - fraction), result, atol=1e-6)
        move = rigid([0.5, 0.5, -0.5, 0.5], [3, -2, 1])
        moved_a, moved_b = (
            Quaternion(0.5, 0.5, -0.5, 0.5) * Quaternion(qa),
            Quaternion(0.5, 0.5, -0.5, 0.5) * Quaternion(qb),
        )
        again = interpolate_rigid(
            moved_a.elements, (move @ [*ta, 1])[:3], moved_b.elements, (move @ [*tb, 1])[:3], fraction
        )
        np.testing.assert_allclose(again, move @ result, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=60), st.integers(0, 3_000))
def test_any_order_of_messages_answers_like_the_sorted_samples(milliseconds, wanted):
    buffer = TransformBuffer()
    for ms in milliseconds:
        add_pose(buffer, "odom", "base_link", arc(ms / 1000), 1 + ms / 1000)
    stamps = sorted(set(milliseconds))
    found = buffer.lookup("odom", "base_link", round((1 + wanted / 1000) * SECOND))
    if wanted > stamps[-1]:
        assert found.answer is Answer.NOT_YET
    elif wanted < stamps[0]:
        assert found.answer is Answer.TOO_OLD
    else:
        np.testing.assert_allclose(found.transform, arc(wanted / 1000), atol=1e-6)
