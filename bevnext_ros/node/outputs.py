# SPDX-License-Identifier: Apache-2.0
"""What the node publishes for each frame: boxes in three forms, and the duration of each stage."""

from __future__ import annotations

import time
from typing import Any

from bevnext_ros.messages.conversions import make_boxes_cloud, make_detections
from bevnext_ros.messages.factory import RclpyFactory, message_class
from bevnext_ros.messages.markers import make_markers
from bevnext_ros.node.diagnostics import make_latency
from bevnext_ros.node.parameters import Options
from bevnext_ros.node.worker import Result

_BOXES = {
    "detections": ("vision_msgs/msg/Detection3DArray", make_detections),
    "boxes": ("sensor_msgs/msg/PointCloud2", make_boxes_cloud),
    "markers": ("visualization_msgs/msg/MarkerArray", make_markers),
}


class Outputs:
    """Publishers of ``node``, until :meth:`close`. An output that nobody subscribes to is not made."""

    def __init__(self, node: Any, factory: RclpyFactory) -> None:
        self._node, self._factory = node, factory
        self._boxes = {
            name: node.create_publisher(message_class(kind), f"~/{name}", 10)
            for name, (kind, _) in _BOXES.items()
        }
        self._latency = node.create_publisher(message_class("std_msgs/msg/Float64MultiArray"), "~/latency", 10)

    def are_wanted(self, options: Options) -> bool:
        """Whether somebody subscribes to the boxes in any form, or they are to be made for nobody too."""
        return not options.only_when_subscribed or any(
            publisher.get_subscription_count() for publisher in self._boxes.values()
        )

    def publish(self, result: Result, options: Options) -> dict[str, float]:
        """Publish a frame's boxes -> seconds of each stage, to the end."""
        found = result.detections.above(options.score_threshold, options.max_detections)
        frame, transform = options.output_frame or options.base_frame, result.posed.output_from_ego
        for name, publisher in self._boxes.items():
            if not options.only_when_subscribed or publisher.get_subscription_count():
                publisher.publish(_BOXES[name][1](self._factory, found, transform, frame))
        now = time.monotonic_ns()
        seconds = dict(result.seconds)
        seconds["publish"] = (now - result.inferred_ns) * 1e-9
        seconds["total"] = (now - result.posed.assembled.newest_arrival_ns) * 1e-9
        if self._latency.get_subscription_count():
            self._latency.publish(make_latency(self._factory, seconds))
        return seconds

    def close(self) -> None:
        """Give the publishers up."""
        for publisher in (*self._boxes.values(), self._latency):
            self._node.destroy_publisher(publisher)
