# SPDX-License-Identifier: Apache-2.0
"""Detections -> visualization_msgs/MarkerArray: boxes, labels and velocity arrows; old ones are removed."""

from __future__ import annotations

from typing import Any

import numpy as np

from bevnext_core.detections import Detections
from bevnext_ros.messages.conversions import make_header, transform_boxes
from bevnext_ros.messages.factory import MessageFactory
from bevnext_tools.draw.colors import class_color

_ARROW, _CUBE, _TEXT, _ADD, _DELETE_ALL = 0, 1, 9, 0, 3
_MIN_SPEED = 0.5
"""m/s below which no velocity arrow is drawn."""


def make_markers(
    factory: MessageFactory, detections: Detections, output_from_ego: np.ndarray, frame: str
) -> Any:
    """One array that removes what was shown before and shows these boxes; arrows are one second long."""
    header = make_header(factory, detections.stamp_ns, frame)

    def marker(**fields: Any) -> Any:
        return factory.make("visualization_msgs/msg/Marker", header=header, **fields)

    def point(values: np.ndarray) -> Any:
        return factory.make(
            "geometry_msgs/msg/Point", x=float(values[0]), y=float(values[1]), z=float(values[2])
        )

    def scale(x: float, y: float, z: float) -> Any:
        return factory.make("geometry_msgs/msg/Vector3", x=float(x), y=float(y), z=float(z))

    def pose(position: np.ndarray, yaw: float = 0.0) -> Any:
        rotation = factory.make(
            "geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=float(np.sin(yaw / 2)), w=float(np.cos(yaw / 2))
        )
        return factory.make("geometry_msgs/msg/Pose", position=point(position), orientation=rotation)

    markers = [marker(ns="boxes", action=_DELETE_ALL)]
    boxes = transform_boxes(detections.boxes, output_from_ego)
    for index, (box, name, score) in enumerate(zip(boxes, detections.names, detections.scores, strict=True)):
        red, green, blue = (value / 255 for value in class_color(name))
        color = factory.make("std_msgs/msg/ColorRGBA", r=red, g=green, b=blue, a=0.5)
        solid = factory.make("std_msgs/msg/ColorRGBA", r=red, g=green, b=blue, a=1.0)
        markers.append(
            marker(
                ns="boxes",
                id=index,
                type=_CUBE,
                action=_ADD,
                pose=pose(box, box[6]),
                scale=scale(*box[3:6]),
                color=color,
            )
        )
        above = box[:3] + (0, 0, box[5] / 2 + 0.5)
        markers.append(
            marker(
                ns="labels",
                id=index,
                type=_TEXT,
                action=_ADD,
                pose=pose(above),
                scale=scale(0, 0, 0.7),
                color=solid,
                text=f"{name} {score:.2f}",
            )
        )
        if np.hypot(box[7], box[8]) >= _MIN_SPEED:
            end = box[:3] + (box[7], box[8], 0.0)
            markers.append(
                marker(
                    ns="velocities",
                    id=index,
                    type=_ARROW,
                    action=_ADD,
                    pose=pose(np.zeros(3)),
                    points=[point(box), point(end)],
                    scale=scale(0.15, 0.4, 0.5),
                    color=solid,
                )
            )
    return factory.make("visualization_msgs/msg/MarkerArray", markers=markers)
