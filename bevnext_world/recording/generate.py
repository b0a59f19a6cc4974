# SPDX-License-Identifier: Apache-2.0
"""Makes a synthetic data set: scenes in parallel, each finished before it counts, the tables last."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bevnext_core.datasets.nuscenes import LIDAR
from bevnext_core.errors import DatasetError, one_line
from bevnext_core.files import atomic_path
from bevnext_world.recording.rig import SWEEP_RATE, build_rig
from bevnext_world.recording.splits import SPLITS, WORLD_VERSION, scene_names, scene_seed
from bevnext_world.recording.stage import Stage, jpeg
from bevnext_world.recording.writer import Shot, Sighting, Take, map_name, scene_part, write_tables
from bevnext_world.streets.ground_paint import ALBEDO_RESOLUTION, LANE, SIDEWALK, STRIP
from bevnext_world.streets.scenario import (
    FIRST_KEY,
    KEY_FRAMES,
    KEY_INTERVAL,
    Scenario,
    build_scenario,
)

MANIFEST = "synthetic.json"
PARTS = "parts"
EPOCH = 1_600_000_000_000_000
"""Microseconds: the start of scene 0."""
SCENE_SPACING = 3_600_000_000
SWEEPS = round(KEY_INTERVAL * SWEEP_RATE)
"""Camera images per key frame with sweeps."""


@dataclass(frozen=True)
class Order:
    """What is to be made.

    Attributes:
        out: dataroot; split, seed, scenes: which scenes; image_size: width, height.
        sweeps: camera images between the key frames; key_frames: per scene.
    """

    out: Path
    split: str
    seed: int
    scenes: int
    image_size: tuple[int, int]
    sweeps: bool
    key_frames: int = KEY_FRAMES

    def parameters(self) -> dict[str, Any]:
        """What must agree between two calls that add to the same split."""
        names = ("seed", "image_size", "sweeps", "key_frames")
        return {**{name: getattr(self, name) for name in names}, "image_size": list(self.image_size)}

    def part(self, name: str) -> Path:
        """The file with the rows of a finished scene."""
        return self.out / PARTS / SPLITS[self.split].version / f"{self.split}-{name}.json"


def key_offsets(order: Order) -> list[int]:
    """Microseconds from a scene's start to each key frame (the lidar's stamp)."""
    return [round((FIRST_KEY + KEY_INTERVAL * i) * 1e6) for i in range(order.key_frames)]


def shots(order: Order, keys: Sequence[int]) -> Iterator[Shot]:
    """All recordings from some key frames up to the next ones; as in nuScenes, a sweep belongs to the one after it."""
    rig = build_rig(order.image_size)
    offsets = key_offsets(order)
    for key in keys:
        yield Shot(LIDAR, offsets[key], key, True)
        last = key == order.key_frames - 1
        for step in range(SWEEPS if order.sweeps and not last else 1):
            moment = offsets[key] + round(step * KEY_INTERVAL * 1e6 / SWEEPS)
            for camera in rig.cameras:
                yield Shot(camera.name, moment + round(camera.delay * 1e6), key + (step > 0), step == 0)


def check_folder(order: Order) -> None:
    """Claim the output folder for this order, or refuse it.

    Raises:
        DatasetError: it holds something else, or scenes of the split made with other parameters (names them).
    """
    if order.out.exists() and not order.out.is_dir():
        raise DatasetError(f"{order.out} is a file; give a folder for --out")
    path = order.out / MANIFEST
    manifest: dict[str, Any] = {"world": WORLD_VERSION, "splits": {}}
    if path.is_file():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            splits = dict(manifest["splits"])
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path} is damaged ({one_line(error)}): give another --out") from None
        if manifest.get("world") != WORLD_VERSION:
            held = f"{order.out} holds world version {manifest.get('world')}"
            raise DatasetError(f"{held}, this is {WORLD_VERSION}: give another --out")
        wanted = order.parameters()
        made = splits.get(order.split) or wanted
        if made != wanted:
            other = [name for name in wanted if made.get(name) != wanted[name]]
            different = ", ".join(f"{name} {made.get(name)} (asked for: {wanted[name]})" for name in other)
            raise DatasetError(
                f"{order.out} holds the split '{order.split}' with {different or 'other parameters'}: "
                "give the same ones, or another --out"
            )
        manifest["splits"] = splits
    elif order.out.is_dir() and any(order.out.iterdir()):
        raise DatasetError(f"{order.out} is not empty and was not made by this command: give another --out")
    manifest["splits"][order.split] = order.parameters()
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")


def generate(order: Order, workers: int = 1, progress: Callable[[int], object] | None = None) -> tuple[int, int]:
    """Make what is missing of an order, then write the tables of its version.

    Args:
        workers: processes.
        progress: called with the number of key frames finished since the last call.

    Returns:
        Scenes made now, scenes that were there already.

    Raises:
        DatasetError: as :func:`check_folder`; a split without so many scenes; a damaged part.
    """
    names = scene_names(order.split, order.scenes)
    check_folder(order)
    missing = [number for number, name in enumerate(names) if not order.part(name).is_file()]
    report = progress or (lambda count: None)
    report((len(names) - len(missing)) * order.key_frames)
    # As few pieces as keep all workers busy: a worker keeps one scene, and builds another anew. Of a single scene each
    # key frame is a piece: progress is seen.
    pieces = order.key_frames if len(missing) == 1 else max(1, -(-workers // max(len(missing), 1)))
    tasks = [
        (number, [int(key) for key in keys])
        for number in missing
        for keys in np.array_split(np.arange(order.key_frames), min(pieces, order.key_frames))
    ]
    takes: dict[int, list[Take]] = {number: [] for number in missing}
    done: dict[int, int] = dict.fromkeys(missing, 0)
    for number, keys, found in _run(order, tasks, min(workers, max(len(tasks), 1))):
        takes[number] += found
        done[number] += len(keys)
        report(len(keys))
        if done[number] == order.key_frames:
            finish(order, number, takes.pop(number))
    folder = order.out / SPLITS[order.split].version
    write_tables(folder, sorted((order.out / PARTS / folder.name).glob("*.json")))
    return len(missing), len(names) - len(missing)


def _run(order: Order, tasks: list[tuple[int, list[int]]], workers: int) -> Iterator[tuple[int, list[int], list[Take]]]:
    if workers <= 1:
        for number, keys in tasks:
            for key in keys:
                yield number, [key], record(order, number, [key])
        return
    # Spawned: the parent may hold threads (torch) that a fork would not survive.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_single_threaded)
    try:
        futures = {pool.submit(record, order, *task): task for task in tasks}
        for future in as_completed(futures):
            yield *futures[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _single_threaded() -> None:
    cv2.setNumThreads(1)


@functools.lru_cache(maxsize=1)
def _stage(split: str, seed: int, number: int, size: tuple[int, int]) -> Stage:
    world, look = scene_seed(split, seed, number).spawn(2)
    return Stage(build_scenario(world), build_rig(size), look)


def record(order: Order, number: int, keys: Sequence[int]) -> list[Take]:
    """Make the recordings that belong to some key frames of a scene, and write their files."""
    name = scene_names(order.split, order.scenes)[number]
    stage = _stage(order.split, order.seed, number, order.image_size)
    cameras = {camera.name: (index, camera) for index, camera in enumerate(stage.rig.cameras)}
    found = []
    for shot in shots(order, keys):
        time = shot.offset * 1e-6
        path = order.out / file_name(order, name, shot)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels: dict[int, tuple[int, int]] = {}
        points = None
        if shot.channel == LIDAR:
            sweep = stage.scan(time)
            points = sweep.hits
            path.write_bytes(sweep.points.tobytes())
        else:
            index, camera = cameras[shot.channel]
            # Seeded by the shot: what a worker made before does not matter.
            seed = [*scene_seed(order.split, order.seed, number).entropy, index, shot.offset]  # type: ignore[misc]
            rgb, pixels = stage.photograph(camera, time, np.random.default_rng(seed))
            path.write_bytes(jpeg(rgb))
        pose = stage.world_from_ego(time)
        pose[:2, 3] -= stage.scenario.site.origin
        found.append(Take(shot, file_name(order, name, shot), pose, pixels if shot.is_key else {}, points))
    return found


def file_name(order: Order, scene: str, shot: Shot) -> str:
    """Path of a recording below the dataroot."""
    folder = "samples" if shot.is_key else "sweeps"
    suffix = "pcd.bin" if shot.channel == LIDAR else "jpg"
    return f"{folder}/{shot.channel}/{order.split}-{scene}__{shot.channel}__{shot.offset:08d}.{suffix}"


def finish(order: Order, number: int, takes: list[Take]) -> None:
    """Write a scene's map and, last of all, its part: from then on the scene exists."""
    name = scene_names(order.split, order.scenes)[number]
    world, _ = scene_seed(order.split, order.seed, number).spawn(2)
    scenario = build_scenario(world, painted=False)
    count = len(scenario.actors)
    sightings = []
    for key in range(order.key_frames):
        pixels, points = np.zeros((count, 2), np.int64), np.zeros(count, np.int64)
        for take in takes:
            if take.shot.key != key or not take.shot.is_key:
                continue
            for actor, counts in take.pixels.items():
                pixels[actor] += counts
            if take.points is not None:
                points += take.points
        sightings.append(Sighting(pixels, points))
    part = scene_part(
        *(order.split, order.seed, name, number, build_rig(order.image_size), describe(scenario)),
        EPOCH + (SPLITS[order.split].code * 1000 + number) * SCENE_SPACING,
        *(key_offsets(order), takes, scenario.actors, sightings, -scenario.site.origin),
    )
    write_map(order.out / map_name(order.split, name), scenario)
    with atomic_path(order.part(name)) as temporary:
        temporary.write_text(json.dumps(part), encoding="utf-8")


def describe(scenario: Scenario) -> str:
    """A scene in words."""
    v = np.hypot(*np.diff(scenario.ego.track[:, :2], axis=0).T) * 50
    way = "turning" if scenario.ego.route.kind == "turn" else "straight on"
    moving = sum(not actor.static for actor in scenario.actors)
    return (
        f"Synthetic: ego {way} at {v.min():.0f} to {v.max():.0f} m/s, {len(scenario.network.junctions)} junctions, "
        f"{len(scenario.actors)} objects, {moving} of them moving"
    )


def write_map(path: Path, scenario: Scenario) -> None:
    """The map mask that the devkit reads: 255 on roads and sidewalks, 0.1 m per pixel, north up."""
    ground = (scenario.site.bits & (LANE | STRIP | SIDEWALK)) > 0
    size = np.rint(scenario.site.size / ALBEDO_RESOLUTION).astype(int).tolist()
    mask = cv2.resize(ground.astype(np.uint8) * 255, size, interpolation=cv2.INTER_NEAREST)
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), mask[::-1])


