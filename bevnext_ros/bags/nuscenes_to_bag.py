# SPDX-License-Identifier: Apache-2.0
"""nuScenes scenes -> ROS 2 bags, without ROS: the original JPEG bytes, calibrations, transforms, true stamps.

Topics of a bag, for each camera (``cam_front``, ...): ``/cam_front/image_raw/compressed``,
``/cam_front/camera_info``; ``/tf`` (odom -> base_link, one pose per sensor stamp), ``/tf_static`` (map -> odom,
base_link -> each sensor); with options ``/lidar_top/points`` and ``/ground_truth``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core.classes import CAMERAS
from bevnext_core.datasets.nuscenes_tables import (
    check_truth,
    listing,
    load_tables,
    numbers,
    row_of,
    stamp_ns,
    value,
)
from bevnext_core.errors import BevnextError, DatasetError, one_line
from bevnext_core.files import Parser
from bevnext_core.geometry import rigid
from bevnext_ros.bags.writer import FORMS, STORAGES, BagError, BagWriter
from bevnext_ros.messages.conversions import (
    make_camera_info,
    make_cloud,
    make_compressed_image,
    make_detection,
    make_header,
    make_transform,
)

MAP, ODOM, BASE, LIDAR = "map", "odom", "base_link", "LIDAR_TOP"
LIDAR_DTYPE = np.dtype([(name, "<f4") for name in ("x", "y", "z", "intensity", "ring")])
TRUTH_TOPIC = "/ground_truth"


@dataclass
class Conversion:
    """What was written for one scene: the bag, messages per topic, digests of what can be compared."""

    path: Path
    counts: dict[str, int] = field(default_factory=dict)
    digests: dict[tuple[str, int], str] = field(default_factory=dict)


def image_topic(camera: str) -> str:
    """Topic of a nuScenes camera's compressed images."""
    return f"/{camera.lower()}/image_raw/compressed"


