# SPDX-License-Identifier: Apache-2.0
"""Where cameras sit and look, in words, and what of it can hardly be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from bevnext_core.frame import CameraFrame
from bevnext_core.trained_on import FAR

_LOOKS = {
    "CAM_FRONT_LEFT": 55, "CAM_FRONT": 0, "CAM_FRONT_RIGHT": -55, "CAM_BACK_LEFT": 110, "CAM_BACK": 180,
    "CAM_BACK_RIGHT": -110,
}  # fmt: skip
"""Degrees to the left of straight ahead to which nuScenes' cameras look; SEES: how many they see across."""
_SEES = {slot: 89 if slot == "CAM_BACK" else 65 for slot in _LOOKS}
_ASIDE = 20.0
"""Degrees off the vehicle's axis from which on a camera looks to a side, which it then sits on too."""
_WIDE = {False: 0.8, True: 1.4}
"""Metres off the vehicle's middle beyond which few cameras sit that look ahead or back, and that look aside."""
_OFF_CENTRE = 0.15
"""Share of the image's side that few principal points are off its middle."""


@dataclass(frozen=True)
class Stance:
    """How a camera is placed: degrees left of straight ahead, above the level, and of the image's roll; metres."""

    camera: str
    slot: str
    left: float
    up: float
    roll: float
    place: tuple[float, float, float]

    @property
    def aside(self) -> bool:
        """It looks to a side of the vehicle."""
        return _ASIDE < abs(self.left) < 180 - _ASIDE

    @property
    def upright(self) -> bool:
        """It looks about level, with what is up above."""
        return abs(self.up) <= 45 and abs(self.roll) <= 45

    @property
    def across(self) -> bool:
        """It looks to one side and sits on the other."""
        return self.upright and self.aside and abs(self.place[1]) > 0.1 and self.left * self.place[1] < 0

    def turned(self, other: float) -> bool:
        """It looks elsewhere than ``other`` degrees to the left."""
        return abs((self.left - other + 180) % 360 - 180) > 45

    def off(self) -> float:
        """Degrees in all by which it is turned, tilted and rolled against its slot in nuScenes."""
        return abs((self.left - _LOOKS[self.slot] + 180) % 360 - 180) + abs(self.up) + abs(self.roll)


def stance(frame: CameraFrame, index: int, slot: str = "") -> Stance:
    """Of a camera of the frame; ``slot``: which of the network's it is."""
    pose = frame.ego_from_camera[index]
    right, down, view = pose[:3, :3].T
    angles = np.arctan2(view[1], view[0]), np.arcsin(np.clip(view[2], -1, 1)), np.arctan2(right[2], -down[2])
    left, up, roll = (float(np.degrees(angle)) for angle in angles)
    return Stance(frame.cameras[index], slot, left, up, roll, tuple(pose[:3, 3].tolist()))


def direction(left: float) -> str:
    """Degrees left of straight ahead, in words."""
    if abs(left) < 0.5:
        return "straight ahead"
    return "straight back" if abs(left) > 179.5 else f"{abs(left):.0f} deg to the {_side(left)}"


def describe(frame: CameraFrame, index: int) -> str:
    """Where a camera sits and looks, in words."""
    found, k = stance(frame, index), frame.intrinsics[index]
    width, height = frame.image_sizes[index]
    level = abs(found.up) < 0.05 and abs(found.roll) < 0.05
    tilt = f"{abs(found.up):.1f} deg {'up' if found.up > 0 else 'down'}, rolled {round(found.roll, 1) + 0.0:.1f} deg"
    x, y, z = found.place
    return (
        f"at x {x:.2f}, y {y:.2f}, z {z:.2f} m; looks {direction(found.left)}, {'level' if level else tilt}; "
        f"sees {_field(width, k[0, 0]):.0f} x {_field(height, k[1, 1]):.0f} deg"
    )


