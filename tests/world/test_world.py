# SPDX-License-Identifier: Apache-2.0
"""The synthetic world before it is rendered: what moves how, where things stand, what seeds give."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
from shapely.geometry import Polygon

from bevnext_core.datasets.nuscenes_tables import split_scenes
from bevnext_core.errors import DatasetError
from bevnext_world.recording.rig import build_rig
from bevnext_world.recording.splits import (
    FINAL,
    SPLITS,
    TRAINING,
    VALIDATION,
    WORLD_VERSION,
    scene_names,
    scene_seed,
)
from bevnext_world.streets.actors import (
    MEAN_SIZES,
    TIMES,
    dragged,
    draw_size,
    drive,
    footprints,
    overlapping,
)
from bevnext_world.streets.ground_paint import LANE, SIDEWALK, STRIP
from bevnext_world.streets.paths import Path, joined
from bevnext_world.streets.scenario import Scenario, build_scenario
from bevnext_world.streets.traffic import EGO_SIZE, EGO_TOP_SPEED

SCENES = 4
FINE = np.arange(0.0, 9.76, 0.04)


@functools.cache
def scenario(number: int) -> Scenario:
    return build_scenario(scene_seed("val", 1, number).spawn(2)[0], painted=False)


@functools.cache
def tracks(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses ``[T, A, 3]`` of all actors at FINE, and their lengths and widths ``[A, 2]``."""
    actors = scenario(number).actors
    return np.stack([a.poses(FINE) for a in actors], 1), np.array([a.size[:2] for a in actors])


def ego_track(number: int, name: str) -> np.ndarray:
    track = getattr(scenario(number).ego, name)
    return np.stack([np.interp(FINE, TIMES, track[:, axis]) for axis in range(3)], -1)


@pytest.mark.parametrize("number", range(SCENES))
def test_nothing_stands_or_drives_in_anything_else(number: int) -> None:
    world = scenario(number)
    poses, sizes = tracks(number)
    for i, actor in enumerate(world.actors[1:], 1):
        times = slice(0, 1) if actor.static else slice(None)
        met = overlapping(poses[times, i], actor.size, poses[times, :i], sizes[:i])
        assert not met.any(), [
            (actor.class_name, world.actors[j].class_name) for j in np.flatnonzero(met.any(0))
        ]
    assert not overlapping(ego_track(number, "body"), EGO_SIZE, poses, sizes).any()
    for item in world.scenery:
        place = np.broadcast_to(np.array(item.pose), (len(FINE), 3))
        assert not overlapping(place, item.size, poses, sizes).any(), item


def test_overlap_of_turned_rectangles_is_that_of_shapely() -> None:
    rng = np.random.default_rng(3)
    poses, others = rng.uniform(-3, 3, (400, 3)), rng.uniform(-3, 3, (400, 5, 3))
    size, sizes = (4.0, 1.8, 1.0), rng.uniform(0.3, 5.0, (5, 2))
    met = overlapping(poses, size, others, sizes)
    for t in range(400):
        one = Polygon(footprints(poses[t], size))
        for n in range(5):
            other = Polygon(footprints(others[t, n], (*sizes[n], 1.0)))
            assert met[t, n] == one.intersects(other), (poses[t], others[t, n], sizes[n])
    assert 0.2 < met.mean() < 0.8
    # With a required clearance it is the grown rectangle that must not meet.
    assert overlapping(poses, size, others, sizes, 0.5).sum() > met.sum()


@pytest.mark.parametrize("number", range(SCENES))
def test_motion_is_smooth_and_along_the_heading(number: int) -> None:
    poses, _ = tracks(number)
    velocity = np.diff(poses[..., :2], axis=0) / 0.04
    acceleration = np.hypot(*(np.diff(velocity, axis=0) / 0.04).transpose(2, 0, 1))
    assert acceleration.max() < 8.0
    turning = np.abs(np.diff(poses[..., 2], axis=0)) / 0.04
    assert turning.max() < 1.2
    heading = poses[:-1, :, 2] + np.diff(poses[..., 2], axis=0) / 2
    forward = velocity[..., 0] * np.cos(heading) + velocity[..., 1] * np.sin(heading)
    sideways = -velocity[..., 0] * np.sin(heading) + velocity[..., 1] * np.cos(heading)
    assert forward.min() > -0.05
    # A box's centre swings sideways while its rear axle does not: yaw rate times half a wheelbase, no more.
    lengths = np.array([a.size[0] for a in scenario(number).actors])
    assert (np.abs(sideways) <= turning * lengths * 0.55 + 0.05).all()


