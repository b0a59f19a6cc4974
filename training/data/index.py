# SPDX-License-Identifier: Apache-2.0
"""The index of a nuScenes version: what training needs of its tables, in one file that loads in a second.

Built from the devkit's tables on first use. A file is used only when the dataroot, the version, the tables'
sizes and times, and the code that fills it are those it was built with; anything else builds it again. It is
written beside its final name and moved into place, so a half-written one is never read.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core import boxes, classes, files, geometry
from bevnext_core.config import ModelConfig
from bevnext_core.datasets import ground_truth, nuscenes, nuscenes_tables
from bevnext_core.datasets.nuscenes import LIDAR, NuScenesReader
from bevnext_core.datasets.nuscenes_tables import BOX_FIELDS, check_truth, load_tables, numbers, row_of, value
from bevnext_core.errors import DatasetError, FrameError, one_line
from bevnext_core.files import atomic_path, cache_directory, user_path
from bevnext_core.geometry import rigid

_MODULES = (nuscenes, nuscenes_tables, ground_truth, boxes, classes, files, geometry)
SOURCES = tuple(Path(str(file)).resolve() for file in (__file__, *(module.__file__ for module in _MODULES)))
"""The code that fills an index: when it changes, the index is built again."""


@dataclass(frozen=True)
class DatasetIndex:
    """Key frames of one version, sorted by scene and time; S frames, N cameras, M boxes in all.

    Attributes:
        tokens, scenes: ``[S]`` sample token and scene name; stamps: ``[S]`` int64 microseconds (anchor camera).
        previous: ``[S]`` int64, the key frame before in the same scene, or -1.
        image_files: ``[S, N]`` paths below the dataroot; image_sizes: ``[S, N, 2]`` (width, height).
        intrinsics: ``[S, N, 3, 3]``; global_from_camera: ``[S, N, 4, 4]``; global_from_ego: ``[S, 4, 4]``
            (ego frame at the anchor camera's stamp).
        lidar_files: ``[S]``, empty where there is no record; global_from_lidar: ``[S, 4, 4]``.
        box_start: ``[S + 1]``; boxes: ``[M, 9]`` float32 in the frame's ego frame (NaN velocities are 0, as
            published); labels: ``[M]``; points: ``[M]`` lidar and radar points in the box.
        faults: (sample token, reason) of key frames whose tables cannot be used; they are not in the index.
    """

    dataroot: Path
    version: str
    tokens: np.ndarray
    scenes: np.ndarray
    stamps: np.ndarray
    previous: np.ndarray
    image_files: np.ndarray
    image_sizes: np.ndarray
    intrinsics: np.ndarray
    global_from_camera: np.ndarray
    global_from_ego: np.ndarray
    lidar_files: np.ndarray
    global_from_lidar: np.ndarray
    box_start: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    faults: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def truth(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``[m, 9]`` with at least one lidar or radar point, and their labels ``[m]``."""
        part = slice(self.box_start[frame], self.box_start[frame + 1])
        seen = self.points[part] > 0
        return self.boxes[part][seen], self.labels[part][seen]


_ARRAYS = tuple(k for k in DatasetIndex.__dataclass_fields__ if k not in ("dataroot", "version", "faults"))


def open_index(
    dataroot: str | Path,
    version: str,
    folder: str | Path | None = None,
    progress: bool = True,
    config: ModelConfig | None = None,
) -> DatasetIndex:
    """The index of a version; built when there is none that fits.

    Args:
        folder: where index files are kept; by default in the project's cache: the dataroot may be read-only.
        progress: show a progress bar while it is built.
        config: names the cameras and classes, as published by default.

    Raises:
        DatasetError: as :func:`bevnext_core.datasets.nuscenes.load_tables`, or the folder cannot be written.
    """
    root = user_path(dataroot).resolve()
    if not (root / version).is_dir():
        load_tables(root, version)  # says what is wrong
    names = _names(config or ModelConfig())
    key = index_key(root, version, names)
    path = index_path(root, version, folder, names)
    index = _read(path, root, version, key)
    if index is None:
        index = _build(root, version, progress, names)
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                arrays = {name: getattr(index, name) for name in _ARRAYS}
                header = json.dumps({"key": key, "faults": index.faults})
                np.savez(file, header=np.array(header), **arrays)
        except OSError as error:
            raise DatasetError(f"the index cannot be written to {path}: {one_line(error)}") from None
    return index


