# SPDX-License-Identifier: Apache-2.0
"""The bags' message types, without ROS: rosbags' own plus vision_msgs from the repository's definitions."""

from __future__ import annotations

from functools import cache
from typing import Any

from bevnext_tools.resources import shared_file


@cache
def make_typestore() -> Any:
    """A rosbags type store of a current distribution that knows ``vision_msgs`` too.

    Raises:
        ConfigError: the message definitions (``ros_msgs/``) are not installed.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    folder = shared_file("ros_msgs/vision_msgs/msg")
    for path in sorted(folder.glob("*.msg")):
        types.update(get_types_from_msg(path.read_text(encoding="utf-8"), f"vision_msgs/msg/{path.stem}"))
    store.register(types)
    return store