@pytest.mark.parametrize("number", range(SCENES))
def test_the_ego_stays_on_the_road_and_its_rear_axle_does_not_slip(number: int) -> None:
    world = scenario(number)
    body = ego_track(number, "body")
    assert (world.site.at(footprints(body, EGO_SIZE)) & (LANE | STRIP | SIDEWALK)).all()
    frame = ego_track(number, "track")
    velocity = np.diff(frame[:, :2], axis=0) / 0.04
    heading = frame[:-1, 2] + np.diff(frame[:, 2]) / 2
    assert np.hypot(*velocity.T).max() <= EGO_TOP_SPEED
    sideways = -velocity[:, 0] * np.sin(heading) + velocity[:, 1] * np.cos(heading)
    assert np.abs(sideways).max() < 0.06


def test_scenes_hold_all_classes_and_every_kind_of_motion() -> None:
    actors = [actor for number in range(SCENES) for actor in scenario(number).actors]
    assert {actor.class_name for actor in actors} == set(MEAN_SIZES)
    attributes = {actor.attribute(time) for actor in actors for time in (0.1, 3.0, 6.0, 9.0)}
    assert attributes == {
        *("vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider"),
        *("pedestrian.moving", "pedestrian.standing", ""),
    }
    moving = [actor for actor in actors if not actor.static]
    turned = [np.ptp(actor.track[:, 2]) for actor in moving if actor.class_name != "pedestrian"]
    assert max(turned) > 1.0, "nobody turns at a junction"
    speeds = np.array([[actor.speed(t) for t in np.arange(0.2, 9.6, 0.5)] for actor in moving])
    assert (np.diff(speeds, axis=1).min(1) < -0.5).any() and (np.diff(speeds, axis=1).max(1) > 0.5).any()
    assert any(actor.towed_by for actor in actors), "no truck pulls a trailer"
    ego = np.concatenate(
        [np.hypot(*np.diff(scenario(n).ego.track[:, :2], axis=0).T) * 50 for n in range(SCENES)]
    )
    assert ego.min() < 0.5 and ego.max() > 10
    kinds = {item.kind for number in range(SCENES) for item in scenario(number).scenery}
    assert kinds >= {"building", "tree", "bush", "pole", "box"}


def test_a_scene_of_another_seed_is_another() -> None:
    assert not np.array_equal(scenario(0).ego.track, scenario(1).ego.track)
    again = build_scenario(scene_seed("val", 1, 0).spawn(2)[0], painted=False)
    assert len(again.actors) == len(scenario(0).actors)
    for a, b in zip(again.actors, scenario(0).actors):
        assert a.class_name == b.class_name and a.size == b.size and np.array_equal(a.track, b.track)
    assert again.scenery == scenario(0).scenery


def test_version_1_of_the_world_is_this_one() -> None:
    """What gives another world needs another WORLD_VERSION: data sets and weights were made with this one."""
    world = scenario(0)
    assert WORLD_VERSION == 1
    assert Counter(actor.class_name for actor in world.actors) == {
        **{"car": 45, "pedestrian": 34, "bicycle": 26, "motorcycle": 20, "barrier": 17, "traffic_cone": 9},
        **{"construction_vehicle": 6, "bus": 6, "truck": 4, "trailer": 3},
    }
    assert len(world.scenery) == 319
    assert world.ego.track[-1] == pytest.approx((173.281, -53.422, -2.118), abs=2e-3)
    assert sum(actor.track[-1, :2].sum() for actor in world.actors) == pytest.approx(16546.135, abs=0.05)


def test_seeds_of_the_splits_are_disjoint() -> None:
    states = {
        tuple(scene_seed(split, seed, number).generate_state(4))
        for split in SPLITS
        for seed in range(5)
        for number in range(50)
    }
    assert len(states) == len(SPLITS) * 5 * 50
    assert len({split for split, _ in (TRAINING, VALIDATION, FINAL)}) == 3


def test_scene_names_are_those_of_the_official_split() -> None:
    for split in SPLITS:
        assert scene_names(split, 2) == split_scenes(split)[:2]
    with pytest.raises(DatasetError, match="'mini_val' has 1 to 2 scenes, not 3"):
        scene_names("mini_val", 3)
    with pytest.raises(DatasetError, match="unknown split 'train_track'"):
        scene_names("train_track", 1)


