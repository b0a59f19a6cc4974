# SPDX-License-Identifier: Apache-2.0
"""The demo's drive: one scene of the synthetic world that no training has seen, made once and kept."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from bevnext_core.config import ModelConfig
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.errors import DatasetError
from bevnext_core.ops.native import NativeBuildError
from bevnext_world.recording.generate import MANIFEST, Order

NAME = "Kiln Lane"
SPLIT, SEED = "mini_val", 11
"""Weights are trained on other splits, which share no scene with this one. The seed was chosen, before anything
was detected, for a drive that moves all the time, turns, and meets all ten classes."""
IMAGE_SIZE = (400, 225)
"""Pixels: those of the cameras that the weights were trained with. The depth network is told the raw focal lengths, so
other cameras are another rig to it."""
PACKED = Path(__file__).with_name("kiln_lane.zip")
"""The drive's first key frames without lidar, for where no compiler is (``scripts/pack_demo_drive.py`` writes it)."""
PACKED_KEY_FRAMES = 6


@dataclass(frozen=True)
class Drive:
    """Where the drive is: a data set in the nuScenes format that holds one scene.

    ``eval_set`` is the official split that its name belongs to; ``made`` is false when it was there already.
    """

    dataroot: Path
    version: str
    scene: str
    eval_set: str
    made: bool

    @property
    def description(self) -> str:
        """What it is, in words."""
        size = "x".join(map(str, IMAGE_SIZE))
        return f"{NAME}: synthetic world, split {self.eval_set}, seed {SEED}, {self.scene}, six cameras {size} at 12 Hz"

    def reader(self, config: ModelConfig) -> NuScenesReader:
        """All camera frames of the drive, for a network."""
        return NuScenesReader.of(config, self.dataroot, self.version, scenes=[self.scene], sweeps=True)


def prepare_drive(folder: str | Path | None = None, key_frames: int = 20) -> Drive:
    """The drive, synthesized with a progress bar when it is not complete; what is there is used again.

    Without a C++ compiler the renderer cannot be built: the short drive that the package carries is taken instead.

    Args:
        folder: where it is kept; by default in the project's cache, beside those of other versions of the world.
        key_frames: its length (0.5 s each); a whole scene has 20.

    Raises:
        DatasetError: fewer than two key frames, the folder holds something else, or nuscenes-devkit is not installed.
    """
    if key_frames < 2:
        raise DatasetError(f"a drive has at least 2 key frames, not {key_frames}")
    from bevnext_core.files import cache_directory, user_path
    from bevnext_tools.progress import progress, say
    from bevnext_tools.threads import usable_cores
    from bevnext_world.recording.generate import generate
    from bevnext_world.recording.splits import SPLITS, WORLD_VERSION, scene_names
    from bevnext_world.renderer.renderer import library

    size = "x".join(map(str, IMAGE_SIZE))
    name = f"{NAME.lower().replace(' ', '-')}-world{WORLD_VERSION}-seed{SEED}-{size}-{key_frames}"
    out = user_path(folder) if folder else cache_directory() / "drives" / name
    (scene,) = scene_names(SPLIT, 1)
    order = Order(out, SPLIT, SEED, 1, IMAGE_SIZE, True, key_frames)
    if order.part(scene).is_file():
        say(f"the drive is there: {out}")
    else:
        say(f"making the drive ({key_frames} key frames, about a minute; kept in {out})")
        try:
            library()
        except NativeBuildError as error:
            order = unpack(replace(order, out=out if folder else out.with_name(f"{name}-packed")))
            say(f"the drive is the package's own, {order.key_frames} key frames: {error}")
    with progress("making the drive", "key frame", order.key_frames, begin="") as bar:
        made, _ = generate(order, usable_cores(), bar.update)
    return Drive(order.out, SPLITS[SPLIT].version, scene, SPLIT, bool(made))


def example_drive() -> tuple[Path, str]:
    """Folder and version of the drive's first seconds, for an example of a rig. Raises as :func:`prepare_drive`."""
    drive = prepare_drive(key_frames=PACKED_KEY_FRAMES)
    return drive.dataroot, drive.version


def unpack(order: Order) -> Order:
    """The order of the drive that the package carries, its files in place unless they are already.

    Raises:
        DatasetError: ``order.out`` holds something else.
    """
    order = replace(order, key_frames=PACKED_KEY_FRAMES)
    if order.out.is_dir() and any(order.out.iterdir()) and not (order.out / MANIFEST).is_file():
        raise DatasetError(f"{order.out} is not empty and was not made by this command: give another --drive")
    with zipfile.ZipFile(PACKED) as archive:
        for member in archive.infolist():
            there = order.out / member.filename
            if not there.is_file() or there.stat().st_size != member.file_size:
                archive.extract(member, order.out)
    return order