def join_indexes(indexes: Sequence[DatasetIndex]) -> DatasetIndex:
    """One index of several data sets: cameras of other sizes and focal lengths, or more scenes; files by absolute path.

    Its ``dataroot`` is that of the first.
    """
    if len(indexes) == 1:
        return indexes[0]
    first = np.cumsum([0, *(len(index) for index in indexes)])
    boxes = np.cumsum([0, *(len(index.boxes) for index in indexes)])
    columns = {name: np.concatenate([getattr(index, name) for index in indexes]) for name in _ARRAYS}
    columns["previous"] = np.concatenate([np.where(i.previous < 0, -1, i.previous + n) for i, n in zip(indexes, first)])
    starts = [index.box_start[:-1] + n for index, n in zip(indexes, boxes)]
    columns["box_start"] = np.concatenate([*starts, boxes[-1:]])
    for name in ("image_files", "lidar_files"):
        columns[name] = np.concatenate([_absolute(index.dataroot, getattr(index, name)) for index in indexes])
    faults = tuple(fault for index in indexes for fault in index.faults)
    return DatasetIndex(indexes[0].dataroot, indexes[0].version, **columns, faults=faults)


def _absolute(dataroot: Path, names: np.ndarray) -> np.ndarray:
    return np.array([str(dataroot / name) if name else "" for name in names.ravel().tolist()]).reshape(names.shape)


def index_path(
    dataroot: Path, version: str, folder: str | Path | None = None, names: dict[str, Any] | None = None
) -> Path:
    """The file that holds the index of a version, with the published cameras and classes or others."""
    others = str(names) if names and names != _names(ModelConfig()) else ""
    name = hashlib.sha256((str(dataroot) + others).encode()).hexdigest()[:12]
    return Path(folder or cache_directory()) / f"index-{version}-{name}.npz"


def _names(config: ModelConfig) -> dict[str, Any]:
    """What a reader takes of a configuration, as JSON would give it back."""
    names = {"cameras": list(config.cameras), "class_names": list(config.class_names)}
    return {**names, "anchor_camera": config.anchor_camera}


def index_key(dataroot: Path, version: str, names: dict[str, Any]) -> dict[str, Any]:
    """What must be unchanged for an index to be used again."""
    tables = {}
    for path in sorted((dataroot / version).glob("*.json")):
        status = path.stat()
        tables[path.name] = [status.st_size, status.st_mtime_ns]
    code = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()
    return {"code": code, "dataroot": str(dataroot), "version": version, "tables": tables, "names": names}