def doubts(frame: CameraFrame, slots: tuple[str, ...]) -> list[str]:
    """What looks wrong with the cameras, a line each; ``slots``: the network's camera of each.

    What is told of nuScenes' cameras is not compared for slots that nuScenes does not have.
    """
    stances = [stance(frame, index, slot) for index, slot in enumerate(slots)]
    aside = [s for s in stances if s.upright and s.slot in _LOOKS and 0 < abs(_LOOKS[s.slot]) < 180]
    found = []
    mirrored = len(aside) > 1 and all(s.turned(_LOOKS[s.slot]) and not s.turned(-_LOOKS[s.slot]) for s in aside)
    seated = [s for s in stances if s.upright and s.aside and abs(s.place[1]) > 0.1]
    across = not mirrored and len(seated) > 1 and all(s.across for s in seated)
    if mirrored:
        names = ", ".join(s.camera for s in aside)
        found.append(f"{names}: look to the other side than their slots: is y to the right, or left taken for right?")
    backward = [_the_other_way_round(frame, index, s) for index, s in enumerate(stances)]
    inverted = [s for s, other in zip(stances, backward) if other is not None and other.off() + 10 < s.off()]
    if len(inverted) < len(stances):  # of one alone it must be sure
        inverted = [s for s in inverted if s.turned(_LOOKS[s.slot]) or not s.upright]
    if inverted:
        names = ", ".join(s.camera for s in inverted)
        found.append(f"{names}: the rotation looks inverted: it must take camera axes into the vehicle, not back")
    if across:
        names = ", ".join(s.camera for s in seated)
        found.append(f"{names}: sit on the other side than they look to: is y to the right? It must be to the left")
    lying = len(stances) > 1 and all(0.2 < s.place[1] < 4 and abs(s.place[2]) < 1 for s in stances)
    if lying:
        names = ", ".join(s.camera for s in stances)
        found.append(f"{names}: all sit to the left, and near the ground: y (left) and z (up) exchanged?")
    for index, one in enumerate(stances):
        turn = _turn(one, one in inverted or (mirrored and one in aside))
        told = turn, [] if lying else _seat(one, mirrored or across), _lens(frame, index, one.slot)
        found += [f"{one.camera}: {line}" for lines in told for line in lines]
    return found


def _the_other_way_round(frame: CameraFrame, index: int, one: Stance) -> Stance | None:
    """The camera with its rotation inverted, if it is then as its slot is."""
    if one.slot not in _LOOKS:
        return None
    poses = frame.ego_from_camera.copy()
    poses[index, :3, :3] = poses[index, :3, :3].T
    other = stance(dataclasses.replace(frame, ego_from_camera=poses), index, one.slot)
    return other if other.upright and not other.turned(_LOOKS[one.slot]) else None


def _turn(one: Stance, known: bool) -> list[str]:
    if known:
        return []
    order = "x, y, z, w (quaternion_wxyz: the other order)"
    if abs(one.up) > 45:
        return [
            f"looks {abs(one.up):.0f} deg {'up' if one.up > 0 else 'down'}: is the rotation that of the optical "
            f"frame (x right, y down, z forward), from camera to vehicle, and a quaternion {order}?"
        ]
    if abs(one.roll) > 45:
        rolled = f"its image is rolled by {one.roll:.0f} deg against the vehicle"
        return [f"{rolled}: see the axes; is a quaternion {order}?"]
    if one.slot not in _LOOKS or not one.turned(_LOOKS[one.slot]):
        return []
    return [f"looks {direction(one.left)}, nuScenes' {one.slot} {direction(_LOOKS[one.slot])}: another slot?"]


def _seat(one: Stance, known: bool) -> list[str]:
    lines = []
    x, y, z = one.place
    if one.upright and _WIDE[one.aside] < y < 4 and abs(z) <= 0.2:
        which = "y (left) and z (up) exchanged, or the vehicle's origin not on the ground?"
        return [f"sits {y:.2f} m to the left of the middle, {abs(z):.2f} m off the ground: {which}"]
    if one.upright and abs(y) > max(_WIDE[one.aside], abs(x)):
        lines.append(f"sits {abs(y):.2f} m to the {_side(y)} of the middle: x (ahead) and y (left) exchanged?")
    elif one.across and not known:
        lines.append(f"looks to the {_side(one.left)} but sits {abs(y):.2f} m to the {_side(y)}: is y to the left?")
    if not 0.2 < z < 4:
        where = "below" if z < 0 else "above"
        lines.append(f"sits {abs(z):.2f} m {where} the ground: the vehicle's origin is on the ground, z goes up")
    return lines


def _lens(frame: CameraFrame, index: int, slot: str) -> list[str]:
    lines = []
    size, k = frame.image_sizes[index], frame.intrinsics[index]
    off, exchanged = (float(np.abs(centre / size - 0.5).max()) for centre in (k[:2, 2], k[1::-1, 2]))
    if off > _OFF_CENTRE:
        why = "cx and cy exchanged" if exchanged < _OFF_CENTRE else "of images that were cropped, or of another size"
        centre = f"(cx {k[0, 2]:.4g}, cy {k[1, 2]:.4g})"
        lines.append(f"principal point {centre} is {100 * off:.0f} % off the middle of {size[0]} x {size[1]}: {why}?")
    sees = _field(size[0], k[0, 0])
    if slot in _SEES and not 1 / FAR <= np.tan(np.radians(sees / 2)) / np.tan(np.radians(_SEES[slot] / 2)) <= FAR:
        lines.append(
            f"sees {sees:.0f} deg across, nuScenes' {slot} {_SEES[slot]}: is fx that of these images? "
            "Weights trained on nuScenes misplace what it sees"
        )
    return lines


def _field(side: float, focal: float) -> float:
    return float(np.degrees(2 * np.arctan(side / 2 / focal)))


def _side(left: float) -> str:
    return "left" if left >= 0 else "right"
