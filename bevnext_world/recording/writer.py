"""nuScenes tables of synthetic scenes.

Each finished scene is one file with its rows (a *part*); the tables of a version are put together from all
parts. Tokens are digests of what a row stands for, so the same scene always has the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core.datasets.nuscenes import LIDAR
from bevnext_world.recording.rig import Rig
from bevnext_world.streets.actors import CATEGORIES, Actor

Row = dict[str, Any]

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY = (("1", 0, 40), ("2", 40, 60), ("3", 60, 80), ("4", 80, 100))
TABLES = (
    *("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log"),
    *("scene", "sample", "sample_data", "sample_annotation", "map"),
)


def token(*parts: object) -> str:
    """32 hexadecimal digits that stand for ``parts``."""
    return hashlib.md5("|".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def quaternion(transform: np.ndarray) -> list[float]:
    """w, x, y, z of a rigid transform ``[4, 4]``, w positive."""
    from pyquaternion import Quaternion

    q = Quaternion(matrix=transform[:3, :3], rtol=1e-6, atol=1e-8)
    return [round(float(v), 12) for v in (q if q.w >= 0 else -q).elements]


def rounded(values: np.ndarray, digits: int = 4) -> list[float]:
    return [round(float(v), digits) for v in values]


@dataclass(frozen=True)
class Recording:
    """One file of a sensor.

    Attributes:
        channel, filename; offset: microseconds after the scene's start; key: number of its key frame (of the
        nearest one for a sweep); is_key; pose: ``[4, 4]`` of the ego.
    """

    channel: str
    filename: str
    offset: int
    key: int
    is_key: bool
    pose: np.ndarray


@dataclass(frozen=True)
class Sighting:
    """What the sensors saw of the actors at a key frame.

    Attributes:
        pixels: ``[A, 2]`` visible, and visible if nothing else were there, over all cameras; points: ``[A]`` of
        the lidar.
    """

    pixels: np.ndarray
    points: np.ndarray


def visibility_level(seen: int, alone: int) -> str:
    """Token of the visibility table: the share of an object's pixels, over all images, that is not hidden."""
    share = 100.0 * seen / alone if alone else 0.0
    return next(name for name, low, high in VISIBILITY if share < high or high == 100)


def scene_part(
    split: str,
    seed: int,
    name: str,
    number: int,
    rig: Rig,
    description: str,
    start: int,
    key_offsets: Sequence[int],
    recordings: Sequence[Recording],
    actors: Sequence[Actor],
    sightings: Sequence[Sighting],
    shift: np.ndarray,
) -> dict[str, list[Row]]:
    """Rows of one scene.

    Args:
        start: microseconds of the scene's time 0; key_offsets: of each key frame after it.
        sightings: one per key frame.
        shift: ``[2]`` from the scenario's coordinates to the map's (the poses of ``recordings`` have it already).
    """
    scene = token("scene", split, seed, name)
    samples = [token(scene, "sample", i) for i in range(len(key_offsets))]
    rows: dict[str, list[Row]] = {table: [] for table in TABLES}
    rows["log"] = [
        {
            "token": token(scene, "log"),
            "logfile": f"synthetic-{split}-{seed}-{number:04d}",
            "vehicle": "synthetic",
            "date_captured": "2020-01-01",
            "location": f"synthetic-{split}-{seed}-{number:04d}",
        }
    ]
    rows["map"] = [
        {
            "token": token(scene, "map"),
            "log_tokens": [token(scene, "log")],
            "category": "semantic_prior",
            "filename": map_name(split, name),
        }
    ]
    rows["scene"] = [
        {
            "token": scene,
            "log_token": token(scene, "log"),
            "nbr_samples": len(samples),
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": name,
            "description": description,
        }
    ]
    rows["sample"] = [
        {
            "token": samples[i],
            "timestamp": start + offset,
            "scene_token": scene,
            "prev": samples[i - 1] if i else "",
            "next": samples[i + 1] if i + 1 < len(samples) else "",
        }
        for i, offset in enumerate(key_offsets)
    ]
    _sensor_rows(rows, split, seed, rig)
    _data_rows(rows, scene, start, samples, recordings, rows["calibrated_sensor"], rig)
    _annotation_rows(rows, scene, samples, key_offsets, actors, sightings, shift)
    return rows


def map_name(split: str, scene: str) -> str:
    """Path of a scene's map mask below the dataroot."""
    return f"maps/{split}-{scene}.png"


def _sensor_rows(rows: dict[str, list[Row]], split: str, seed: int, rig: Rig) -> None:
    size = (rig.width, rig.height)
    for camera in rig.cameras:
        rows["sensor"].append(
            {"token": token("sensor", camera.name), "channel": camera.name, "modality": "camera"}
        )
        rows["calibrated_sensor"].append(
            {
                "token": token("calibrated_sensor", split, seed, size, camera.name),
                "sensor_token": token("sensor", camera.name),
                "translation": rounded(camera.ego_from_camera[:3, 3], 6),
                "rotation": quaternion(camera.ego_from_camera),
                "camera_intrinsic": camera.intrinsics.tolist(),
            }
        )
    rows["sensor"].append({"token": token("sensor", LIDAR), "channel": LIDAR, "modality": "lidar"})
    rows["calibrated_sensor"].append(
        {
            "token": token("calibrated_sensor", split, seed, size, LIDAR),
            "sensor_token": token("sensor", LIDAR),
            "translation": rounded(rig.ego_from_lidar[:3, 3], 6),
            "rotation": quaternion(rig.ego_from_lidar),
            "camera_intrinsic": [],
        }
    )