def _read(path: Path, dataroot: Path, version: str, key: dict[str, Any]) -> DatasetIndex | None:
    """The stored index, or ``None`` when it is absent, damaged or of another key."""
    try:
        with np.load(path, allow_pickle=False) as data:
            header = json.loads(str(data["header"]))
            if header["key"] != key:
                return None
            arrays = {name: data[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    faults = tuple((str(token), str(reason)) for token, reason in header["faults"])
    return DatasetIndex(dataroot, version, **arrays, faults=faults)


def _build(dataroot: Path, version: str, progress: bool, names: dict[str, Any]) -> DatasetIndex:
    from tqdm import tqdm

    reader = NuScenesReader(dataroot, version, **names)
    rows: list[dict[str, Any]] = []
    faults: list[tuple[str, str]] = []
    bar = tqdm(reader.scenes, desc=f"index of {version}", unit="scene", disable=not progress)
    for scene in bar:
        previous = -1
        for ref in reader.refs(scene):
            try:
                row = _row(reader, ref)
            except (FrameError, DatasetError) as error:
                faults.append((ref.sample_token, one_line(error)))
                continue
            row["previous"] = previous
            previous = len(rows)
            rows.append(row)
    if not rows:
        token, reason = faults[0] if faults else ("", "there is none")
        raise DatasetError(
            f"{dataroot} ({version}) holds no key frame that can be used; the first, {token}: {reason}"
        )
    boxes = [row.pop("boxes") for row in rows]
    labels = [row.pop("labels") for row in rows]
    points = [row.pop("points") for row in rows]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return DatasetIndex(
        dataroot,
        version,
        **columns,
        box_start=np.concatenate([[0], np.cumsum([len(b) for b in boxes])]).astype(np.int64),
        boxes=np.concatenate(boxes).astype(np.float32),
        labels=np.concatenate(labels).astype(np.int64),
        points=np.concatenate(points).astype(np.int64),
        faults=tuple(faults),
    )


def _row(reader: NuScenesReader, ref: Any) -> dict[str, Any]:
    """One key frame's entries. Raises FrameError or DatasetError when a pose, calibration or box is unusable."""
    missing = [camera for camera in reader.cameras if camera not in ref.records]
    if missing:
        raise FrameError(f"no record of {', '.join(missing)}")
    records = [ref.records[camera] for camera in reader.cameras]
    intrinsics = []
    for camera, record in zip(reader.cameras, records):
        sensor = row_of(reader.tables, "calibrated_sensor", record["calibrated_sensor_token"])
        matrix = numbers("calibrated_sensor", sensor, "camera_intrinsic", 3, 3, finite=False)
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
            raise FrameError(f"{camera}: the intrinsics cannot be used: {matrix.tolist()}")
        intrinsics.append(matrix)
    check_truth(reader.tables, [ref.sample_token], BOX_FIELDS, "training")
    truth = reader.ground_truth(ref)
    boxes = truth.boxes.copy()
    boxes[:, 7:9] = np.nan_to_num(boxes[:, 7:9], nan=0.0, posinf=0.0, neginf=0.0)
    usable = np.isfinite(boxes).all(1) & (boxes[:, 3:6] > 0).all(1)
    if not usable.all():
        raise DatasetError(
            f"annotation {truth.annotation_tokens[int(np.argmin(usable))]} has an impossible box"
        )
    lidar = row_of(reader.tables, "sample", ref.sample_token)["data"].get(LIDAR)
    lidar_record = row_of(reader.tables, "sample_data", lidar) if lidar else None
    return {
        "tokens": ref.sample_token,
        "scenes": ref.scene,
        "stamps": ref.stamp_ns // 1000,
        "image_files": [str(value("sample_data", record, "filename")) for record in records],
        "image_sizes": [
            [int(numbers("sample_data", record, side)) for side in ("width", "height")] for record in records
        ],
        "intrinsics": intrinsics,
        "global_from_camera": [_global_from_sensor(reader, record) for record in records],
        "global_from_ego": reader.global_from_ego(ref),
        "lidar_files": str(value("sample_data", lidar_record, "filename")) if lidar_record else "",
        "global_from_lidar": _global_from_sensor(reader, lidar_record) if lidar_record else np.eye(4),
        "boxes": boxes,
        "labels": truth.labels,
        "points": truth.num_points,
    }


def _global_from_sensor(reader: NuScenesReader, record: dict[str, Any]) -> np.ndarray:
    transform = np.eye(4)
    for table, field in (("ego_pose", "ego_pose_token"), ("calibrated_sensor", "calibrated_sensor_token")):
        row = row_of(reader.tables, table, value("sample_data", record, field))
        try:
            rotation, translation = numbers(table, row, "rotation", 4), numbers(table, row, "translation", 3)
            transform = transform @ rigid(rotation, translation)
        except ValueError as error:
            raise FrameError(
                f"{record['filename']}: the pose or calibration cannot be used: {error}"
            ) from None
    return transform
