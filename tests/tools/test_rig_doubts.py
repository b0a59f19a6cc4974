# SPDX-License-Identifier: Apache-2.0
"""What a rig's numbers are suspected of: each common mistake is named, and a right rig is let pass."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyquaternion import Quaternion

from bevnext_core.frame import CameraFrame
from bevnext_tools.rig.check import round_the_vehicle
from bevnext_tools.rig.doubts import describe, doubts
from bevnext_tools.rig.file import looking

# as in nuScenes: metres; degrees to the left, up, of roll
RIGHT: dict[str, dict[str, Any]] = {
    "front_left": {"at": [1.54, 0.5, 1.51], "looks": [55.0, 0, 0]},
    "front": {"at": [1.71, 0.01, 1.51], "looks": [0.0, 0, 0]},
    "front_right": {"at": [1.55, -0.5, 1.5], "looks": [-55.0, 0, 0]},
    "back_left": {"at": [1.03, 0.48, 1.58], "looks": [110.0, 0, 0]},
    "back": {"at": [0.04, 0.0, 1.57], "looks": [180.0, 0, 0]},
    "back_right": {"at": [1.02, -0.48, 1.56], "looks": [-110.0, 0, 0]},
}
SIDES = ("front_left", "front_right", "back_left", "back_right")


def frame_of(change: Callable[[dict[str, Any]], object] = lambda rig: None) -> tuple[CameraFrame, tuple[str, ...]]:
    """The rig, changed, without images; and its slots."""
    rig = copy.deepcopy(RIGHT)
    for name, camera in rig.items():
        camera |= {"fx": 809.0 if name == "back" else 1266.0, "centre": [816.0, 491.0], "slot": f"CAM_{name.upper()}"}
    change(rig)
    poses, matrices = np.tile(np.eye(4), (len(rig), 1, 1)), np.tile(np.eye(3), (len(rig), 1, 1))
    for pose, matrix, camera in zip(poses, matrices, rig.values()):
        pose[:3, :3], pose[:3, 3] = looking(*camera["looks"]), camera["at"]
        matrix[0, 0] = matrix[1, 1] = camera["fx"]
        matrix[:2, 2] = camera["centre"]
    frame = CameraFrame(
        cameras=tuple(rig),
        images=(None,) * len(rig),
        intrinsics=matrices,
        ego_from_camera=poses,
        global_from_camera_ego=np.tile(np.eye(4), (len(rig), 1, 1)),
        global_from_ego=np.eye(4),
        stamp_ns=0,
        valid=np.zeros(len(rig), bool),
        image_sizes=np.tile([1600, 900], (len(rig), 1)),
    )
    return frame, tuple(camera["slot"] for camera in rig.values())


def of(name: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda rig: rig[name].update(values)


def mirrored(key: str, *names: str) -> Callable[[dict[str, Any]], object]:
    """The places' y, or the angles to the left, of these cameras with the other sign."""

    def change(rig: dict[str, Any]) -> None:
        for name in names:
            rig[name][key][1 if key == "at" else 0] *= -1

    return change


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "right": (lambda rig: None, []),
    "rolled": (of("front", looks=[0, 0, 90]), ["front: its image is rolled by 90 deg against the vehicle: see"]),
    "up": (of("front", looks=[0, 80, 0]), ["front: looks 80 deg up: is the rotation that of the optical frame"]),
    "right for left": (of("front", looks=[-90, 0, 0]), ["front: looks 90 deg to the right, nuScenes' CAM_FRONT stra"]),
    "below": (of("front", at=[1.7, 0, -1.51]), ["front: sits 1.51 m below the ground: the vehicle's origin is on"]),
    "high": (of("front", at=[1.7, 0, 5]), ["front: sits 5.00 m above the ground: the vehicle's origin is on"]),
    "one side": (
        mirrored("at", "front_left"),
        ["front_left: looks to the left but sits 0.50 m to the right: is y to the left?"],
    ),
    "all sides": (
        mirrored("at", *SIDES),
        ["front_left, front_right, back_left, back_right: sit on the other side than they look to: is y to the right?"],
    ),
    "all angles": (
        mirrored("looks", *SIDES),
        ["front_left, front_right, back_left, back_right: look to the other side than their slots: is y to the right"],
    ),
    "angles and places": (
        lambda rig: (mirrored("looks", *SIDES)(rig), mirrored("at", *SIDES)(rig)),
        ["front_left, front_right, back_left, back_right: look to the other side than their slots: is y to the right"],
    ),
    "one angle": (
        of("back_left", looks=[-110, 0, 0], at=[1.03, -0.48, 1.58]),
        ["back_left: looks 110 deg to the right, nuScenes' CAM_BACK_LEFT 110 deg to the left: another slot?"],
    ),
    "x and y": (
        of("front", at=[0.01, 1.71, 1.51]),
        ["front: sits 1.71 m to the left of the middle: x (ahead) and y (left) exchanged?"],
    ),
    "x and y of a side": (
        of("front_right", at=[-0.5, 1.55, 1.5]),
        ["front_right: sits 1.55 m to the left of the middle: x (ahead) and y (left) exchanged?"],
    ),
    "y and z": (
        of("front", at=[1.71, 1.51, 0.01]),
        ["front: sits 1.51 m to the left of the middle, 0.01 m off the ground: y (left) and z (up) exchanged, or"],
    ),
    "y and z behind": (
        of("back", at=[0.04, 1.57, 0.0]),
        ["back: sits 1.57 m to the left of the middle, 0.00 m off the ground: y (left) and z (up) exchanged, or"],
    ),
    "cx and cy": (
        of("front", centre=[491.0, 816.0]),
        ["front: principal point (cx 491, cy 816) is 41 % off the middle of 1600 x 900: cx and cy exchanged?"],
    ),
    "another size": (
        of("front", centre=[408.0, 245.5]),
        ["front: principal point (cx 408, cy 245.5) is 24 % off the middle of 1600 x 900: of images that were cropped"],
    ),
    "wide": (of("front", fx=800.0), ["front: sees 90 deg across, nuScenes' CAM_FRONT 65: is fx that of these images?"]),
    "narrow": (of("back", fx=1266.0), ["back: sees 65 deg across, nuScenes' CAM_BACK 89: is fx that of these images?"]),
    "own slot": (of("front", slot="OWN", fx=500.0, looks=[-70, 0, 0]), []),
}


