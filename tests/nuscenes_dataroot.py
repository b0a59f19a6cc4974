# SPDX-License-Identifier: Apache-2.0
"""A small data set in the nuScenes layout, made of formulas: tests of the reader need no recorded data.

The ego drives a tilted curve; every camera and the lidar have their own stamps and so their own poses. Images
are plain colours that name camera and record. One car drives, a pedestrian and a cone stand.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pyquaternion import Quaternion

from bevnext_core.classes import CAMERAS

WIDTH, HEIGHT = 160, 90
KEY_INTERVAL = 500_000
START = 1_500_000_000_000_000
DELAY = dict(zip(CAMERAS, (-8_000, 0, 8_000, 30_000, 25_000, 16_000))) | {"LIDAR_TOP": 35_000}
YAW = dict(zip(CAMERAS, (55, 0, -55, 110, 180, -110)))
CATEGORIES = ("vehicle.car", "human.pedestrian.adult", "movable_object.trafficcone", "animal")
_OPTICAL = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))


def ego_pose(stamp: int) -> tuple[Quaternion, np.ndarray]:
    """Rotation and translation of the ego at a stamp (microseconds): 8 m/s, turning, rolling and climbing."""
    t = (stamp - START) * 1e-6
    rotation = Quaternion(axis=[0, 0, 1], radians=0.4 + 0.2 * t) * Quaternion(axis=[1, 0, 0], radians=0.02)
    return rotation, np.array([400.0 + 7.4 * t, 1100.0 + 3.1 * t, 0.3 * t])


def color_of(camera: str, number: int) -> tuple[int, int, int]:
    """RGB of the image of record ``number`` of a camera."""
    return (40 * CAMERAS.index(camera), 20 * number % 256, 128)


def write_dataroot(
    root: Path,
    scenes: dict[str, int] | None = None,
    sweeps: int = 0,
    version: str = "v1.0-mini",
) -> Path:
    """Write tables and files below ``root``.

    Args:
        scenes: name -> number of key frames; default two of scene-0103 (mini_val), one of scene-0061 (mini_train).
        sweeps: camera records between two key frames.
    """
    scenes = {"scene-0103": 2, "scene-0061": 1} if scenes is None else scenes
    tables: dict[str, list[dict]] = {
        name: []
        for name in [
            "category",
            "attribute",
            "visibility",
            "instance",
            "sensor",
            "calibrated_sensor",
            "ego_pose",
            "log",
            "scene",
            "sample",
            "sample_data",
            "sample_annotation",
            "map",
        ]
    }
    tables["category"] = [{"token": name, "name": name, "description": ""} for name in CATEGORIES]
    tables["attribute"] = [
        {"token": name, "name": name, "description": ""} for name in ("vehicle.moving", "pedestrian.standing")
    ]
    tables["visibility"] = [{"token": "4", "level": "v80-100", "description": ""}]
    tables["log"] = [
        {"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "boston-seaport"}
    ]
    tables["map"] = [
        {"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/map.png"}
    ]
    for channel in (*CAMERAS, "LIDAR_TOP"):
        camera = channel in CAMERAS
        tables["sensor"].append(
            {"token": channel, "channel": channel, "modality": "camera" if camera else "lidar"}
        )
        rotation = (
            Quaternion(axis=[0, 0, 1], degrees=YAW[channel]) * _OPTICAL
            if camera
            else Quaternion(axis=[0, 0, 1], degrees=-90)
        )
        tables["calibrated_sensor"].append(
            {
                "token": channel,
                "sensor_token": channel,
                "translation": [1.5 * np.cos(np.deg2rad(YAW[channel])), 0.5, 1.5]
                if camera
                else [0.9, 0.0, 1.8],
                "rotation": rotation.elements.tolist(),
                "camera_intrinsic": [[126.0, 0, 80.0], [0, 127.0, 45.0], [0, 0, 1]] if camera else [],
            }
        )
    (root / "maps").mkdir(parents=True)
    Image.new("L", (4, 4)).save(root / "maps" / "map.png")
    for number, (name, count) in enumerate(scenes.items()):
        _scene(root, tables, name, count, START + number * 60_000_000, sweeps)
    (root / version).mkdir()
    for name, rows in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows))
    return root


def _scene(root: Path, tables: dict[str, list[dict]], name: str, count: int, start: int, sweeps: int) -> None:
    samples = [f"{name}-sample{i}" for i in range(count)]
    tables["scene"].append(
        {
            "token": name,
            "log_token": "log",
            "nbr_samples": count,
            "first_sample_token": samples[0] if samples else "",
            "last_sample_token": samples[-1] if samples else "",
            "name": name,
            "description": "made",
        }
    )
    for i, token in enumerate(samples):
        tables["sample"].append(
            {
                "token": token,
                "timestamp": start + i * KEY_INTERVAL,
                "scene_token": name,
                "prev": samples[i - 1] if i else "",
                "next": samples[i + 1] if i + 1 < count else "",
            }
        )
    if not samples:
        return
    step = sweeps + 1
    for channel in (*CAMERAS, "LIDAR_TOP"):
        numbers = range((count - 1) * step + 1)
        tokens = [f"{name}-{channel}-{n}" for n in numbers]
        for n in numbers:
            if channel == "LIDAR_TOP" and n % step:
                continue
            _record(root, tables, name, channel, n, tokens, start, step, samples)
    _annotations(tables, name, samples, start)


def _record(
    root: Path,
    tables: dict[str, list[dict]],
    scene: str,
    channel: str,
    n: int,
    tokens: list[str],
    start: int,
    step: int,
    samples: list[str],
) -> None:
    stamp = start + n * KEY_INTERVAL // step + DELAY[channel]
    rotation, translation = ego_pose(stamp)
    tables["ego_pose"].append(
        {
            "token": tokens[n],
            "timestamp": stamp,
            "rotation": rotation.elements.tolist(),
            "translation": translation.tolist(),
        }
    )
    camera = channel in CAMERAS
    folder = "samples" if n % step == 0 else "sweeps"
    filename = f"{folder}/{channel}/{scene}_{n:03d}." + ("jpg" if camera else "pcd.bin")
    tables["sample_data"].append(
        {
            "token": tokens[n],
            "sample_token": samples[-(-n // step)],
            "ego_pose_token": tokens[n],
            "calibrated_sensor_token": channel,
            "timestamp": stamp,
            "fileformat": "jpg" if camera else "pcd",
            "is_key_frame": n % step == 0,
            "height": HEIGHT if camera else 0,
            "width": WIDTH if camera else 0,
            "filename": filename,
            "prev": tokens[n - 1] if n and camera else "",
            "next": tokens[n + 1] if n + 1 < len(tokens) and camera else "",
        }
    )
    path = root / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    if camera:
        Image.new("RGB", (WIDTH, HEIGHT), color_of(channel, n)).save(path, "JPEG", quality=95)
    else:
        points = np.random.default_rng(n).uniform(-20, 20, (500, 5)).astype(np.float32)
        path.write_bytes(points.tobytes())


def object_at(index: int, stamp: int, start: int) -> tuple[np.ndarray, Quaternion]:
    """Where object ``index`` (car, pedestrian, cone, animal) is, in the global frame; the car drives 5 m/s."""
    rotation, origin = ego_pose(start)
    ahead = ((12.0, 2.0, 0.8), (8.0, -3.0, 0.9), (6.0, 5.0, 0.4), (9.0, 0.0, 0.3))[index]
    center = origin + rotation.rotate(np.array(ahead))
    if index == 0:
        center = center + np.array([4.0, 3.0, 0.0]) * (stamp - start) * 1e-6
    return center, Quaternion(axis=[0, 0, 1], radians=(0.6435, -1.0, 0.3, 0.0)[index])


def _annotations(tables: dict[str, list[dict]], scene: str, samples: list[str], start: int) -> None:
    sizes = ((1.9, 4.6, 1.7), (0.7, 0.8, 1.8), (0.4, 0.41, 1.0), (0.3, 0.6, 0.4))
    for index, category in enumerate(CATEGORIES):
        instance = f"{scene}-{category}"
        tokens = [f"{instance}-{i}" for i in range(len(samples))]
        tables["instance"].append(
            {
                "token": instance,
                "category_token": category,
                "nbr_annotations": len(tokens),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        for i, sample in enumerate(samples):
            center, rotation = object_at(index, start + i * KEY_INTERVAL, start)
            tables["sample_annotation"].append(
                {
                    "token": tokens[i],
                    "sample_token": sample,
                    "instance_token": instance,
                    "visibility_token": "4",
                    "attribute_tokens": [["vehicle.moving"], ["pedestrian.standing"], [], []][index],
                    "translation": center.tolist(),
                    "size": list(sizes[index]),
                    "rotation": rotation.elements.tolist(),
                    "prev": tokens[i - 1] if i else "",
                    "next": tokens[i + 1] if i + 1 < len(samples) else "",
                    "num_lidar_pts": 10 + index,
                    "num_radar_pts": index,
                }
            )


def edit_table(root: Path, name: str, change, version: str = "v1.0-mini") -> None:
    """Apply ``change(rows)`` to a table on disk."""
    path = root / version / f"{name}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))
