# SPDX-License-Identifier: Apache-2.0
"""Headers, transforms, calibrations and the detector's outputs <-> ROS messages.

Reading works by duck typing on rclpy's messages and on those that rosbags reads. Writing goes through a
:class:`bevnext_ros.messages.factory.MessageFactory`, which makes either kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bevnext_core.calibration import Calibration
from bevnext_core.detections import Detections
from bevnext_core.errors import FrameError
from bevnext_ros.messages.factory import MessageFactory
from bevnext_ros.streams.assembler import SECOND

CLOUD_FIELDS = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy", "score", "class")
"""Fields of the boxes' point cloud: float32 each, but ``class`` (uint32, index into the class names)."""
CLOUD_DTYPE = np.dtype([(name, "<u4" if name == "class" else "<f4") for name in CLOUD_FIELDS])
_UINT32, _FLOAT32 = 6, 7
_POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


def stamp_ns(header: Any) -> int:
    """A header's stamp in nanoseconds."""
    return int(header.stamp.sec) * SECOND + int(header.stamp.nanosec)


def make_time(factory: MessageFactory, stamp: int) -> Any:
    """builtin_interfaces/Time of nanoseconds."""
    return factory.make("builtin_interfaces/msg/Time", sec=int(stamp // SECOND), nanosec=int(stamp % SECOND))


def make_header(factory: MessageFactory, stamp: int, frame: str) -> Any:
    """std_msgs/Header of a stamp in nanoseconds."""
    return factory.make("std_msgs/msg/Header", stamp=make_time(factory, stamp), frame_id=frame)


def read_transforms(message: Any) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, int]]:
    """(parent, child, rotation w x y z, translation, stamp in nanoseconds) of a tf2_msgs/TFMessage's transforms."""
    for item in message.transforms:
        rotation, offset = item.transform.rotation, item.transform.translation
        yield (
            item.header.frame_id,
            item.child_frame_id,
            np.array([rotation.w, rotation.x, rotation.y, rotation.z]),
            np.array([offset.x, offset.y, offset.z]),
            stamp_ns(item.header),
        )


def make_transform(
    factory: MessageFactory,
    parent: str,
    child: str,
    rotation_wxyz: Sequence[float],
    translation: Sequence[float],
    stamp: int,
) -> Any:
    """geometry_msgs/TransformStamped of ``parent_from_child``."""
    w, x, y, z = (float(v) for v in rotation_wxyz)
    return factory.make(
        "geometry_msgs/msg/TransformStamped",
        header=make_header(factory, stamp, parent),
        child_frame_id=child,
        transform=factory.make(
            "geometry_msgs/msg/Transform",
            translation=_vector(factory, "Vector3", translation),
            rotation=factory.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        ),
    )


def calibration_from_camera_info(message: Any) -> Calibration:
    """sensor_msgs/CameraInfo -> :class:`Calibration` of the image as published.

    K is given for the full sensor: the region of interest is cut off and the binning divided out here, as
    image_geometry does; ``roi.do_rectify`` changes nothing (P is moved by the region's raw offset too).
    """
    k = np.array(message.k, np.float64).reshape(3, 3)
    p = np.array(message.p, np.float64).reshape(3, 4)[:, :3]
    x, y = int(message.roi.x_offset), int(message.roi.y_offset)
    full = width, height = int(message.width), int(message.height)
    binning_x, binning_y = max(int(message.binning_x), 1), max(int(message.binning_y), 1)
    notes, fault = [], ""
    if x or y or message.roi.width or message.roi.height:
        width, height = int(message.roi.width), int(message.roi.height)
        notes.append(f"region of interest {width}x{height} at ({x}, {y})")
        if not (width and height) or (any(full) and (x + width > full[0] or y + height > full[1])):
            fault = f"its {notes[0]} is not within its image of {full[0]}x{full[1]}"
    if (binning_x, binning_y) != (1, 1):
        notes.append(f"binning {binning_x}x{binning_y}")
        if (width or height) and (binning_x > width or binning_y > height):
            fault = fault or f"its {notes[-1]} leaves nothing of {width}x{height}"
    move = np.array([[1 / binning_x, 0, -x / binning_x], [0, 1 / binning_y, -y / binning_y], [0, 0, 1]])
    return Calibration(
        intrinsics=move @ k,
        distortion=tuple(float(v) for v in message.d),
        model=message.distortion_model,
        size=(width // binning_x, height // binning_y),
        rectified=move @ p if np.any(p) else None,
        frame=message.header.frame_id,
        region=f"{' and '.join(notes)} of {full[0]}x{full[1]}" if notes else "",
        region_fault=fault,
    )


def make_camera_info(
    factory: MessageFactory, stamp: int, frame: str, intrinsics: np.ndarray, size: tuple[int, int]
) -> Any:
    """sensor_msgs/CameraInfo of a pinhole camera without distortion; ``size`` is (width, height)."""
    k = np.asarray(intrinsics, np.float64)
    return factory.make(
        "sensor_msgs/msg/CameraInfo",
        header=make_header(factory, stamp, frame),
        width=int(size[0]),
        height=int(size[1]),
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=k.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=np.concatenate([k, np.zeros((3, 1))], 1).reshape(-1),
    )


def make_compressed_image(
    factory: MessageFactory, stamp: int, frame: str, data: bytes, kind: str = "jpeg"
) -> Any:
    """sensor_msgs/CompressedImage of a file's bytes, unchanged."""
    return factory.make(
        "sensor_msgs/msg/CompressedImage",
        header=make_header(factory, stamp, frame),
        format=kind,
        data=factory.data(data),
    )


def transform_boxes(boxes: np.ndarray, target_from_source: np.ndarray) -> np.ndarray:
    """Move boxes ``[M, 9]`` to another frame by a rigid transform ``[4, 4]``; yaw and velocity follow."""
    boxes = np.array(boxes, np.float64, copy=True).reshape(-1, 9)
    transform = np.asarray(target_from_source, np.float64)
    rotation = transform[:3, :3]
    boxes[:, :3] = boxes[:, :3] @ rotation.T + transform[:3, 3]
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1) @ rotation[:2, :2].T
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    boxes[:, 7:9] = boxes[:, 7:9] @ rotation[:2, :2].T
    return boxes


