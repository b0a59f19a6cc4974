# SPDX-License-Identifier: Apache-2.0
"""A made rig of four cameras as files: ``rig.yaml``, folders of plain images, ``poses.tum``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pyquaternion import Quaternion

from bevnext_core.classes import CAMERAS
from bevnext_core.config import ModelConfig
from bevnext_core.frame import CameraFrame
from bevnext_tools.rig.images import RigReader

WIDTH, HEIGHT = 160, 90
START = 1_700_000_000_000_000_000
STEP = 500_000_000
DELAY = {"front": 0, "left": 8_000_000, "right": -8_000_000, "back": 25_000_000}
YAW = {"front": 0, "left": 55, "right": -55, "back": 180}
SLOT = {"front": "CAM_FRONT", "left": "CAM_FRONT_LEFT", "right": "CAM_FRONT_RIGHT", "back": "CAM_BACK"}
SLOTS = [CAMERAS.index(slot) for slot in SLOT.values()]
"""Places of the rig's four cameras in the network's order."""
OPTICAL = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))


def rig_mapping() -> dict[str, Any]:
    """The four cameras as plain values."""
    cameras = []
    for name, yaw in YAW.items():
        fx = 81.0 if name == "back" else 126.0  # as nuScenes' cameras see
        w, x, y, z = (Quaternion(axis=[0, 0, 1], degrees=yaw) * OPTICAL).elements.tolist()
        cameras.append(
            {
                "name": name,
                "slot": SLOT[name],
                "size": [WIDTH, HEIGHT],
                "intrinsics": {"fx": fx, "fy": 127.0, "cx": 80.0, "cy": 45.0},
                "vehicle_from_camera": {"translation": [1.5, 0.0, 1.5], "quaternion_xyzw": [x, y, z, w]},
            }
        )
    return {"cameras": cameras}


def color_of(camera: str, number: int) -> tuple[int, int, int]:
    """RGB of image ``number`` of a camera."""
    return (50 * list(YAW).index(camera), 40 * number, 128)


def stamp_of(camera: str, number: int) -> int:
    """Nanoseconds."""
    return START + number * STEP + DELAY[camera]


def write_recording(root: Path, frames: int = 3) -> Path:
    """Write ``rig.yaml``, ``images/CAMERA/NANOSECONDS.png`` and ``poses.tum`` (10 m/s ahead) below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "rig.yaml").write_text(yaml.safe_dump(rig_mapping()))
    for name in YAW:
        (root / "images" / name).mkdir(parents=True)
        for number in range(frames):
            path = root / "images" / name / f"{stamp_of(name, number)}.png"
            Image.new("RGB", (WIDTH, HEIGHT), color_of(name, number)).save(path)
    lines = [f"{(START + n * STEP) / 1e9:.9f} {5.0 * n} 0 0 0 0 0 1" for n in range(-1, frames + 1)]
    (root / "poses.tum").write_text("\n".join(lines))
    return root


def reader_of(recording: Path, poses: bool = True, **options: Any) -> RigReader:
    """The frames of what :func:`write_recording` wrote."""
    path = recording / "poses.tum" if poses else None
    return RigReader(recording / "rig.yaml", recording / "images", ModelConfig(), path, **options)


def frames_of(reader: RigReader) -> list[CameraFrame]:
    """All of them, read."""
    return [reader.load(ref) for ref in reader.refs(reader.scenes[0])]