def info_topic(camera: str) -> str:
    """Topic of a nuScenes camera's calibration."""
    return f"/{camera.lower()}/camera_info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bevnext nuscenes-to-bag``."""
    parser.add_argument("--dataroot", required=True, metavar="DIR", help="folder of the nuScenes data set")
    parser.add_argument("--version", default="v1.0-mini", help="its tables (default: %(default)s)")
    parser.add_argument(
        "--scene", action="append", metavar="NAME", help="only this scene (may be repeated; default: all)"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder that gets one bag per scene, DIR/NAME"
    )
    parser.add_argument(
        "--ros-distro", choices=FORMS, default="any", help="who shall play the bags (default: all of these)"
    )
    parser.add_argument("--storage", choices=STORAGES, help="default: what --ros-distro plays by itself")
    parser.add_argument(
        "--sweeps", action="store_true", help="every camera image (12 Hz), not only key frames"
    )
    parser.add_argument("--lidar", action="store_true", help="also the lidar's points")
    parser.add_argument(
        "--ground-truth", action="store_true", help=f"also the annotated boxes, on {TRUTH_TOPIC}"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, verify and report. Raises BevnextError."""
    tables = load_tables(args.dataroot, args.version)
    names = [row["name"] for row in tables.scene]
    scenes = list(dict.fromkeys(args.scene or names))
    for scene in scenes:
        if scene not in names:
            raise DatasetError(f"unknown scene '{scene}': {args.dataroot} holds {listing(names)}")
        if (Path(args.out) / scene).exists():
            raise BagError(f"{Path(args.out) / scene} exists: bags are never overwritten")
    for scene in scenes:
        done = convert_scene(
            tables,
            scene,
            Path(args.out) / scene,
            distro=args.ros_distro,
            storage=args.storage or "",
            sweeps=args.sweeps,
            lidar=args.lidar,
            ground_truth=args.ground_truth,
        )
        verify(done)
        print(f"{done.path}: {sum(done.counts.values())} messages on {len(done.counts)} topics, verified")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``ros2 run bevnext_ros nuscenes_to_bag``."""
    parser = Parser(prog="nuscenes_to_bag", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except (BevnextError, OSError) as error:
        print(f"nuscenes_to_bag: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nuscenes_to_bag: interrupted", file=sys.stderr)
        return 130


def convert_scene(
    tables: Any,
    scene: str,
    path: str | Path,
    *,
    distro: str = "any",
    storage: str = "",
    sweeps: bool = False,
    lidar: bool = False,
    ground_truth: bool = False,
) -> Conversion:
    """Write one scene's bag.

    Args:
        tables: ``nuscenes.NuScenes``. path: the bag's folder, which must not exist.
        distro, storage: as of :class:`BagWriter`.

    Raises:
        DatasetError: a file of the scene is missing or damaged. BagError: the bag cannot be written.
    """
    from bevnext_tools.progress import progress

    rows = _scene_rows(tables, scene)
    chosen = [row for row in rows if row["channel"] in CAMERAS and (sweeps or row["is_key_frame"])]
    if lidar:
        chosen += [row for row in rows if row["channel"] == LIDAR and (sweeps or row["is_key_frame"])]
    if not chosen:
        raise DatasetError(f"scene '{scene}' has no camera images")
    result = Conversion(Path(path))
    with BagWriter(path, distro, storage) as bag:
        bag_scene = _SceneWriter(tables, bag, result)
        bag_scene.write_static(rows)
        # at one stamp: the pose first, then what was seen from there
        jobs: list[tuple[int, int, Callable[[], None]]] = []
        for row in {_ns(row): row for row in reversed(rows)}.values():
            jobs.append((_ns(row), 0, lambda row=row: bag_scene.write_pose(row)))  # type: ignore[misc]
        for row in chosen:
            jobs.append((_ns(row), 1, lambda row=row: bag_scene.write_data(row)))  # type: ignore[misc]
        if ground_truth:
            samples = list(_samples(tables, scene))
            fields = ("translation", "size", "rotation")
            check_truth(tables, (sample["token"] for sample in samples), fields, "--ground-truth")
            for sample in samples:
                jobs.append((stamp_ns("sample", sample), 2, lambda sample=sample: bag_scene.write_truth(sample)))  # type: ignore[misc]
        jobs.sort(key=lambda job: job[:2])
        for _, _, job in progress(f"writing {scene}", "message", len(jobs), jobs):
            job()
        result.counts = dict(bag.counts)
    return result


def verify(done: Conversion) -> None:
    """Read the bag back and compare it with what was to be written.

    Raises:
        BagError: a message is missing or differs; names the topic and the stamp.
    """
    from bevnext_ros.bags.reader import BagReader

    counts: dict[str, int] = {}
    with BagReader(done.path) as bag:
        for message in bag.messages():
            counts[message.topic] = counts.get(message.topic, 0) + 1
            compressed = message.kind.endswith("CompressedImage")
            content = bytes(message.decode().data) if compressed else message.data
            if done.digests.get((message.topic, message.stamp_ns)) != _digest(content):
                raise BagError(
                    f"{done.path}: {message.topic} at {message.stamp_ns} ns is not what was written"
                )
    if counts != done.counts:
        raise BagError(f"{done.path}: holds {counts} messages, {done.counts} were written")


class _SceneWriter:
    """Writes the messages of one scene and notes their digests."""

    def __init__(self, tables: Any, bag: BagWriter, result: Conversion) -> None:
        self._tables = tables
        self._bag = bag
        self._factory = bag.factory
        self._result = result

    def _write(
        self,
        topic: str,
        kind: str,
        message: Any,
        stamp: int,
        content: bytes | None = None,
        latched: bool = False,
    ) -> None:
        data = self._bag.write(topic, kind, message, stamp, latched)
        self._result.digests[topic, stamp] = _digest(data if content is None else content)

    def write_static(self, rows: list[dict[str, Any]]) -> None:
        stamp = min(_ns(row) for row in rows)
        sensors = {row["channel"]: row["calibrated_sensor_token"] for row in rows}
        transforms = [make_transform(self._factory, MAP, ODOM, (1, 0, 0, 0), (0, 0, 0), stamp)]
        for channel, token in sorted(sensors.items()):
            sensor = self._tables.get("calibrated_sensor", token)
            transforms.append(self._transform(BASE, channel.lower(), "calibrated_sensor", sensor, stamp))
        message = self._factory.make("tf2_msgs/msg/TFMessage", transforms=transforms)
        self._write("/tf_static", "tf2_msgs/msg/TFMessage", message, stamp, latched=True)

    def _transform(self, parent: str, child: str, table: str, row: dict[str, Any], stamp: int) -> Any:
        try:
            rotation, translation = numbers(table, row, "rotation", 4), numbers(table, row, "translation", 3)
            rigid(rotation, translation)
        except ValueError as error:
            raise DatasetError(f"the transform {parent} -> {child} (row {row['token']}): {error}") from None
        return make_transform(self._factory, parent, child, rotation.tolist(), translation.tolist(), stamp)

    def write_pose(self, row: dict[str, Any]) -> None:
        pose = row_of(self._tables, "ego_pose", value("sample_data", row, "ego_pose_token"))
        transform = self._transform(ODOM, BASE, "ego_pose", pose, _ns(row))
        message = self._factory.make("tf2_msgs/msg/TFMessage", transforms=[transform])
        self._write("/tf", "tf2_msgs/msg/TFMessage", message, _ns(row))

    def write_data(self, row: dict[str, Any]) -> None:
        path = Path(self._tables.dataroot) / str(value("sample_data", row, "filename"))
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DatasetError(f"{row['channel']}: the file is missing: {path}") from None
        except OSError as error:
            raise DatasetError(
                f"{row['channel']}: the file cannot be read: {path} ({one_line(error)})"
            ) from None
        stamp, frame = _ns(row), row["channel"].lower()
        if row["channel"] == LIDAR:
            if not data or len(data) % LIDAR_DTYPE.itemsize:
                raise DatasetError(f"{LIDAR}: {path} holds {len(data)} bytes: truncated?")
            cloud = make_cloud(self._factory, stamp, frame, np.frombuffer(data, LIDAR_DTYPE))
            self._write(f"/{frame}/points", "sensor_msgs/msg/PointCloud2", cloud, stamp)
            return
        sensor = self._tables.get("calibrated_sensor", row["calibrated_sensor_token"])
        intrinsics = numbers("calibrated_sensor", sensor, "camera_intrinsic", 3, 3)
        size = [int(numbers("sample_data", row, side)) for side in ("width", "height")]
        info = make_camera_info(self._factory, stamp, frame, intrinsics, (size[0], size[1]))
        self._write(info_topic(row["channel"]), "sensor_msgs/msg/CameraInfo", info, stamp)
        image = make_compressed_image(self._factory, stamp, frame, data)
        self._write(image_topic(row["channel"]), "sensor_msgs/msg/CompressedImage", image, stamp, data)

    def write_truth(self, sample: dict[str, Any]) -> None:
        """Annotated boxes in the map frame; the id is the instance's token, the class the detection class."""
        from nuscenes.eval.detection.utils import category_to_detection_name

        stamp = stamp_ns("sample", sample)
        header = make_header(self._factory, stamp, MAP)
        items = []
        for token in sample["anns"]:
            row = self._tables.get("sample_annotation", token)
            width, length, height = row["size"]
            name = category_to_detection_name(row["category_name"]) or row["category_name"]
            box = [*row["translation"], length, width, height]
            items.append(
                make_detection(self._factory, header, box, row["rotation"], name, 1.0, row["instance_token"])
            )
        kind = "vision_msgs/msg/Detection3DArray"
        self._write(TRUTH_TOPIC, kind, self._factory.make(kind, header=header, detections=items), stamp)


def _samples(tables: Any, scene: str) -> Iterable[dict[str, Any]]:
    row = next(row for row in tables.scene if row["name"] == scene)
    token = value("scene", row, "first_sample_token")
    while token:
        sample = row_of(tables, "sample", token)
        yield sample
        token = value("sample", sample, "next")


def _scene_rows(tables: Any, scene: str) -> list[dict[str, Any]]:
    """All sensor records of a scene (``sample_data`` rows, the devkit adds ``channel``), by stamp."""
    samples = {sample["token"] for sample in _samples(tables, scene)}
    return sorted(
        (row for row in tables.sample_data if row["sample_token"] in samples),
        key=_ns,
    )


def _ns(row: dict[str, Any]) -> int:
    return stamp_ns("sample_data", row)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
