# SPDX-License-Identifier: Apache-2.0
"""Making messages of either kind: rclpy's classes, or rosbags' dataclasses where there is no ROS."""

from __future__ import annotations

import array
import importlib
from functools import cache
from typing import Any, Protocol

import numpy as np


class MessageFactory(Protocol):
    """Makes messages by their full name, for example ``sensor_msgs/msg/Image``."""

    def make(self, name: str, /, **fields: Any) -> Any:
        """A message with the given fields. Fields that are left out hold their type's zero."""

    def data(self, values: bytes) -> Any:
        """Bytes in the form that a ``uint8[]`` field takes fastest."""


@cache
def message_class(name: str) -> type:
    """rclpy's class of ``package/msg/Name``. Raises ImportError when the package is not installed."""
    package, folder, kind = name.split("/")
    return getattr(importlib.import_module(f"{package}.{folder}"), kind)


class RclpyFactory:
    """Messages for publishing through rclpy."""

    def make(self, name: str, /, **fields: Any) -> Any:
        return message_class(name)(**fields)

    def data(self, values: bytes) -> Any:
        # assigning an ndarray or a list would be checked item by item, hundreds of times slower
        data = array.array("B")
        data.frombytes(values)
        return data


class RosbagsFactory:
    """Messages for bags without ROS; ``typestore`` as of :func:`bevnext_ros.bags.types.make_typestore`."""

    def __init__(self, typestore: Any) -> None:
        self.typestore = typestore
        self._numeric = {
            "float32",
            "float64",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
        }

    def make(self, name: str, /, **fields: Any) -> Any:
        definitions = dict(self.typestore.fielddefs[name][1])
        unknown = set(fields) - set(definitions)
        if unknown:
            raise AttributeError(f"{name} has no field {', '.join(sorted(unknown))}")
        values = {}
        for field, definition in definitions.items():
            if field in fields:
                values[field] = self._as_field(definition, fields[field])
            else:
                values[field] = self._zero(definition)
        return self.typestore.types[name](**values)

    def data(self, values: bytes) -> Any:
        return np.frombuffer(values, np.uint8)

    def _as_field(self, definition: Any, value: Any) -> Any:
        """rosbags wants numpy arrays where rclpy takes any sequence of numbers."""
        kind, content = definition
        if int(kind) in (3, 4) and int(content[0][0]) == 1 and content[0][1][0] in self._numeric:
            return np.asarray(value, np.dtype(content[0][1][0]))
        return value

    def _zero(self, definition: Any) -> Any:
        kind, content = int(definition[0]), definition[1]
        if kind == 1:
            return {"string": "", "wstring": "", "bool": False}.get(content[0], 0)
        if kind == 2:
            return self.make(content)
        (inner_kind, inner), length = content
        count = length if kind == 3 else 0
        if int(inner_kind) == 1 and inner[0] in self._numeric:
            return np.zeros(count, np.dtype(inner[0]))
        return [self._zero((inner_kind, inner)) for _ in range(count)]
