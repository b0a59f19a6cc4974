# SPDX-License-Identifier: Apache-2.0
"""Calibrations of others as the cameras of a rig file: ROS' camera_info YAML, kalibr's camchain, nuScenes.

What a source does not tell is :data:`PLACEHOLDER`, which a rig file is refused with.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyquaternion import Quaternion

from bevnext_core.classes import CAMERAS
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.datasets.nuscenes_tables import Row, numbers, row_of, stamp_ns, value
from bevnext_core.errors import ConfigError, FrameError
from bevnext_core.files import user_path
from bevnext_core.geometry import invert_rigid, rigid, rigid_fault
from bevnext_core.images import read_image
from bevnext_core.strict import read_yaml
from bevnext_tools.rig.file import PLACEHOLDER, looking, write_rig
from bevnext_tools.rig.stamps import seconds

Camera = dict[str, Any]
"""A camera of a rig file, as plain values."""
_KALIBR_DISTORTION = {"radtan": "plumb_bob", "equidistant": "equidistant", "none": "none"}


def pose_of(text: str, what: str) -> np.ndarray:
    """``x y z qx qy qz qw`` or ``x y z left up roll``, spaces or commas -> ``[4, 4]``. Raises ConfigError that names
    ``what``."""
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
        if len(numbers) == 6 and np.isfinite(numbers).all():
            placed = np.eye(4)
            placed[:3, :3], placed[:3, 3] = looking(*numbers[3:]), numbers[:3]
            return placed
        x, y, z, qx, qy, qz, qw = numbers
    except ValueError:
        wanted = "the 7 numbers 'x y z qx qy qz qw', or the 6 'x y z left up roll' (degrees)"
        raise ConfigError(f"{what} must be {wanted}, got '{text}'") from None
    norm = np.linalg.norm([qx, qy, qz, qw])
    if not np.isfinite([x, y, z]).all() or not abs(norm - 1) < 1e-2:
        raise ConfigError(f"{what} needs finite numbers and a quaternion of norm 1, got '{text}'")
    return rigid(np.array([qw, qx, qy, qz]), np.array([x, y, z]))


def named_files(given: Sequence[str]) -> dict[str, str]:
    """``[NAME=]FILE`` each -> the files by name; without one the file's ``camera_name``. Raises ConfigError."""
    files: dict[str, str] = {}
    for text in given:
        name, is_named, path = text.partition("=")
        if not is_named:
            path = text
            name = _text(_mapping(read_yaml(path, "camera info file"), path), path, "camera_name")
        if name in files:
            raise ConfigError(f"{files[name]} and {path} are both of a camera '{name}': name them, NAME=FILE")
        files[name] = path
    return files


def default_slot(name: str) -> str:
    """The network's camera that a name suggests: ``front_left`` and ``cam_front_left`` are CAM_FRONT_LEFT,
    ``rear`` is CAM_BACK."""
    upper = name.upper().replace("-", "_").replace("REAR", "BACK")
    return next((slot for slot in (upper, f"CAM_{upper}") if slot in CAMERAS), PLACEHOLDER)