def _data_rows(
    rows: dict[str, list[Row]],
    scene: str,
    start: int,
    samples: Sequence[str],
    recordings: Sequence[Recording],
    sensors: Sequence[Row],
    rig: Rig,
) -> None:
    channels: dict[str, list[Recording]] = {}
    for recording in recordings:
        channels.setdefault(recording.channel, []).append(recording)
    sensor_of = dict(
        zip([*(camera.name for camera in rig.cameras), LIDAR], (row["token"] for row in sensors))
    )
    for channel, records in channels.items():
        records = sorted(records, key=lambda record: record.offset)
        tokens = [token(scene, channel, record.offset) for record in records]
        for i, record in enumerate(records):
            camera = channel != LIDAR
            rows["ego_pose"].append(
                {
                    "token": tokens[i],
                    "timestamp": start + record.offset,
                    "rotation": quaternion(record.pose),
                    "translation": rounded(record.pose[:3, 3], 6),
                }
            )
            rows["sample_data"].append(
                {
                    "token": tokens[i],
                    "sample_token": samples[record.key],
                    "ego_pose_token": tokens[i],
                    "calibrated_sensor_token": sensor_of[channel],
                    "timestamp": start + record.offset,
                    "fileformat": "jpg" if camera else "pcd",
                    "is_key_frame": record.is_key,
                    "height": rig.height if camera else 0,
                    "width": rig.width if camera else 0,
                    "filename": record.filename,
                    "prev": tokens[i - 1] if i else "",
                    "next": tokens[i + 1] if i + 1 < len(tokens) else "",
                }
            )


def _annotation_rows(
    rows: dict[str, list[Row]],
    scene: str,
    samples: Sequence[str],
    key_offsets: Sequence[int],
    actors: Sequence[Actor],
    sightings: Sequence[Sighting],
    shift: np.ndarray,
) -> None:
    """An object is annotated from the first to the last key frame in which the lidar hits it."""
    for index, actor in enumerate(actors):
        hit = [i for i, sighting in enumerate(sightings) if sighting.points[index] > 0]
        if not hit:
            continue
        keys = range(hit[0], hit[-1] + 1)
        instance = token(scene, "instance", index)
        tokens = [token(instance, key) for key in keys]
        rows["instance"].append(
            {
                "token": instance,
                "category_token": token("category", CATEGORIES[actor.class_name]),
                "nbr_annotations": len(tokens),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        length, width, height = actor.size
        for i, key in enumerate(keys):
            time = key_offsets[key] * 1e-6
            x, y, yaw = actor.poses(time)
            attribute = actor.attribute(time)
            seen, alone = sightings[key].pixels[index]
            rows["sample_annotation"].append(
                {
                    "token": tokens[i],
                    "sample_token": samples[key],
                    "instance_token": instance,
                    "visibility_token": visibility_level(int(seen), int(alone)),
                    "attribute_tokens": [token("attribute", attribute)] if attribute else [],
                    "translation": rounded(np.array([x + shift[0], y + shift[1], height / 2])),
                    "size": rounded(np.array([width, length, height])),
                    "rotation": [
                        round(float(np.cos(yaw / 2)), 9),
                        0.0,
                        0.0,
                        round(float(np.sin(yaw / 2)), 9),
                    ],
                    "prev": tokens[i - 1] if i else "",
                    "next": tokens[i + 1] if i + 1 < len(tokens) else "",
                    "num_lidar_pts": int(sightings[key].points[index]),
                    "num_radar_pts": 0,
                }
            )


def shared_rows() -> dict[str, list[Row]]:
    """Tables that do not depend on the scenes."""
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": ""}
            for name in CATEGORIES.values()
        ],
        "attribute": [
            {"token": token("attribute", name), "name": name, "description": ""} for name in ATTRIBUTES
        ],
        "visibility": [
            {
                "token": name,
                "level": f"v{low}-{high}",
                "description": f"visibility of whole object is between {low} and {high}%",
            }
            for name, low, high in VISIBILITY
        ],
    }


def write_tables(folder: Path, parts: Sequence[Path]) -> None:
    """Put the tables of a version together from the parts of its scenes; the folder appears as a whole.

    Raises:
        OSError: the folder cannot be written.
    """
    tables: dict[str, list[Row]] = {table: [] for table in TABLES}
    tables.update(shared_rows())
    known: set[str] = set()
    for part in parts:
        for table, rows in json.loads(part.read_text(encoding="utf-8")).items():
            for row in rows:
                if table in ("sensor", "calibrated_sensor"):
                    if row["token"] in known:
                        continue
                    known.add(row["token"])
                tables[table].append(row)
    new = folder.with_name(f".{folder.name}-new")
    old = folder.with_name(f".{folder.name}-old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    for table, rows in tables.items():
        (new / f"{table}.json").write_text(json.dumps(rows), encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
