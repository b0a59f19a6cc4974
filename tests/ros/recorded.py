# SPDX-License-Identifier: Apache-2.0
"""A small recorded rig: six cameras, four frames at 2 Hz, TF at 20 Hz; messages that a test may change, and bags."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from bevnext_core.classes import ANCHOR_CAMERA, CAMERAS
from bevnext_ros.bags.detect import BagSummary, bag_frames
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.types import make_typestore
from bevnext_ros.bags.writer import BagWriter
from bevnext_ros.messages.conversions import make_camera_info, make_compressed_image, make_transform
from bevnext_ros.messages.factory import RosbagsFactory
from bevnext_ros.node.parameters import make_options
from bevnext_ros.streams.frame_builder import PosedFrame
from bevnext_ros.streams.rig_stream import RigStream

SECOND = 1_000_000_000
START = 1_600_000_000 * SECOND
FACTORY = RosbagsFactory(make_typestore())
TF, INFO, IMAGE = "tf2_msgs/msg/TFMessage", "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/CompressedImage"
K = np.array([[120.0, 0, 80], [0, 120, 45], [0, 0, 1]])


@dataclass
class Recorded:
    """One message, its topic and the time of recording."""

    topic: str
    kind: str
    stamp_ns: int
    message: Any


def transform(stamp: int, parent: str, child: str, x: float = 0.0, topic: str = "/tf") -> Recorded:
    item = make_transform(FACTORY, parent, child, (1, 0, 0, 0), (x, 0, 0), stamp)
    return Recorded(topic, TF, stamp, FACTORY.make(TF, transforms=[item]))


def drive() -> list[Recorded]:
    """The whole recording, in order."""
    found = [transform(START - SECOND, "base_link", c.lower(), topic="/tf_static") for c in CAMERAS]
    found += [transform(START - SECOND + i * SECOND // 20, "odom", "base_link", 0.1 * i) for i in range(70)]
    jpeg = cv2.imencode(".jpg", np.full((90, 160, 3), 90, np.uint8))[1].tobytes()
    for frame in range(4):
        for number, camera in enumerate(CAMERAS):
            stamp, name = START + frame * SECOND // 2 + number * 1_000_000, camera.lower()
            info = make_camera_info(FACTORY, stamp, name, K.copy(), (160, 90))
            image = make_compressed_image(FACTORY, stamp, name, jpeg)
            found.append(Recorded(f"/{name}/camera_info", INFO, stamp, info))
            found.append(Recorded(f"/{name}/image_raw/compressed", IMAGE, stamp, image))
    return sorted(found, key=lambda item: item.stamp_ns)


def write_bag(path: Path, messages: Iterable[Recorded], **form: str) -> Path:
    with BagWriter(path, **form) as writer:
        for item in sorted(messages, key=lambda item: item.stamp_ns):
            latched = item.topic.endswith("/tf_static")
            writer.write(item.topic, item.kind, item.message, item.stamp_ns, latched)
    return path


def write_mcap(
    path: Path,
    messages: Iterable[Recorded],
    qos: dict[str, str] | None = None,
    foreign: Iterable[tuple[str, str, bytes]] = (),
    profile: str = "ros2",
    name: Callable[[str], str] = str,
    **options: Any,
) -> Path:
    """A lone MCAP file as other tools write it.

    Args:
        qos: recorded profiles by topic. foreign: (topic, encoding, data) of messages that are not ROS 2's.
        name: how the tool names a type.
        options: of the writer, for example ``use_chunking=False``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        writer = McapWriter(stream, **{"compression": CompressionType.ZSTD, "chunk_size": 4096, **options})
        writer.start(profile=profile, library="another tool")
        channels: dict[str, int] = {}
        for topic, encoding, data in foreign:
            schema = writer.register_schema(f"foxglove.{encoding}", encoding, b"whatever it is")
            channels[topic] = writer.register_channel(topic, encoding, schema)
            writer.add_message(channels[topic], START, data, START)
        for item in sorted(messages, key=lambda item: item.stamp_ns):
            if item.topic not in channels:
                schema = writer.register_schema(name(item.kind), "ros2msg", b"")
                metadata = {"offered_qos_profiles": qos[item.topic]} if qos and item.topic in qos else {}
                channels[item.topic] = writer.register_channel(item.topic, "cdr", schema, metadata)
            data = bytes(FACTORY.typestore.serialize_cdr(item.message, item.kind))
            writer.add_message(channels[item.topic], item.stamp_ns, data, item.stamp_ns)
        writer.finish()
    return path


def frames(path: Path, **options: Any) -> tuple[list[PosedFrame], BagSummary]:
    """What ``bevnext detect --bag`` gives to the network."""
    stream = RigStream(make_options(options, "the test"), CAMERAS, ANCHOR_CAMERA, recorded=True)
    summary = BagSummary()
    with BagReader(path) as bag:
        return [posed for posed, _ in bag_frames(bag, stream, summary, False)], summary
