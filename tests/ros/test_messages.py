# SPDX-License-Identifier: Apache-2.0
"""Conversion both ways, for rosbags' messages and (with rclpy) for rclpy's: the same values come back."""

from __future__ import annotations

import numpy as np
import pytest

from bevnext_core.calibration import Rectifier
from bevnext_core.detections import Detections
from bevnext_core.errors import FrameError
from bevnext_core.geometry import rigid
from bevnext_ros.bags.types import make_typestore
from bevnext_ros.messages.conversions import (
    CLOUD_FIELDS,
    calibration_from_camera_info,
    cloud_records,
    detection_rows,
    make_boxes_cloud,
    make_camera_info,
    make_compressed_image,
    make_detections,
    make_header,
    make_transform,
    read_transforms,
    stamp_ns,
    transform_boxes,
)
from bevnext_ros.messages.factory import RclpyFactory, RosbagsFactory
from bevnext_ros.messages.markers import make_markers
from bevnext_ros.streams.transform_buffer import TransformBuffer

STAMP = 1_533_151_603_512_404_000
OUTPUT = rigid([0.9, 0, 0, 0.4358898943540674], [3, -2, 1])


@pytest.fixture(params=["rosbags", pytest.param("rclpy", marks=pytest.mark.ros)])
def kind(request):
    """(factory, serialise and read back) of either kind of message."""
    if request.param == "rosbags":
        store = make_typestore()

        def there_and_back(message, name):
            return store.deserialize_cdr(store.serialize_cdr(message, name), name)

        return RosbagsFactory(store), there_and_back
    pytest.importorskip("rclpy", reason="needs rclpy")
    pytest.importorskip("vision_msgs.msg", reason="needs vision_msgs")
    from rclpy.serialization import deserialize_message, serialize_message

    return RclpyFactory(), lambda message, name: deserialize_message(
        serialize_message(message), type(message)
    )


def detections() -> Detections:
    rng = np.random.default_rng(3)
    boxes = rng.uniform(-10, 10, (5, 9)).astype(np.float32)
    boxes[:, 3:6] = np.abs(boxes[:, 3:6]) + 0.5
    boxes[0, 7:9] = 0.0
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
    names = ("car", "pedestrian", "traffic_cone")
    return Detections(boxes, scores, np.array([0, 1, 2, 0, 1]), names, STAMP, np.eye(4))


def test_stamps_survive(kind):
    factory, there_and_back = kind
    message = there_and_back(make_header(factory, STAMP, "base_link"), "std_msgs/msg/Header")
    assert (stamp_ns(types_of(header=message).header), message.frame_id) == (STAMP, "base_link")


def types_of(**fields):
    import types

    return types.SimpleNamespace(**fields)


def test_detections_carry_boxes_names_and_scores(kind):
    factory, there_and_back = kind
    message = there_and_back(
        make_detections(factory, detections(), OUTPUT, "odom"), "vision_msgs/msg/Detection3DArray"
    )
    assert stamp_ns(message.header) == STAMP and message.header.frame_id == "odom"
    rows = list(detection_rows(message))
    assert [name for _, name, _ in rows] == detections().names
    np.testing.assert_allclose([score for *_, score in rows], detections().scores, atol=1e-7)
    expected = transform_boxes(detections().boxes, OUTPUT)
    got = np.array([box for box, *_ in rows])
    np.testing.assert_allclose(got[:, :6], expected[:, :6], atol=1e-9)
    np.testing.assert_allclose(np.cos(got[:, 6] - expected[:, 6]), 1, atol=1e-9)
    first = message.detections[0]
    assert first.bbox.size.x == pytest.approx(float(detections().boxes[0, 3]))  # x is the length
    assert stamp_ns(first.header) == STAMP


def test_boxes_cloud_carries_velocity_and_class(kind):
    factory, there_and_back = kind
    message = there_and_back(
        make_boxes_cloud(factory, detections(), OUTPUT, "odom"), "sensor_msgs/msg/PointCloud2"
    )
    records = cloud_records(message)
    assert records.dtype.names == CLOUD_FIELDS and message.point_step == 44
    expected = transform_boxes(detections().boxes, OUTPUT)
    got = np.stack([records[name] for name in CLOUD_FIELDS[:9]], 1)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert records["class"].tolist() == [0, 1, 2, 0, 1]
    message.width = 6
    with pytest.raises(FrameError, match="point cloud"):
        cloud_records(message)


def test_markers_remove_the_old_and_show_the_new(kind):
    factory, there_and_back = kind
    message = there_and_back(
        make_markers(factory, detections(), np.eye(4), "base_link"), "visualization_msgs/msg/MarkerArray"
    )
    assert message.markers[0].action == 3  # DELETEALL
    names = [marker.ns for marker in message.markers[1:]]
    assert names.count("boxes") == 5 and names.count("labels") == 5
    assert names.count("velocities") == 4  # the first box stands
    labels = [marker.text for marker in message.markers if marker.ns == "labels"]
    assert labels[0] == "car 0.90"
    arrow = next(marker for marker in message.markers if marker.ns == "velocities")
    box = detections().boxes[1]
    tip = arrow.points[1].x - arrow.points[0].x, arrow.points[1].y - arrow.points[0].y
    np.testing.assert_allclose(tip, box[7:9], atol=1e-6)
    empty = Detections(
        np.zeros((0, 9), np.float32), np.zeros(0), np.zeros(0, int), ("car",), STAMP, np.eye(4)
    )
    assert len(make_markers(factory, empty, np.eye(4), "base_link").markers) == 1


