# SPDX-License-Identifier: Apache-2.0
"""nuScenes tables of synthetic scenes.

Each finished scene is one file with its rows (a *part*); the tables of a version are put together from all
parts. Tokens are digests of what a row stands for, so the same scene always has the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core.datasets.nuscenes import LIDAR
from bevnext_world.recording.rig import Rig
from bevnext_world.streets.actors import CATEGORIES, Actor

Row = dict[str, Any]

ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving"),
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
class Shot:
    """One recording to be made by a sensor.

    Attributes:
        channel; offset: microseconds after the scene's start; key: number of its key frame (of the one that follows
        a sweep); is_key.
    """

    channel: str
    offset: int
    key: int
    is_key: bool


@dataclass(frozen=True, eq=False)
class Take:
    """A finished shot.

    Attributes:
        filename: below the dataroot; pose: ``[4, 4]`` of the ego.
        pixels: of each actor that a key frame's image shows, visible and visible if nothing else were there.
        points: ``[A]`` of the lidar on each actor, ``None`` for a camera.
    """

    shot: Shot
    filename: str
    pose: np.ndarray
    pixels: dict[int, tuple[int, int]]
    points: np.ndarray | None


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
    takes: Sequence[Take],
    actors: Sequence[Actor],
    sightings: Sequence[Sighting],
    shift: np.ndarray,
) -> dict[str, list[Row]]:
    """Rows of one scene.

    Args:
        start: microseconds of the scene's time 0; key_offsets: of each key frame after it.
        sightings: one per key frame.
        shift: ``[2]`` from the scenario's coordinates to the map's (the poses of ``takes`` have it already).
    """
    scene = token("scene", split, seed, name)
    samples = [token(scene, "sample", i) for i in range(len(key_offsets))]
    rows: dict[str, list[Row]] = {table: [] for table in TABLES}
    log, drive = token(scene, "log"), f"synthetic-{split}-{seed}-{number:04d}"
    when = {"vehicle": "synthetic", "date_captured": "2020-01-01"}
    rows["log"].append({"token": log, "logfile": drive, **when, "location": drive})
    ground = {"category": "semantic_prior", "filename": map_name(split, name)}
    rows["map"].append({"token": token(scene, "map"), "log_tokens": [log], **ground})
    rows["scene"].append(
        {
            "token": scene,
            "log_token": log,
            "nbr_samples": len(samples),
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": name,
            "description": description,
        }
    )
    for i, offset in enumerate(key_offsets):
        row = {"token": samples[i], "timestamp": start + offset, "scene_token": scene}
        rows["sample"].append({**row, **_neighbours(samples, i)})
    _sensor_rows(rows, split, seed, rig)
    _data_rows(rows, scene, start, samples, takes, rig)
    _annotation_rows(rows, scene, samples, key_offsets, actors, sightings, shift)
    return rows


def map_name(split: str, scene: str) -> str:
    """Path of a scene's map mask below the dataroot."""
    return f"maps/{split}-{scene}.png"


def _neighbours(tokens: Sequence[str], i: int) -> dict[str, str]:
    """The links of row ``i`` in its chain."""
    return {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}


def _sensor_rows(rows: dict[str, list[Row]], split: str, seed: int, rig: Rig) -> None:
    sensors = [
        (camera.name, "camera", camera.ego_from_camera, camera.intrinsics.tolist()) for camera in rig.cameras
    ]
    for channel, modality, mount, intrinsics in (*sensors, (LIDAR, "lidar", rig.ego_from_lidar, [])):
        sensor = token("sensor", channel)
        rows["sensor"].append({"token": sensor, "channel": channel, "modality": modality})
        rows["calibrated_sensor"].append(
            {
                "token": token("calibrated_sensor", split, seed, (rig.width, rig.height), channel),
                "sensor_token": sensor,
                "translation": rounded(mount[:3, 3], 6),
                "rotation": quaternion(mount),
                "camera_intrinsic": intrinsics,
            }
        )


def _data_rows(
    rows: dict[str, list[Row]], scene: str, start: int, samples: Sequence[str], takes: Sequence[Take], rig: Rig
) -> None:
    channels: dict[str, list[Take]] = {}
    for take in takes:
        channels.setdefault(take.shot.channel, []).append(take)
    calibrated = {row["sensor_token"]: row["token"] for row in rows["calibrated_sensor"]}
    for channel, chain in channels.items():
        chain = sorted(chain, key=lambda take: take.shot.offset)
        tokens = [token(scene, channel, take.shot.offset) for take in chain]
        camera = channel != LIDAR
        for i, take in enumerate(chain):
            pose = {"rotation": quaternion(take.pose), "translation": rounded(take.pose[:3, 3], 6)}
            rows["ego_pose"].append({"token": tokens[i], "timestamp": start + take.shot.offset, **pose})
            rows["sample_data"].append(
                {
                    "token": tokens[i],
                    "sample_token": samples[take.shot.key],
                    "ego_pose_token": tokens[i],
                    "calibrated_sensor_token": calibrated[token("sensor", channel)],
                    "timestamp": start + take.shot.offset,
                    "fileformat": "jpg" if camera else "pcd",
                    "is_key_frame": take.shot.is_key,
                    "height": rig.height if camera else 0,
                    "width": rig.width if camera else 0,
                    "filename": take.filename,
                    **_neighbours(tokens, i),
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
                    "rotation": rounded(np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]), 9),
                    **_neighbours(tokens, i),
                    "num_lidar_pts": int(sightings[key].points[index]),
                    "num_radar_pts": 0,
                }
            )


def shared_rows() -> dict[str, list[Row]]:
    """Tables that do not depend on the scenes."""

    def named(table: str, names: Iterable[str]) -> list[Row]:
        return [{"token": token(table, name), "name": name, "description": ""} for name in names]

    words = "visibility of whole object is between"
    return {
        "category": named("category", CATEGORIES.values()),
        "attribute": named("attribute", ATTRIBUTES),
        "visibility": [
            {"token": name, "level": f"v{low}-{high}", "description": f"{words} {low} and {high}%"}
            for name, low, high in VISIBILITY
        ],
    }


def write_tables(folder: Path, parts: Sequence[Path]) -> None:
    """Put the tables of a version together from the parts of its scenes; the folder appears as a whole.

    Raises:
        OSError: the folder cannot be written.
    """
    shared = shared_rows()
    tables = {table: {row["token"]: row for row in shared.get(table, [])} for table in TABLES}
    for part in parts:
        for table, rows in json.loads(part.read_text(encoding="utf-8")).items():
            for row in rows:  # the scenes' sensors are the same ones
                tables[table].setdefault(row["token"], row)
    new = folder.with_name(f".{folder.name}-new")
    old = folder.with_name(f".{folder.name}-old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    for table, rows in tables.items():
        (new / f"{table}.json").write_text(json.dumps(list(rows.values())), encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
