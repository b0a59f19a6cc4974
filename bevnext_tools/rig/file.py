# SPDX-License-Identifier: Apache-2.0
"""``rig.yaml``: the cameras of a rig, how they see, where they sit, and which of the network's cameras each one is.

Read strictly: what is unknown, missing or impossible is one line that names file, camera, key and value.
docs/own_cameras.md has an example with every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import PositiveFloat, PositiveInt
from pyquaternion import Quaternion

from bevnext_core.calibration import COEFFICIENTS, Calibration
from bevnext_core.config import ModelConfig
from bevnext_core.errors import ConfigError
from bevnext_core.files import atomic_path, user_path
from bevnext_core.geometry import rigid, rigid_fault
from bevnext_core.strict import from_mapping, model, read_yaml, suggestion

PLACEHOLDER = "FILL_IN"
"""Stands for what an import or a template cannot know; a file that still holds it is refused."""
_GAPS = {
    "slot": "name the network's camera that it takes the place of, such as CAM_FRONT",
    "vehicle_from_camera": "measure where the camera sits on the vehicle, and how it is turned",
    "fx": "width / 2 / tan(half of the angle seen across), or what calibration found, in pixels",
    "fy": "as fx, where pixels are square",
    "translation": "measure [x ahead of the rear axle, y to the left of the middle, z above the ground], metres",
    "looks_deg": "[left of straight ahead (right: negative), up (down: negative), roll], degrees",
}
TO_FILL_IN = (
    f"Replace each {PLACEHOLDER}; `bevnext rig check` then shows whether the numbers are right.",
    *(f"  {key}: {what}" for key, what in _GAPS.items() if key != "vehicle_from_camera"),
    "  cx, cy: the images' middle, unless a calibration found another point",
)
_STAND_INS: dict[str, Any] = {
    "slot": "", "fx": 1.0, "fy": 1.0, "translation": [0.0] * 3, "looks_deg": [0.0] * 3
}  # fmt: skip
"""Values in the place of what is to be filled in, while the others are checked."""
_FARTHEST = 30.0
"""Metres from the vehicle's origin beyond which a camera's place is taken for one in another unit."""
_HEADER = """\
# The cameras of a vehicle, for `bevnext detect --images DIR --rig THIS_FILE` (docs/own_cameras.md).
# Vehicle: x forward, y left, z up, metres; origin on the ground below the rear axle.
# Camera (optical frame): x right, y down, z forward, along the view.
# vehicle_from_camera: where the camera is in the vehicle, and its rotation, which turns camera axes into the vehicle's.
"""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)  # what was read names file, camera and key


def looking(left: float, up: float, roll: float) -> np.ndarray:
    """``[3, 3]``: the rotation of a camera that looks so many degrees left of straight ahead and above the level, its
    right side raised by ``roll`` degrees."""
    turns = zip(((0, 0, 1), (0, -1, 0), (-1, 0, 0)), (left, up, roll))
    yaw, pitch, rolled = (Quaternion(axis=axis, degrees=angle).rotation_matrix for axis, angle in turns)
    return yaw @ pitch @ rolled @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]


@model
class Intrinsics:
    """Pinhole: focal lengths and principal point, pixels of the images as they are (before any rectification)."""

    fx: PositiveFloat
    fy: PositiveFloat
    cx: float
    cy: float


@model
class Distortion:
    """Lens distortion as ROS names it: k1 k2 p1 p2 [k3]; k1 k2 p1 p2 k3 k4 k5 k6 ...; k1 k2 k3 k4."""

    model: Literal["none", "plumb_bob", "rational_polynomial", "equidistant"] = "none"
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        wanted, given = COEFFICIENTS.get(self.model, (0,)), len(self.coefficients)
        counts = " or ".join(map(str, wanted))
        _require(given in wanted, f"coefficients must be {counts} numbers for {self.model}, got {given}")


@model
class Extrinsics:
    """The camera in the vehicle frame: metres, and a unit quaternion in either order, a matrix of three rows, or
    :func:`looking`'s angles."""

    translation: tuple[float, ...]
    quaternion_xyzw: tuple[float, ...] = ()
    quaternion_wxyz: tuple[float, ...] = ()
    rotation: tuple[tuple[float, ...], ...] = ()
    looks_deg: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        given = list(self.translation)
        _require(len(given) == 3, f"translation must be 3 numbers (x, y, z in metres), got {given}")
        far = max(map(abs, given)) > _FARTHEST
        _require(not far, f"translation {given} is more than {_FARTHEST:g} m from the vehicle: give metres")
        turns = self.quaternion_xyzw, self.quaternion_wxyz, self.rotation, self.looks_deg
        _require(
            sum(map(bool, turns)) == 1,
            "needs one of quaternion_xyzw (x, y, z, w), quaternion_wxyz, rotation (three rows), "
            "looks_deg (left, up, roll)",
        )
        if self.looks_deg:
            given = list(self.looks_deg)
            _require(len(given) == 3, f"looks_deg must be 3 angles (left, up, roll in degrees), got {given}")
        elif self.rotation:
            rows = [list(row) for row in self.rotation]
            _require([len(row) for row in rows] == [3, 3, 3], f"rotation must be 3 rows of 3 numbers, got {rows}")
            fault = rigid_fault(self.matrix)
            _require(not fault, f"rotation {rows} is no rotation: its rows must be orthonormal, right-handed")
        else:
            order = "xyzw" if self.quaternion_xyzw else "wxyz"
            given = list(self.quaternion_xyzw or self.quaternion_wxyz)
            unit = len(given) == 4 and abs(np.linalg.norm(given) - 1) < 1e-2
            _require(unit, f"quaternion_{order} must be 4 numbers ({', '.join(order)}) of norm 1, got {given}")

    @property
    def matrix(self) -> np.ndarray:
        """``[4, 4]``."""
        if self.quaternion_xyzw or self.quaternion_wxyz:
            wxyz = self.quaternion_wxyz or (self.quaternion_xyzw[3], *self.quaternion_xyzw[:3])
            return rigid(np.array(wxyz), np.array(self.translation))
        transform = np.eye(4)
        transform[:3, :3] = self.rotation or looking(*self.looks_deg)
        transform[:3, 3] = self.translation
        return transform


