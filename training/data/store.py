# SPDX-License-Identifier: Apache-2.0
"""What has been computed of a frame once, kept in a file: a record per frame, read through a memory map.

Any number of processes may read and write: a record is written whole with its checksum, and one that is absent, torn or
of another attempt's half is simply not there. The file's name holds a digest of everything that decides the records.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core import images
from bevnext_core.config import ModelConfig
from bevnext_core.errors import DatasetError, one_line
from bevnext_core.files import user_path
from bevnext_core.streaming import preprocess
from training.data import augmentation
from training.data.index import DatasetIndex
from training.losses import depth_targets

_MODULES = (images, preprocess, augmentation, depth_targets)
SOURCES = (Path(__file__).with_name("dataset.py"), *(Path(str(module.__file__)) for module in _MODULES))
"""The code that makes canvases and lidar depth: when it changes, they are made again."""


class FrameStore:
    """Records of ``frames`` frames in ``folder``.

    Args:
        name: start of the file's name; key: what decides the records, see :func:`digest`.
        fields: dtype and shape of each array of a record by its name.

    Raises:
        DatasetError: the file cannot be made.
    """

    def __init__(self, folder: str | Path, name: str, key: str, frames: int,
                 fields: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.record = np.dtype([(k, *v) for k, v in fields.items()] + [("check", "<u4")])
        self.frames, self.path = frames, user_path(folder) / f"{name}-{key}.bin"
        self._map: np.ndarray | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:  # holes take no room; records that are there stay
                file.truncate(frames * self.record.itemsize)
        except OSError as error:
            raise DatasetError(f"--cache: {self.path} cannot be made: {one_line(error)}") from None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_map": None}  # another process maps the file itself

    def read(self, frame: int) -> Any:
        """The record of a frame, with an array by name; ``None`` where there is none."""
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r", shape=(self.frames, self.record.itemsize))
        raw = np.array(self._map[frame])
        row = raw.view(self.record)[0]
        return row if row["check"] and row["check"] == _checksum(raw) else None

    def write(self, frame: int, **values: np.ndarray) -> None:
        """Keep a frame's arrays. Raises DatasetError: the disk is full."""
        row = np.zeros(1, self.record)
        for name, value in values.items():
            row[name] = value
        row["check"] = _checksum(row.view(np.uint8))
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.seek(frame * self.record.itemsize)
                file.write(row.tobytes())
        except OSError as error:
            raise DatasetError(f"--cache: {self.path} cannot be written: {one_line(error)}") from None


def open_stores(folder: str, index: DatasetIndex, config: ModelConfig, frames: np.ndarray
                ) -> tuple[FrameStore, FrameStore]:
    """Of canvases and of lidar depth, for images without augmentation."""
    key, cameras, image = canvas_key(index, config, frames), len(config.cameras), config.image
    canvas, depth = (cameras, image.height, image.width, 3), (cameras, *image.feature_size)
    return (FrameStore(folder, "canvases", key, len(index), {"canvas": ("u1", canvas)}),
            FrameStore(folder, "depths", key, len(index), {"depth": ("<f4", depth)}))


def canvas_key(index: DatasetIndex, config: ModelConfig, frames: np.ndarray) -> str:
    """Digest of all that decides the canvases and the lidar depth of ``frames``, dates of the image files included."""
    dates = [[path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else [0, 0]
             for path in (index.dataroot / str(name) for name in index.image_files[frames].flat)]
    arrays = (index.tokens, index.image_files, index.image_sizes, index.intrinsics, index.global_from_camera,
              index.lidar_files, index.global_from_lidar, frames, np.array(dates))
    values = vars(config.image), (config.depth.min, config.depth.max), config.cameras, str(index.dataroot)
    return digest([*SOURCES, *arrays, *values])


def digest(parts: Iterable[Any]) -> str:
    """Twelve hexadecimal digits of arrays, paths (their content), bytes and plain values."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = part.read_bytes()
        elif isinstance(part, np.ndarray):
            part = f"{part.dtype}{part.shape}".encode() + part.tobytes()
        elif not isinstance(part, bytes):
            part = json.dumps(part).encode()
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:12]


def _checksum(raw: np.ndarray) -> int:
    """Of a record's bytes but for its last four, never 0."""
    return zlib.crc32(raw[:-4]) or 1
