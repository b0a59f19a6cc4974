# SPDX-License-Identifier: Apache-2.0
"""The node's subscriptions: topics, QoS, and what differs between the releases of rclpy. Imports rclpy."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from bevnext_ros.messages.factory import message_class
from bevnext_ros.node.parameters import Options, RigCamera

_WITH_INFO = inspect.signature(lambda message, info: None)
_LATCHED_SECONDS = 0.2
"""How often it is asked whether a camera info is latched."""
_LONGEST_WAIT_NS = 10_000_000_000


class Handlers(Protocol):
    """What the messages are given to."""

    def on_image(self, camera: str, message: Any, waited_ns: int) -> None:
        """``waited_ns``: how long ago the middleware received it (0 where rclpy does not say)."""

    def on_camera_info(self, camera: str, message: Any) -> None: ...

    def on_tf(self, static: bool, message: Any) -> None: ...

    def on_clock_jump(self, to_ns: int, backward: bool) -> None: ...


class Inputs:
    """Subscribes for ``node`` to the topics of a rig and to jumps of its clock, until :meth:`close`."""

    def __init__(self, node: Any, options: Options, cameras: Sequence[RigCamera], handlers: Handlers) -> None:
        self._node = node
        self._subscriptions: list[Any] = []
        self._volatile: dict[str, Callable[..., None]] = {}  # camera infos that no publisher has latched so far
        reliable = options.image_reliability == "reliable"
        qos = QoSProfile(
            depth=options.image_depth,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        # of what is ready at once, the executor takes first what was subscribed first: poses before images
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        tf = "tf2_msgs/msg/TFMessage"
        self._subscribe(tf, options.tf_static_topic, partial(handlers.on_tf, True), latched)
        self._subscribe(tf, options.tf_topic, partial(handlers.on_tf, False), 100)
        for camera in cameras:
            kind = f"sensor_msgs/msg/{'Image' if camera.raw else 'CompressedImage'}"
            on_info = partial(handlers.on_camera_info, camera.name)
            self._subscribe("sensor_msgs/msg/CameraInfo", camera.info_topic, on_info, qos)
            self._volatile[camera.info_topic] = on_info
            on_image = image_callback(partial(handlers.on_image, camera.name))
            self._subscribe(kind, camera.image_topic, on_image, qos)
        self._latched = latched
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(_LATCHED_SECONDS, self._hear_latched, clock=steady)
        least = Duration(nanoseconds=int(options.backward_jump * 1e9))
        threshold = JumpThreshold(
            min_forward=least,
            min_backward=Duration(nanoseconds=-least.nanoseconds),
            on_clock_change=False,
        )
        clock = node.get_clock()
        self._jumps = clock.create_jump_callback(
            threshold,
            post_callback=lambda jump: handlers.on_clock_jump(
                clock.now().nanoseconds, jump.delta.nanoseconds < 0
            ),
        )

    def _hear_latched(self) -> None:
        """Subscribe again, transient-local, where a camera info is sent once and kept for those who come later.

        A volatile subscription does not hear what was sent before it; a transient-local one hears nobody who
        sends volatile, and makes both sides warn of it.
        """
        kept = DurabilityPolicy.TRANSIENT_LOCAL
        for topic, callback in list(self._volatile.items()):
            publishers = self._node.get_publishers_info_by_topic(topic)
            if any(publisher.qos_profile.durability == kept for publisher in publishers):
                del self._volatile[topic]
                self._subscribe("sensor_msgs/msg/CameraInfo", topic, callback, self._latched)

    def _subscribe(self, kind: str, topic: str, callback: Callable[..., None], qos: Any) -> None:
        self._subscriptions.append(self._node.create_subscription(message_class(kind), topic, callback, qos))

    def close(self) -> None:
        """Unsubscribe."""
        self._jumps.unregister()
        self._node.destroy_timer(self._timer)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()


def image_callback(handle: Callable[[Any, int], None]) -> Callable[..., None]:
    """A callback for ``handle(message, waited_ns)`` on every rclpy.

    Humble's calls with the message only; from Iron on the signature is asked which arguments are wanted, and
    the message alone is given if that will do. So the signature names both, and either call works.
    """

    def callback(message: Any, info: Any = None) -> None:
        handle(message, 0 if info is None else _waited_ns(info))

    callback.__signature__ = _WITH_INFO  # type: ignore[attr-defined]
    return callback


def _waited_ns(info: Any) -> int:
    """How long ago the middleware received a message: before its callback had its turn."""
    received = info["received_timestamp"] if isinstance(info, dict) else info.received_timestamp
    return min(max(time.time_ns() - int(received), 0), _LONGEST_WAIT_NS) if received else 0
