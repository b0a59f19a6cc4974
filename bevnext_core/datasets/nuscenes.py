# SPDX-License-Identifier: Apache-2.0
"""nuScenes: camera frames, ground truth and lidar points, over the official nuscenes-devkit.

The reader gives one :class:`CameraFrame` per key frame (2 Hz) or per record of the anchor camera
(``sweeps=True``, 12 Hz). Each camera has the ego pose at its own stamp; boxes and points are in the
ego frame at the anchor camera's stamp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from bevnext_core.classes import ANCHOR_CAMERA, CAMERAS, CLASSES
from bevnext_core.config import ModelConfig
from bevnext_core.datasets.ground_truth import GroundTruth, annotated_boxes
from bevnext_core.datasets.nuscenes_tables import (
    Row,
    listing,
    load_tables,
    numbers,
    row_of,
    split_scenes,
    stamp_ns,
    value,
)
from bevnext_core.errors import DatasetError, FrameError, one_line
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid, rigid
from bevnext_core.images import read_images

LIDAR = "LIDAR_TOP"
LIDAR_FIELDS = 5
"""float32 values per lidar point in a file: x, y, z, intensity, ring."""


@dataclass(frozen=True)
class FrameRef:
    """Where the data of one frame are.

    Attributes:
        scene, index: the scene's name and the frame's number in it, from 0.
        sample_token: the key frame; for a sweep the key frame it was recorded for.
        is_key: whether this is a key frame.
        stamp_ns: the anchor camera's stamp.
        records: camera -> row of the ``sample_data`` table.
    """

    scene: str
    index: int
    sample_token: str
    is_key: bool
    stamp_ns: int
    records: dict[str, Row]


class NuScenesReader:
    """Frames of chosen scenes.

    ``for scene in reader.scenes: for frame in reader.frames(scene): ...``. Images are read when a frame is
    asked for, all cameras in parallel. To go on after a frame that cannot be read, iterate over
    :meth:`refs` and :meth:`load` each.

    With ``sweeps=True`` each record of the anchor camera makes a frame, and every other camera gives the
    record whose stamp is nearest. The token of a key frame is its sample token, that of a sweep is empty.

    Args:
        dataroot, version: the data set's folder and the folder with its tables, e.g. ``v1.0-mini``.
        scenes: names of scenes; ``split``: an official split. One of the two, or neither for all.
        cameras, anchor_camera: as in the model's configuration.
        sweeps: all camera records and not only key frames.
        tables: a ``nuscenes.NuScenes`` that is loaded already; ``dataroot`` and ``version`` are then its own.

    Raises:
        DatasetError: as :func:`load_tables`; unknown scene, split or camera; a scene without samples.
    """

    def __init__(
        self,
        dataroot: str | Path,
        version: str,
        *,
        scenes: Sequence[str] | None = None,
        split: str | None = None,
        cameras: Sequence[str] = CAMERAS,
        anchor_camera: str = ANCHOR_CAMERA,
        sweeps: bool = False,
        class_names: Sequence[str] = CLASSES,
        tables: Any = None,
    ) -> None:
        self.tables = load_tables(dataroot, version) if tables is None else tables
        self.dataroot = Path(self.tables.dataroot)
        self.version = str(self.tables.version)
        self.cameras = tuple(cameras)
        self.anchor_camera = anchor_camera
        self.sweeps = sweeps
        self.class_names = tuple(class_names)
        self._check_cameras()
        self._scene_rows = {row["name"]: row for row in self.tables.scene}
        self.scenes = self._choose_scenes(scenes, split)
        for scene in self.scenes:
            if not value("scene", self._scene_rows[scene], "first_sample_token"):
                raise DatasetError(f"scene '{scene}' of {self._where} is empty: it has no samples")
        self._refs: dict[str, tuple[FrameRef, ...]] = {}

    @classmethod
    def of(cls, config: ModelConfig, dataroot: str | Path, version: str, **choice: Any) -> Self:
        """The reader of a network's cameras and classes; ``choice``: of scenes, as for the class."""
        names = {name: getattr(config, name) for name in ("cameras", "anchor_camera", "class_names")}
        return cls(dataroot, version, **names, **choice)

    @property
    def _where(self) -> str:
        return f"{self.dataroot} ({self.version})"

    def _check_cameras(self) -> None:
        present = sorted(row["channel"] for row in self.tables.sensor if row["modality"] == "camera")
        missing = [camera for camera in self.cameras if camera not in present]
        if missing:
            there = ", ".join(present) or "none"
            raise DatasetError(f"{self._where} has no camera {', '.join(missing)}; it has {there}")
        if self.anchor_camera not in self.cameras:
            raise DatasetError(f"the anchor camera '{self.anchor_camera}' is not one of {', '.join(self.cameras)}")

    def _choose_scenes(self, scenes: Sequence[str] | None, split: str | None) -> tuple[str, ...]:
        if scenes is not None and split is not None:
            raise DatasetError("give scenes or a split, not both")
        present = list(self._scene_rows)
        if scenes is not None:
            unknown = [scene for scene in scenes if scene not in self._scene_rows]
            if unknown:
                raise DatasetError(f"unknown scene '{unknown[0]}': {self._where} holds {listing(present)}")
            return tuple(dict.fromkeys(scenes))
        if split is not None:
            members = set(split_scenes(split, self.version))
            chosen = tuple(scene for scene in present if scene in members)
            if not chosen:
                held = listing(present)
                raise DatasetError(f"no scene of the split '{split}' is in {self._where}, which holds {held}")
            return chosen
        if not present:
            raise DatasetError(f"{self._where} holds no scenes")
        return tuple(present)

    def __len__(self) -> int:
        """Number of frames in all chosen scenes."""
        return sum(len(self.refs(scene)) for scene in self.scenes)

    def sample_tokens(self, scene: str | None = None) -> tuple[str, ...]:
        """Sample tokens (key frames) of one scene, or of all chosen scenes, in time order per scene."""
        if scene is None:
            return tuple(token for name in self.scenes for token in self.sample_tokens(name))
        tokens = []
        token = value("scene", self._scene_rows[scene], "first_sample_token")
        while token:
            tokens.append(token)
            token = value("sample", self._row("sample", token), "next")
        return tuple(tokens)

    def refs(self, scene: str) -> tuple[FrameRef, ...]:
        """The frames of a scene in time order, without their images.

        Raises:
            DatasetError: the scene is not one of :attr:`scenes`, or a sample lacks the anchor camera.
        """
        if scene not in self.scenes:
            raise DatasetError(f"scene '{scene}' was not chosen; the reader has {listing(self.scenes)}")
        if scene not in self._refs:
            records = self._sweep_records(scene) if self.sweeps else self._key_records(scene)
            self._refs[scene] = tuple(self._ref(scene, index, row) for index, row in enumerate(records))
        return self._refs[scene]

    def _ref(self, scene: str, index: int, records: dict[str, Row]) -> FrameRef:
        anchor = records[self.anchor_camera]
        stamp = stamp_ns("sample_data", anchor)
        return FrameRef(scene, index, anchor["sample_token"], bool(anchor["is_key_frame"]), stamp, records)

    def _key_records(self, scene: str) -> Iterator[dict[str, Row]]:
        for token in self.sample_tokens(scene):
            data = self._row("sample", token)["data"]
            if self.anchor_camera not in data:
                raise DatasetError(f"sample {token} of scene '{scene}' has no record of {self.anchor_camera}")
            yield {name: self._row("sample_data", data[name]) for name in self.cameras if name in data}

    def _sweep_records(self, scene: str) -> Iterator[dict[str, Row]]:
        chains = {camera: self._camera_chain(scene, camera) for camera in self.cameras}
        stamps = {name: np.array([stamp_ns("sample_data", row) for row in rows]) for name, rows in chains.items()}
        if not chains[self.anchor_camera]:
            raise DatasetError(f"scene '{scene}' has no record of {self.anchor_camera}")
        for anchor in chains[self.anchor_camera]:
            # A key frame is the set of records that the data set says it is.
            key = self._row("sample", anchor["sample_token"])["data"] if anchor["is_key_frame"] else {}
            frame = {}
            for camera, rows in chains.items():
                if camera in key:
                    frame[camera] = self._row("sample_data", key[camera])
                elif rows and not anchor["is_key_frame"]:
                    offsets = np.abs(stamps[camera] - stamp_ns("sample_data", anchor))
                    frame[camera] = rows[int(np.argmin(offsets))]
            yield frame

    def _camera_chain(self, scene: str, camera: str) -> list[Row]:
        """All records of a camera in a scene, in time order: the key frames and what is linked to them."""
        rows: dict[str, Row] = {}
        for sample in self.sample_tokens(scene):
            for direction in ("prev", "next"):
                token = self._row("sample", sample)["data"].get(camera)
                while token:
                    rows[token] = self._row("sample_data", token)
                    token = value("sample_data", rows[token], direction)
                    if token in rows:
                        break
        return sorted(rows.values(), key=lambda row: stamp_ns("sample_data", row))

    def load(self, ref: FrameRef) -> CameraFrame:
        """Read the images and poses of a frame.

        Raises:
            FrameError: an image is missing, truncated or of another size than its calibration, a camera has
                no record, or a pose or another field of the tables cannot be used; names the camera.
        """
        parts = []
        try:
            for camera in self.cameras:
                if camera not in ref.records:
                    raise FrameError(f"{camera}: sample {ref.sample_token} has no record of this camera")
                row = ref.records[camera]
                sensor = self._row("calibrated_sensor", row["calibrated_sensor_token"])
                parts.append(
                    (
                        self.dataroot / str(value("sample_data", row, "filename")),
                        numbers("calibrated_sensor", sensor, "camera_intrinsic", 3, 3),
                        stamp_ns("sample_data", row),
                        _pose("calibrated_sensor", sensor, f"{camera}: the calibration"),
                        self._ego_pose(row, f"{camera}: the ego pose"),
                    )
                )
            global_from_ego = self.global_from_ego(ref)
        except DatasetError as error:
            raise FrameError(f"sample {ref.sample_token}: {error}") from None
        files, intrinsics, stamps, ego_from_camera, ego_poses = zip(*parts)
        images = read_images(files, self.cameras)
        # the tables' sizes are there to be checked; where there are none, the images' own hold
        rows = [ref.records[camera] for camera in self.cameras]
        sizes = [(r.get("width") or im.shape[1], r.get("height") or im.shape[0]) for r, im in zip(rows, images)]
        return CameraFrame(
            cameras=self.cameras,
            images=images,
            intrinsics=np.stack(intrinsics),
            ego_from_camera=np.stack(ego_from_camera),
            global_from_camera_ego=np.stack(ego_poses),
            global_from_ego=global_from_ego,
            stamp_ns=ref.stamp_ns,
            camera_stamps_ns=np.array(stamps, np.int64),
            image_sizes=np.array(sizes, np.int64),
            token=ref.sample_token if ref.is_key else "",
        )

    def frames(self, scene: str) -> Iterator[CameraFrame]:
        """The frames of a scene in time order. Raises what :meth:`refs` and :meth:`load` raise."""
        for ref in self.refs(scene):
            yield self.load(ref)

    def global_from_ego(self, ref: FrameRef) -> np.ndarray:
        """``[4, 4]``: the ego pose at the anchor camera's stamp. Raises FrameError when it cannot be used."""
        return self._ego_pose(ref.records[self.anchor_camera], f"{self.anchor_camera}: the ego pose")

    def ground_truth(self, ref: FrameRef) -> GroundTruth:
        """Annotated boxes of a key frame, in the ego frame of ``ref``.

        Raises:
            DatasetError: the frame is a sweep (only key frames are annotated), or as :func:`annotated_boxes`.
        """
        if not ref.is_key:
            raise DatasetError(f"frame {ref.index} of scene '{ref.scene}' is a sweep: only key frames are annotated")
        ego_from_global = invert_rigid(self.global_from_ego(ref))
        return annotated_boxes(self.tables, ref.sample_token, self.class_names, ego_from_global)

    def lidar_points(self, ref: FrameRef) -> np.ndarray:
        """Points ``[P, 3]`` (float64, metres) of a key frame's lidar, in the ego frame of ``ref``.

        The way goes through the lidar's own calibration and its own ego pose, so that points and cameras
        agree although they are recorded at different stamps.

        Raises:
            DatasetError: the frame has no lidar record, or its file is missing or damaged; names the file.
        """
        data = self._row("sample", ref.sample_token)["data"]
        if not ref.is_key or LIDAR not in data:
            raise DatasetError(f"frame {ref.index} of scene '{ref.scene}' has no {LIDAR} record")
        row = self._row("sample_data", data[LIDAR])
        path = self.dataroot / str(value("sample_data", row, "filename"))
        try:
            values = np.frombuffer(path.read_bytes(), np.float32)
        except FileNotFoundError:
            raise DatasetError(f"{LIDAR}: the file is missing: {path}") from None
        except (OSError, ValueError) as error:
            raise DatasetError(f"{LIDAR}: the file cannot be read: {path} ({one_line(error)})") from None
        if not len(values) or len(values) % LIDAR_FIELDS:
            raise DatasetError(f"{LIDAR}: {path} is truncated: {len(values)} values are no multiple of {LIDAR_FIELDS}")
        sensor = self._row("calibrated_sensor", row["calibrated_sensor_token"])
        ego_from_lidar = (
            invert_rigid(self.global_from_ego(ref))
            @ self._ego_pose(row, f"{LIDAR}: the ego pose")
            @ _pose("calibrated_sensor", sensor, f"{LIDAR}: the calibration")
        )
        points = values.reshape(-1, LIDAR_FIELDS)[:, :3].astype(np.float64)
        return points @ ego_from_lidar[:3, :3].T + ego_from_lidar[:3, 3]

    def _ego_pose(self, record: Row, what: str) -> np.ndarray:
        token = value("sample_data", record, "ego_pose_token")
        return _pose("ego_pose", self._row("ego_pose", token), what)

    def _row(self, table: str, token: str) -> Row:
        return row_of(self.tables, table, token)


def _pose(table: str, row: Row, what: str) -> np.ndarray:
    """``[4, 4]`` from a row with ``rotation`` and ``translation``; ``what`` starts the error's message."""
    value(table, row, "rotation")
    translation = numbers(table, row, "translation", 3, finite=False)
    try:
        return rigid(row["rotation"], translation)
    except (TypeError, ValueError) as error:
        raise FrameError(f"{what} cannot be used (row {row['token']}): {one_line(error)}") from None