def test_inverted_rotations_are_named_together() -> None:
    frame, slots = frame_of()
    poses = frame.ego_from_camera.copy()
    poses[:, :3, :3] = poses[:, :3, :3].transpose(0, 2, 1)
    (line,) = doubts(dataclasses.replace(frame, ego_from_camera=poses), slots)
    assert line.startswith(f"{', '.join(RIGHT)}: the rotation looks inverted: it must take camera axes")


def test_a_whole_rig_with_y_and_z_exchanged_is_told_once() -> None:
    def exchange(rig: dict[str, Any]) -> None:
        for camera in rig.values():
            x, y, z = camera["at"]
            camera["at"] = [x, z, y]

    (line,) = doubts(*frame_of(exchange))
    assert line == f"{', '.join(RIGHT)}: all sit to the left, and near the ground: y (left) and z (up) exchanged?"


def test_one_inverted_rotation_says_nothing_of_the_others() -> None:
    frame, slots = frame_of(of("back_right", looks=[-90, 0, -10]))  # mounted so
    poses = frame.ego_from_camera.copy()
    poses[1, :3, :3] = poses[1, :3, :3].T
    (line,) = doubts(dataclasses.replace(frame, ego_from_camera=poses), slots)
    assert line.startswith("front: the rotation looks inverted")


def test_a_quaternion_in_the_other_order_is_asked_for() -> None:
    """Where it can be told: of a camera straight ahead all four numbers are one half."""
    frame, slots = frame_of()
    poses = frame.ego_from_camera.copy()
    for pose in poses:
        pose[:3, :3] = Quaternion(np.roll(Quaternion(matrix=pose[:3, :3]).elements, 1)).rotation_matrix
    found = doubts(dataclasses.replace(frame, ego_from_camera=poses), slots)
    told = [line for line in found if "a quaternion x, y, z, w (quaternion_wxyz: the other order)?" in line]
    assert len(told) >= 4 and told == found


@pytest.mark.parametrize("kind", WRONG)
def test_a_mistake_is_named_once(kind: str) -> None:
    change, expected = WRONG[kind]
    frame, slots = frame_of(change)
    found = doubts(frame, slots)
    assert len(found) == len(expected), found
    for line, start in zip(found, expected):
        assert line.startswith(start), line


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        ([0, 0, 0], "looks straight ahead, level;"),
        ([-0.2, -0.04, 0.01], "looks straight ahead, level;"),
        ([-179.8, 0, 0], "looks straight back, level;"),
        ([-55, 0, 0], "looks 55 deg to the right, level;"),
        ([55, -7.26, 3], "looks 55 deg to the left, 7.3 deg down, rolled 3.0 deg;"),
        ([110, 0.5, -0.04], "looks 110 deg to the left, 0.5 deg up, rolled 0.0 deg;"),
    ],
)
def test_a_camera_in_words(looks: list[float], words: str) -> None:
    frame, _ = frame_of(of("front", looks=looks))
    assert f"at x 1.71, y 0.01, z 1.51 m; {words} sees 65 x 39 deg" == describe(frame, 1)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (tuple(RIGHT), "front_left front front_right back_right back back_left"),
        (("back", "front", "front_right", "front_left"), "front_left front front_right back"),
        (("front", "front_left"), "front_left front"),
        (("back",), "back"),
    ],
)
def test_neighbours_are_beside_each_other(names: tuple[str, ...], order: str) -> None:
    frame = frame_of()[0].with_cameras(names)
    assert " ".join(names[index] for index in round_the_vehicle(frame)) == order
