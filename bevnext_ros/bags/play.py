"""``bevnext play BAG``: publishes a recorded bag through rclpy, where there is no ``ros2 bag``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from bevnext_core.errors import BevnextError
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagError
from bevnext_ros.messages.factory import message_class

SECOND = 1_000_000_000
_CLOCK_STEP_NS = 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("bag", metavar="BAG", help="the bag's folder, or one .mcap or .db3 file")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="times the recorded speed (default: %(default)s)"
    )
    parser.add_argument("--loop", action="store_true", help="start again at the end, until interrupted")
    parser.add_argument(
        "--start-offset", type=float, default=0.0, metavar="S", help="seconds to leave out at first"
    )
    parser.add_argument("--clock", action="store_true", help="publish /clock for nodes with use_sim_time")
    parser.add_argument(
        "--wait",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds to wait at most for somebody to listen, before the first message (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Play. Raises BevnextError; KeyboardInterrupt on Ctrl-C."""
    if not args.rate > 0:
        raise BevnextError(f"--rate must be above 0, got {args.rate:g}")
    if args.start_offset < 0 or args.wait < 0:
        raise BevnextError("--start-offset and --wait must not be negative")
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
    except ImportError as error:
        raise BevnextError(
            f"playing needs ROS 2 ({error}): `make setup`, or source a distribution's setup.bash"
        ) from None
    with BagReader(args.bag) as bag:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        try:
            node = rclpy.create_node("bevnext_play")
            player = Player(bag, node, rate=args.rate, clock=args.clock)
            player.wait_for_listeners(args.wait)
            loops = 0
            while loops == 0 or args.loop:
                count = player.play(args.start_offset)
                loops += 1
                if not count:
                    raise BagError(f"{args.bag}: nothing to play after {args.start_offset:g} s")
            player.finish()
            print(f"{count} messages published")
        finally:
            rclpy.try_shutdown()
    return 0


class Player:
    """Publishes a bag's messages, as recorded bytes, at the recorded pace.

    Args:
        node: an rclpy node. rate: times the recorded speed. clock: publish ``/clock`` too.
        sleep: for tests.

    Raises:
        BagError: none of its types is installed.
    """

    def __init__(
        self,
        bag: BagReader,
        node: Any,
        *,
        rate: float = 1.0,
        clock: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile

        self._bag = bag
        self._rate = rate
        self._sleep = sleep
        self._publishers: dict[str, Any] = {}
        for topic, kind in bag.topics.items():
            try:
                message_type = message_class(kind)
            except (ImportError, AttributeError):
                print(f"bevnext: warning: {topic} is left out: {kind} is not installed", file=sys.stderr)
                continue
            qos = QoSProfile(depth=100)
            if topic in bag.latched:
                qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
            self._publishers[topic] = node.create_publisher(message_type, topic, qos)
        if not self._publishers:
            raise BagError(f"{bag.path}: none of its message types is installed")
        self._clock: Any = None
        if clock:
            self._clock_type = message_class("rosgraph_msgs/msg/Clock")
            self._clock = node.create_publisher(self._clock_type, "/clock", 10)

    def wait_for_listeners(self, timeout: float) -> bool:
        """Wait until every topic that anybody listens to is found, at most ``timeout`` seconds."""
        end = time.monotonic() + timeout
        before = 0
        while time.monotonic() < end:
            # discovery takes a moment: go on when the number of matched topics is stable and not zero
            matched = sum(bool(p.get_subscription_count()) for p in self._publishers.values())
            if matched and matched == before:
                return True
            before = matched
            self._sleep(0.5)
        return False

    def play(self, start_offset: float = 0.0) -> int:
        """Publish everything from ``start_offset`` seconds after the beginning -> number of messages."""
        first_ns = self._bag.span_ns[0] + round(start_offset * SECOND)
        begin = time.monotonic()
        count = 0
        # what was latched before the offset is still true
        for message in self._bag.messages(self._bag.latched) if start_offset else ():
            if message.stamp_ns < first_ns and message.topic in self._publishers:
                self._publishers[message.topic].publish(message.data)
        now_ns = first_ns
        for message in self._bag.messages(self._publishers, start_ns=first_ns):
            while now_ns < message.stamp_ns:
                now_ns = min(message.stamp_ns, now_ns + _CLOCK_STEP_NS) if self._clock else message.stamp_ns
                delay = begin + (now_ns - first_ns) / SECOND / self._rate - time.monotonic()
                if delay > 0:
                    self._sleep(delay)
                self._publish_clock(now_ns)
            self._publishers[message.topic].publish(message.data)
            count += 1
        return count

    def _publish_clock(self, now_ns: int) -> None:
        if self._clock is not None:
            message = self._clock_type()
            message.clock.sec, message.clock.nanosec = now_ns // SECOND, now_ns % SECOND
            self._clock.publish(message)

    def finish(self, timeout: float = 3.0) -> None:
        """Wait until the last messages have been received."""
        from rclpy.duration import Duration

        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=timeout))