def template(names: Sequence[str], size: tuple[int, int]) -> list[Camera]:
    """Cameras of which only the names are known and the images' ``size`` (width, height): gaps to fill in.

    Raises:
        ConfigError: a name is given twice.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two cameras have the name '{twice[0]}'")
    middle = {"cx": size[0] / 2, "cy": size[1] / 2}
    return [
        {
            "name": name,
            "slot": default_slot(name),
            "size": list(size),
            "intrinsics": {"fx": PLACEHOLDER, "fy": PLACEHOLDER, **middle},
            "vehicle_from_camera": {"translation": PLACEHOLDER, "looks_deg": PLACEHOLDER},
        }
        for name in names
    ]


def from_camera_info(
    files: Mapping[str, str | Path], slots: Mapping[str, str], vehicle_from_camera: Mapping[str, np.ndarray]
) -> list[Camera]:
    """Files as ROS' camera_calibration writes them, one per camera.

    Args:
        files: by the camera's name. slots, vehicle_from_camera ``[4, 4]``: by name, where they are known.

    Raises:
        ConfigError: a file is no such calibration; names file, key and value.
    """
    cameras = []
    for name, path in files.items():
        data = _mapping(read_yaml(path, "camera info file"), str(path))
        fx, skew, cx, zero, fy, cy, *last = _list(data, path, "camera_matrix", 9)
        if skew or zero or last != [0, 0, 1] or min(fx, fy) <= 0:
            raise ConfigError(f"{path}: 'camera_matrix' is not fx 0 cx, 0 fy cy, 0 0 1: it is {data['camera_matrix']}")
        coefficients = _list(data, path, "distortion_coefficients")
        kind = _text(data, path, "distortion_model")
        size = [_key(data, path, key) for key in ("image_width", "image_height")]
        distortion = {"model": kind.replace("fisheye", "equidistant"), "coefficients": coefficients}
        cameras.append(
            _camera(name, slots, size, (fx, fy, cx, cy), distortion, vehicle_from_camera.get(name))
        )
    return cameras


def from_kalibr(
    path: str | Path, vehicle_from_cam0: np.ndarray, names: Sequence[str], slots: Mapping[str, str]
) -> list[Camera]:
    """kalibr's ``camchain.yaml``: each ``T_cn_cnm1`` takes points of the camera before into this one.

    Args:
        names: of the cameras in the file's order; empty: cam0, cam1, ...

    Raises:
        ConfigError: the file is no camchain, or has a camera model that is no pinhole; names file, camera and key.
    """
    chain = _mapping(read_yaml(path, "camchain file"), str(path))
    keys = sorted((key for key in chain if re.fullmatch(r"cam\d+", str(key))), key=lambda key: int(key[3:]))
    if not keys:
        raise ConfigError(f"{path}: holds no cam0: it is no camchain of kalibr")
    if names and len(names) != len(keys):
        raise ConfigError(f"{path} has {len(keys)} cameras ({', '.join(keys)}), --names gives {len(names)}")
    cameras, vehicle_from_camera = [], vehicle_from_cam0
    for number, key in enumerate(keys):
        where = f"{path}: camera '{key}'"
        data = _mapping(chain[key], where)
        if number:
            rows = _key(data, where, "T_cn_cnm1")
            if not isinstance(rows, list) or len(rows) != 4:
                raise ConfigError(f"{where}: 'T_cn_cnm1' must be four rows of four numbers, got {rows!r}")
            step = np.array([_list({"T_cn_cnm1": row}, where, "T_cn_cnm1", 4) for row in rows])
            if fault := rigid_fault(step):
                raise ConfigError(f"{where}: 'T_cn_cnm1' is no transform: {fault}")
            vehicle_from_camera = vehicle_from_camera @ invert_rigid(step)
        if (kind := _text(data, where, "camera_model")) != "pinhole":
            raise ConfigError(f"{where}: 'camera_model' is '{kind}'; only pinhole can be used: calibrate with it")
        if (kind := _text(data, where, "distortion_model")) not in _KALIBR_DISTORTION:
            known = ", ".join(_KALIBR_DISTORTION)
            raise ConfigError(f"{where}: 'distortion_model' is '{kind}'; known are {known}: calibrate with one of them")
        coefficients = _list(data, where, "distortion_coeffs") if kind != "none" else []
        distortion = {"model": _KALIBR_DISTORTION[kind], "coefficients": coefficients}
        size = _key(data, where, "resolution")
        name = names[number] if names else key
        cameras.append(
            _camera(name, slots, size, _list(data, where, "intrinsics", 4), distortion, vehicle_from_camera)
        )
    return cameras


def from_nuscenes(reader: NuScenesReader, scene: str) -> list[Camera]:
    """The calibration of a scene; the names are those of nuScenes without CAM_, in small letters.

    Raises:
        DatasetError: a field of the tables cannot be used. FrameError: an image whose size is wanted cannot be read.
    """
    cameras = []
    for channel, row in reader.refs(scene)[0].records.items():
        sensor = _row(reader, "calibrated_sensor", row["calibrated_sensor_token"])
        k = numbers("calibrated_sensor", sensor, "camera_intrinsic", 3, 3)
        if k[0, 1] or k[1, 0] or k[2].tolist() != [0, 0, 1]:
            raise FrameError(f"{channel}: camera_intrinsic is not fx 0 cx, 0 fy cy, 0 0 1: {k.tolist()}")
        w, x, y, z = numbers("calibrated_sensor", sensor, "rotation", 4).tolist()
        size = [int(row.get("width") or 0), int(row.get("height") or 0)]
        if not all(size):
            size = list(read_image(_file(reader, row), channel).shape[1::-1])
        placed = {
            "translation": numbers("calibrated_sensor", sensor, "translation", 3).tolist(),
            "quaternion_xyzw": [x, y, z, w],
        }
        focal = (k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        camera = _camera(channel.removeprefix("CAM_").lower(), {}, size, focal, None, None)
        cameras.append({**camera, "slot": channel, "vehicle_from_camera": placed})
    return cameras


def write_example(reader: NuScenesReader, scene: str, out: Path) -> int:
    """A scene as a rig's files: ``rig.yaml``, ``images/CAMERA/STAMP.jpg``, ``poses.tum`` -> number of images.

    Read again they are the scene exactly: the numbers are written in full.

    Raises:
        DatasetError, FrameError: as :func:`from_nuscenes`. OSError: an image cannot be copied.
    """
    cameras = from_nuscenes(reader, scene)
    poses: dict[int, list[float]] = {}
    copied: set[Path] = set()
    for ref in reader.refs(scene):
        for camera in cameras:
            row = ref.records[camera["slot"]]
            stamp = stamp_ns("sample_data", row)
            source = _file(reader, row)
            target = out / "images" / camera["name"] / f"{seconds(stamp)}{source.suffix}"
            if target not in copied:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                copied.add(target)
            ego = _row(reader, "ego_pose", value("sample_data", row, "ego_pose_token"))
            w, *xyz = numbers("ego_pose", ego, "rotation", 4).tolist()
            poses[stamp] = [*numbers("ego_pose", ego, "translation", 3).tolist(), *xyz, w]
    write_rig(out / "rig.yaml", cameras, f"from {scene} of a data set in the nuScenes format")
    lines = [f"{seconds(stamp)} {' '.join(map(repr, pose))}" for stamp, pose in sorted(poses.items())]
    (out / "poses.tum").write_text("# stamp x y z qx qy qz qw\n" + "\n".join(lines) + "\n")
    return len(copied)


def _camera(
    name: str,
    slots: Mapping[str, str],
    size: Any,
    intrinsics: Sequence[float],
    distortion: Mapping[str, Any] | None,
    vehicle_from_camera: np.ndarray | None,
) -> Camera:
    placed: dict[str, Any] = {"translation": PLACEHOLDER, "looks_deg": PLACEHOLDER}
    if vehicle_from_camera is not None:
        w, x, y, z = Quaternion(matrix=vehicle_from_camera[:3, :3], atol=1e-3, rtol=0).elements.tolist()
        placed = {"translation": vehicle_from_camera[:3, 3].tolist(), "quaternion_xyzw": [x, y, z, w]}
    camera = {
        "name": name,
        "slot": slots.get(name, default_slot(name)),
        "size": size,
        "intrinsics": dict(zip(("fx", "fy", "cx", "cy"), map(float, intrinsics), strict=True)),
        "vehicle_from_camera": placed,
    }
    return {**camera, "distortion": dict(distortion)} if distortion and distortion["model"] != "none" else camera


def _row(reader: NuScenesReader, table: str, token: str) -> Row:
    return row_of(reader.tables, table, token)


def _file(reader: NuScenesReader, row: Row) -> Path:
    return user_path(reader.dataroot) / str(value("sample_data", row, "filename"))


def _mapping(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: must be a mapping, got {type(data).__name__}")
    return data


def _key(data: Mapping[str, Any], where: object, key: str) -> Any:
    if data.get(key) is None:
        raise ConfigError(f"{where}: '{key}' is missing; it has {', '.join(map(str, data))}")
    return data[key]


def _list(data: Mapping[str, Any], where: object, key: str, count: int | None = None) -> list[float]:
    """A key's numbers, given as a list or as OpenCV's matrix (``data``)."""
    found = _key(data, where, key)
    found = found.get("data", ()) if isinstance(found, dict) else found
    numeric = isinstance(found, list) and all(type(x) in (int, float) and abs(x) < 1e9 for x in found)
    if not numeric or (count is not None and len(found) != count):
        raise ConfigError(f"{where}: '{key}' must be {count or 'some'} finite numbers, got {found!r}")
    return [float(x) for x in found]


def _text(data: Mapping[str, Any], where: object, key: str) -> str:
    if not isinstance(found := _key(data, where, key), str):
        raise ConfigError(f"{where}: '{key}' must be a text, got {found!r}")
    return found