@pytest.mark.parametrize("class_name", MEAN_SIZES)
def test_sizes_spread_by_ten_to_twenty_percent(class_name: str) -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([draw_size(class_name, rng) for _ in range(4000)])
    spread = sizes.std(0) / sizes.mean(0)
    # The widths of what drives on lanes are capped at 3 m.
    assert (spread[[0, 2]] > 0.10).all() and (spread < 0.20).all() and spread[1] > 0.07
    if class_name not in ("motorcycle", "bicycle"):
        assert sizes.mean(0) == pytest.approx(MEAN_SIZES[class_name], rel=0.05)


def test_a_vehicle_waits_at_the_line_until_it_is_released() -> None:
    road = Path(np.stack([np.linspace(0, 300, 400), np.zeros(400)], -1))
    s = drive(road, 10.0, np.full(len(TIMES), 10.0), stop_at=50.0, release=7.0)
    assert 48.5 < s[TIMES <= 7.0].max() <= 50.5
    assert s[-1] > 55.0
    assert (np.diff(s) >= -1e-9).all()


def test_vehicles_slow_down_in_curves() -> None:
    angle = np.linspace(0, np.pi / 2, 200)
    first = Path(np.stack([np.linspace(-80, 0, 200), np.zeros(200)], -1))
    bend = Path(np.concatenate([first.points, 10 * np.stack([np.sin(angle), 1 - np.cos(angle)], -1)[1:]]))
    s = drive(bend, 10.0, np.full(len(TIMES), 12.0))
    v = np.diff(s) * 50
    in_bend = (s[1:] > 84) & (s[1:] < 92)
    assert v.max() > 11 and v[in_bend].max() < np.sqrt(2.2 * 10) * 1.15


def test_a_dragged_axle_keeps_its_distance_and_rolls_forward() -> None:
    angle = np.linspace(0, np.pi, 2000)
    front = 12 * np.stack([np.cos(angle), np.sin(angle)], -1)
    yaw = dragged(front, 3.0, np.pi / 2)
    rear = front - 3.0 * np.stack([np.cos(yaw), np.sin(yaw)], -1)
    step = np.diff(rear, axis=0)
    across = -step[:, 0] * np.sin(yaw[1:]) + step[:, 1] * np.cos(yaw[1:])
    assert np.abs(across).max() < 1e-3 * np.hypot(*step.T).max()
    # In a steady circle the rear axle's is smaller: sqrt(12^2 - 3^2).
    assert np.hypot(*rear[-1]) == pytest.approx(np.sqrt(12**2 - 3**2), abs=0.02)


def test_a_joined_path_has_no_kink() -> None:
    east = Path(np.stack([np.linspace(0, 40, 80), np.zeros(80)], -1))
    north = Path(np.stack([np.full(80, 52.0), np.linspace(12, 60, 80)], -1))
    path = joined(east, north)
    assert path.heading[0] == pytest.approx(0, abs=1e-3) and path.heading[-1] == pytest.approx(
        np.pi / 2, abs=1e-3
    )
    assert np.abs(np.diff(path.heading)).max() < 0.1
    assert np.abs(path.curvature()).max() < 1 / 6


def test_cameras_look_all_around_and_fire_one_after_another() -> None:
    rig = build_rig((800, 450))
    assert [round(camera.intrinsics[0, 0]) for camera in rig.cameras] == [634, 633, 631, 628, 404, 630]
    directions = np.sort([np.arctan2(*camera.ego_from_camera[[1, 0], 2]) for camera in rig.cameras])
    half = {c.name: np.arctan(400 / c.intrinsics[0, 0]) for c in rig.cameras}
    gaps = np.diff([*directions, directions[0] + 2 * np.pi])
    assert gaps.max() < 2 * max(half.values())
    order = sorted(rig.cameras, key=lambda camera: camera.delay)
    assert [camera.name[4:] for camera in order] == [
        *("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_RIGHT", "BACK", "BACK_LEFT")
    ]
    delays = np.diff([camera.delay for camera in order])
    assert (delays > 0.004).all() and delays.sum() < 1 / 12
    for camera in rig.cameras:
        assert np.linalg.det(camera.ego_from_camera[:3, :3]) == pytest.approx(1)
        assert camera.ego_from_camera[2, 1] == pytest.approx(-1), "down is not down"
    rays, beams = rig.lidar_directions()
    assert np.linalg.norm(rays, axis=1) == pytest.approx(1) and set(beams) == set(range(32))