def test_transforms_survive(kind):
    factory, there_and_back = kind
    rotation = np.array([0.5, -0.5, 0.5, -0.5])
    items = [
        make_transform(factory, "odom", "base_link", rotation, [1, 2, 3], STAMP),
        make_transform(factory, "odom", "broken", [np.nan, 0, 0, 0], [0, 0, 0], STAMP),
    ]
    message = there_and_back(
        factory.make("tf2_msgs/msg/TFMessage", transforms=items), "tf2_msgs/msg/TFMessage"
    )
    buffer = TransformBuffer()
    assert [buffer.add(*item) for item in read_transforms(message)] == [True, False]
    found = buffer.lookup("odom", "base_link", STAMP).transform
    np.testing.assert_allclose(found, rigid(rotation, [1, 2, 3]), atol=1e-12)
    assert buffer.drops.snapshot() == {"invalid": 1}


def test_camera_info_survives_and_region_and_binning_are_applied(kind):
    factory, there_and_back = kind
    k = np.array([[1000.0, 0, 800], [0, 1010.0, 450], [0, 0, 1]])
    message = make_camera_info(factory, STAMP, "front_optical", k, (1600, 900))
    calibration = calibration_from_camera_info(there_and_back(message, "sensor_msgs/msg/CameraInfo"))
    np.testing.assert_array_equal(calibration.intrinsics, k)
    assert calibration.size == (1600, 900) and calibration.frame == "front_optical"
    assert not calibration.is_distorted and calibration.fault("rectify") is None
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = 100, 50, 1400, 800
    message.binning_x = message.binning_y = 2
    cut = calibration_from_camera_info(there_and_back(message, "sensor_msgs/msg/CameraInfo"))
    np.testing.assert_allclose(cut.intrinsics, [[500, 0, 350], [0, 505, 200], [0, 0, 1]])
    assert cut.size == (700, 400)
    # a point seen by both: full-size pixel (u, v) is ((u - 100) / 2, (v - 50) / 2) in the published image
    ray = np.array([0.1, 0.2, 1.0])
    u, v, _ = k @ ray
    np.testing.assert_allclose((cut.intrinsics @ ray)[:2], [(u - 100) / 2, (v - 50) / 2])


@pytest.mark.parametrize(
    "roi, binning, fault",
    [
        ((0, 0, 1600, 900), (0, 0), ""),
        ((200, 100, 1400, 800), (1, 1), ""),
        ((0, 0, 0, 0), (2, 3), ""),
        ((300, 200, 1400, 800), (1, 1), "interest 1400x800 at (300, 200) is not within its image of 1600x900"),
        ((10, 20, 0, 0), (1, 1), "region of interest 0x0 at (10, 20) is not within"),
        ((0, 0, 100, 0), (1, 1), "region of interest 100x0 at (0, 0) is not within"),
        ((0, 0, 0, 0), (2000, 1), "binning 2000x1 leaves nothing of 1600x900"),
    ],
)
def test_region_and_binning_are_honoured_or_refused_by_name(roi, binning, fault):
    factory = RosbagsFactory(make_typestore())
    k = np.array([[1000.0, 0, 800], [0, 1010.0, 450], [0, 0, 1]])
    message = make_camera_info(factory, STAMP, "front_optical", k, (1600, 900))
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = roi
    message.binning_x, message.binning_y = binning
    found = calibration_from_camera_info(message)
    for policy in ("rectify", "refuse", "rectified"):
        assert fault in (found.fault(policy) or "") and bool(fault) == bool(found.fault(policy))
    if fault:
        return
    bx, by = max(binning[0], 1), max(binning[1], 1)
    pixel = (k @ [0.1, 0.2, 1.0])[:2]
    expected = (pixel - roi[:2]) / (bx, by)
    for matrix in (found.intrinsics, found.rectified):
        np.testing.assert_allclose((matrix @ [0.1, 0.2, 1.0])[:2], expected)
    assert found.size == ((roi[2] or 1600) // bx, (roi[3] or 900) // by)


def test_an_image_of_another_size_is_told_what_the_calibration_is_of():
    factory = RosbagsFactory(make_typestore())
    message = make_camera_info(factory, STAMP, "f", np.diag([100.0, 100, 1]), (800, 450))
    message.binning_x = message.binning_y = 2  # but the driver gives the binned size already
    rectifier = Rectifier("front", calibration_from_camera_info(message), "rectify")
    with pytest.raises(FrameError, match=r"800x450, but its calibration is for 400x225 \(binning 2x2 of 800x450\)"):
        rectifier(np.zeros((450, 800, 3), np.uint8))


def test_compressed_image_bytes_are_unchanged(kind):
    factory, there_and_back = kind
    data = bytes(range(256)) * 3
    message = make_compressed_image(factory, STAMP, "front_optical", data)
    message = there_and_back(message, "sensor_msgs/msg/CompressedImage")
    assert bytes(message.data) == data and message.format == "jpeg"


def test_unknown_fields_are_refused():
    with pytest.raises(AttributeError, match="frame"):
        RosbagsFactory(make_typestore()).make("std_msgs/msg/Header", frame="base_link")


def test_vision_msgs_come_from_the_repository_definitions():
    store = make_typestore()
    definition = store.fielddefs["vision_msgs/msg/ObjectHypothesis"][1]
    assert [(name, kind[1][0]) for name, kind in definition] == [("class_id", "string"), ("score", "float64")]
    fields = [name for name, _ in store.fielddefs["vision_msgs/msg/Detection3D"][1]]
    assert fields == ["header", "results", "bbox", "id"]