def make_detections(
    factory: MessageFactory, detections: Detections, output_from_ego: np.ndarray, frame: str
) -> Any:
    """vision_msgs/Detection3DArray; size x is the length, the class id is the class's name."""
    boxes = transform_boxes(detections.boxes, output_from_ego)
    header = make_header(factory, detections.stamp_ns, frame)
    items = [
        make_detection(factory, header, box, _yaw_quaternion(box[6]), name, float(score))
        for box, name, score in zip(boxes, detections.names, detections.scores, strict=True)
    ]
    return factory.make("vision_msgs/msg/Detection3DArray", header=header, detections=items)


def make_detection(
    factory: MessageFactory,
    header: Any,
    box: Sequence[float],
    rotation_wxyz: Sequence[float],
    name: str,
    score: float,
    token: str = "",
) -> Any:
    """vision_msgs/Detection3D of one box (x, y, z, length, width, height, ...) with a full rotation."""
    pose = _pose(factory, box[:3], rotation_wxyz)
    hypothesis = factory.make(
        "vision_msgs/msg/ObjectHypothesisWithPose",
        hypothesis=factory.make("vision_msgs/msg/ObjectHypothesis", class_id=name, score=score),
        pose=factory.make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36)),
    )
    return factory.make(
        "vision_msgs/msg/Detection3D",
        header=header,
        results=[hypothesis],
        bbox=factory.make(
            "vision_msgs/msg/BoundingBox3D", center=pose, size=_vector(factory, "Vector3", box[3:6])
        ),
        id=token,
    )


def make_boxes_cloud(
    factory: MessageFactory, detections: Detections, output_from_ego: np.ndarray, frame: str
) -> Any:
    """sensor_msgs/PointCloud2 with one point per box, fields :data:`CLOUD_FIELDS`."""
    boxes = transform_boxes(detections.boxes, output_from_ego)
    records = np.zeros(len(boxes), CLOUD_DTYPE)
    for index, field in enumerate(CLOUD_FIELDS[:9]):
        records[field] = boxes[:, index]
    records["score"] = detections.scores
    records["class"] = detections.labels
    return make_cloud(factory, detections.stamp_ns, frame, records)


def make_cloud(factory: MessageFactory, stamp: int, frame: str, records: np.ndarray) -> Any:
    """sensor_msgs/PointCloud2 of a structured array ``[M]`` (fields float32 or uint32, little-endian)."""
    dtype = records.dtype
    fields = [
        factory.make(
            "sensor_msgs/msg/PointField",
            name=name,
            offset=int(dtype.fields[name][1]),
            datatype=_UINT32 if dtype.fields[name][0].kind == "u" else _FLOAT32,
            count=1,
        )
        for name in dtype.names
    ]
    return factory.make(
        "sensor_msgs/msg/PointCloud2",
        header=make_header(factory, stamp, frame),
        height=1,
        width=len(records),
        fields=fields,
        is_bigendian=False,
        point_step=dtype.itemsize,
        row_step=dtype.itemsize * len(records),
        data=factory.data(records.tobytes()),
        is_dense=True,
    )


def cloud_records(message: Any) -> np.ndarray:
    """sensor_msgs/PointCloud2 -> structured array ``[M]`` with its own field names (fields of count 1).

    Raises:
        FrameError: the data is shorter than the sizes say, or a field's type is unknown.
    """
    order = ">" if message.is_bigendian else "<"
    try:
        dtype = np.dtype(
            {
                "names": [field.name for field in message.fields],
                "formats": [order + _POINT_TYPES[int(field.datatype)] for field in message.fields],
                "offsets": [int(field.offset) for field in message.fields],
                "itemsize": int(message.point_step),
            }
        )
        count = int(message.width) * int(message.height)
        return np.frombuffer(bytes(message.data), dtype, count)
    except (KeyError, ValueError) as error:
        raise FrameError(f"a point cloud cannot be read: {error}") from None


def detection_rows(message: Any) -> Iterator[tuple[np.ndarray, str, float]]:
    """Boxes ``[9]`` (no velocity), best class's name and score of a vision_msgs/Detection3DArray."""
    for item in message.detections:
        if not item.results:
            continue
        best = max(item.results, key=lambda result: result.hypothesis.score)
        center, size = item.bbox.center, item.bbox.size
        q = center.orientation
        yaw = np.arctan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y * q.y + q.z * q.z))
        box = [center.position.x, center.position.y, center.position.z, size.x, size.y, size.z, yaw, 0.0, 0.0]
        yield np.array(box), best.hypothesis.class_id, float(best.hypothesis.score)


def _yaw_quaternion(yaw: float) -> tuple[float, float, float, float]:
    return float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))


def _vector(factory: MessageFactory, kind: str, values: Sequence[float]) -> Any:
    return factory.make(
        f"geometry_msgs/msg/{kind}", x=float(values[0]), y=float(values[1]), z=float(values[2])
    )


def _pose(factory: MessageFactory, position: Sequence[float], rotation_wxyz: Sequence[float]) -> Any:
    w, x, y, z = (float(v) for v in rotation_wxyz)
    return factory.make(
        "geometry_msgs/msg/Pose",
        position=_vector(factory, "Point", position),
        orientation=factory.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
    )