@model
class RigCamera:
    """One camera; its images are in the folder, or the video, of its ``name``.

    ``slot`` is the network's camera that it takes the place of; ``size`` (width, height) in pixels.
    """

    name: str
    slot: str
    size: tuple[PositiveInt, ...]
    intrinsics: Intrinsics
    vehicle_from_camera: Extrinsics
    distortion: Distortion = Distortion()

    def __post_init__(self) -> None:
        named = re.fullmatch(r"\w[\w.-]*", self.name)
        _require(bool(named), f"name {self.name!r} must be of letters, digits, '_', '-' and '.': it names a folder too")
        _require(len(self.size) == 2, f"size must be [width, height], got {list(self.size)}")
        (width, height), k = self.size, self.intrinsics
        near = -width < k.cx < 2 * width and -height < k.cy < 2 * height
        _require(
            near,
            f"intrinsics have their centre at (cx {k.cx:g}, cy {k.cy:g}), far outside of an image of {width}x{height}: "
            "they are of another size",
        )

    @property
    def calibration(self) -> Calibration:
        """What rectifies its images."""
        k = self.intrinsics
        matrix = np.array([[k.fx, 0.0, k.cx], [0.0, k.fy, k.cy], [0.0, 0.0, 1.0]])
        width, height = self.size
        return Calibration(matrix, self.distortion.coefficients, self.distortion.model, (width, height))


@model
class Rig:
    """All cameras. ``anchor``: the one whose stamps make the frames; by default that in the network's anchor slot."""

    cameras: tuple[RigCamera, ...]
    anchor: str = ""

    def __post_init__(self) -> None:
        _require(len(self.cameras) > 0, "cameras must not be empty")
        for key in ("name", "slot"):
            values = [getattr(camera, key) for camera in self.cameras]
            twice = next((value for value in values if values.count(value) > 1), None)
            _require(twice is None, f"two cameras have the {key} '{twice}'")
        names = [camera.name for camera in self.cameras]
        known = not self.anchor or self.anchor in names
        _require(known, f"anchor '{self.anchor}' is no camera; there are {', '.join(names)}")

    def anchor_for(self, config: ModelConfig, source: str) -> RigCamera:
        """The camera whose stamps make the frames.

        Raises:
            ConfigError: a slot that the network does not have, or there is no camera to be the anchor.
        """
        for camera in self.cameras:
            if camera.slot not in config.cameras:
                hint = suggestion([camera.slot], config.cameras) or suggestion([f"CAM_{camera.slot}"], config.cameras)
                raise ConfigError(
                    f"{source}: camera '{camera.name}': slot '{camera.slot}' is none of the network's cameras: "
                    + ", ".join(config.cameras) + hint
                )
        for camera in self.cameras:
            if camera.name == self.anchor or (not self.anchor and camera.slot == config.anchor_camera):
                return camera
        raise ConfigError(
            f"{source}: no camera has the slot {config.anchor_camera}, whose stamps make the frames: "
            "name another camera for that with the key 'anchor'"
        )


def load_rig(path: str | Path) -> Rig:
    """Read a rig file.

    Raises:
        ConfigError: one line that names the file, the camera, the key and its value.
    """
    if not user_path(path).exists():
        raise ConfigError(f"no such rig file: {path}; make one with bevnext rig template or rig import")
    data = read_yaml(path, "rig file")
    if isinstance(data, dict) and any(isinstance(v, dict) and "ros__parameters" in v for v in data.values()):
        raise ConfigError(f"{path} is of a ROS node (ros__parameters), for --bag and --params; a rig file has cameras")
    listed = data.get("cameras") if isinstance(data, dict) else None
    for number, item in enumerate(listed if isinstance(listed, list) else [], 1):
        name = item.get("name", number) if isinstance(item, dict) else number
        where = f"{path}: camera {name!r}"
        if gap := next(gaps(item), ""):
            what = _GAPS.get(gap.split(".")[-1], "give its value")
            raise ConfigError(f"{where}: '{gap}' is still {PLACEHOLDER}: {what}")
        from_mapping(RigCamera, item, where)  # its faults, with the camera's name
    return from_mapping(Rig, data, str(path))


def gaps(values: Any, within: str = "") -> Iterator[str]:
    """The keys of a camera's plain values that are still to be filled in, those of parts as ``part.key``."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if value == PLACEHOLDER:
            yield f"{within}{key}"
        yield from gaps(value, f"{within}{key}.")


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _filled(value) if isinstance(value, dict) else _STAND_INS[key] if value == PLACEHOLDER else value
        for key, value in values.items()
    }


def write_rig(path: str | Path, cameras: Sequence[dict[str, Any]], note: str = "", hints: Sequence[str] = ()) -> None:
    """Write a rig file of plain values, as :func:`load_rig` reads them; ``note``: where they come from; ``hints``:
    lines for who fills it in.

    Raises:
        ConfigError: a value that is there is wrong. OSError: the file cannot be written.
    """
    for camera in cameras:
        from_mapping(RigCamera, _filled(camera), f"{note or path}: camera {camera['name']!r}")

    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
            return super().increase_indent(flow, False)

    body = yaml.dump({"cameras": list(cameras)}, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=110)
    with atomic_path(user_path(path)) as temporary:
        comments = "".join(f"# {line}\n" for line in (note, *hints) if line)
        temporary.write_text(_HEADER + comments + body, encoding="utf-8")
