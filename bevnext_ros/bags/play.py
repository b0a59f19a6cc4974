# SPDX-License-Identifier: Apache-2.0
"""``bevnext play BAG``: publishes a recorded bag through rclpy as ``ros2 bag play`` does, where there is none."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from bevnext_core.errors import BevnextError
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagError
from bevnext_ros.messages.factory import message_class

SECOND = 1_000_000_000
CLOCK_HZ = 100.0
CLOCK = "/clock"
_DEPTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("bag", metavar="BAG", help="the bag's folder, or one of its files")
    parser.add_argument(
        "-r", "--rate", type=float, default=1.0, help="times the recorded speed (default: %(default)s)"
    )
    parser.add_argument("-l", "--loop", action="store_true", help="start again at the end, until interrupted")
    parser.add_argument(
        "--start-offset", type=float, default=0.0, metavar="S", help="seconds to leave out at first"
    )
    parser.add_argument(
        "--playback-duration", type=float, metavar="S", help="end after so many recorded seconds"
    )
    parser.add_argument(
        "-d", "--delay", type=float, default=0.0, metavar="S", help="seconds to wait before each round"
    )
    parser.add_argument("--topics", nargs="+", metavar="TOPIC", help="play only these")
    parser.add_argument("--exclude-topics", nargs="+", default=[], metavar="TOPIC", help="leave these out")
    parser.add_argument("-e", "--regex", metavar="EXPR", help="play only topics in which it is found")
    parser.add_argument("-x", "--exclude-regex", metavar="EXPR", help="leave out topics in which it is found")
    parser.add_argument("-m", "--remap", nargs="+", default=[], metavar="OLD:=NEW", help="rename topics")
    parser.add_argument(
        "--clock",
        type=_frequency,
        nargs="?",
        const=CLOCK_HZ,
        default=0.0,
        metavar="HZ",
        help=f"publish /clock for nodes with use_sim_time (default: {CLOCK_HZ:g} Hz); one in the bag is left out",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds to wait at most for somebody to listen, before the first message (default: %(default)s)",
    )


def _frequency(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no frequency; give the bag before --clock") from None
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def run(args: argparse.Namespace) -> int:
    """Play. Raises BevnextError; KeyboardInterrupt on Ctrl-C."""
    if not args.rate > 0:
        raise BevnextError(f"--rate must be above 0, got {args.rate:g}")
    for name in ("start_offset", "wait", "delay", "playback_duration"):
        if (getattr(args, name) or 0.0) < 0:
            raise BevnextError(f"--{name.replace('_', '-')} must not be negative")
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
    except ImportError as error:
        raise BevnextError(
            f"playing needs ROS 2 ({error}): `make setup`, or source a distribution's setup.bash"
        ) from None
    with BagReader(args.bag) as bag:
        chosen = choose_topics(bag, args.topics, args.exclude_topics, args.regex, args.exclude_regex)
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        try:
            rules = [part for rule in args.remap for part in ("--remap", rule)]
            try:
                node = rclpy.create_node("bevnext_play", cli_args=["--ros-args", *rules])
            except Exception as error:  # rclpy has no public class for it
                raise BevnextError(f"--remap {' '.join(args.remap)}: must be OLD:=NEW ({error})") from None
            player = Player(bag, node, rate=args.rate, clock=args.clock, topics=chosen)
            player.wait_for_listeners(args.wait)
            loops = 0
            while loops == 0 or args.loop:
                time.sleep(args.delay)
                count = player.play(args.start_offset, args.playback_duration)
                loops += 1
                if not count:
                    raise BagError(f"{args.bag}: nothing to play after {args.start_offset:g} s")
            player.finish()
            print(f"{count} messages published")
        finally:
            rclpy.try_shutdown()
    return 0


def choose_topics(
    bag: BagReader,
    topics: Collection[str] | None = None,
    exclude: Collection[str] = (),
    regex: str | None = None,
    exclude_regex: str | None = None,
) -> set[str]:
    """The bag's topics that are wanted by name or by expression (all by default), less those that are not.

    Raises:
        BagError: a topic is not in the bag, or none is left (lists what it has). BevnextError: no regular expression.
    """
    named = {"/" + name.lstrip("/") for name in topics or ()}
    unknown = sorted(named - set(bag.topics))
    found = {
        name
        for name in bag.topics
        if (topics is None and regex is None)
        or name in named
        or (regex is not None and _matches(regex, name))
    }
    found -= {"/" + name.lstrip("/") for name in exclude}
    if exclude_regex is not None:
        found = {name for name in found if not _matches(exclude_regex, name)}
    if unknown or not found:
        what = f"has no topic {', '.join(unknown)}" if unknown else "has no topic that is left to play"
        raise BagError(f"{bag.path} {what}; it has {', '.join(sorted(bag.topics)) or 'none'}")
    return found


def _matches(expression: str, name: str) -> bool:
    try:
        return re.search(expression, name) is not None
    except re.error as error:
        raise BevnextError(f"'{expression}' is no regular expression: {error}") from None


def is_latched(bag: BagReader, topic: str) -> bool:
    """Whether a topic is to reach those who listen later, too.

    ``tf_static`` always: no listener of TF takes less. Others if they were recorded so, and where nothing is known of
    the offer (converted from ROS 1, other tools), if the bag holds a single message: a map, a robot's description.
    """
    durability = bag.durabilities[topic]
    return (
        durability == "transient_local"
        or topic.endswith("/tf_static")
        or (not durability and bag.counts[topic] == 1)
    )


class Player:
    """Publishes a bag's messages, as recorded bytes, at the recorded pace.

    All topics are offered as reliable, which every subscription takes, whatever was recorded.

    Args:
        node: an rclpy node. rate: times the recorded speed. clock: publish ``/clock`` so many times a second too; the
            bag's own is left out then. topics: only these. sleep: for tests.

    Raises:
        BagError: none of its types is installed.
    """

    def __init__(
        self,
        bag: BagReader,
        node: Any,
        *,
        rate: float = 1.0,
        clock: float = 0.0,
        topics: Collection[str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile

        self._bag = bag
        self._rate = rate
        self._sleep = sleep
        self._publishers: dict[str, Any] = {}
        self._latched: set[str] = set()
        for topic, kind in bag.topics.items():
            if (topics is not None and topic not in topics) or (clock and topic == CLOCK):
                continue
            try:
                message_type = message_class(kind)
            except (ImportError, AttributeError, ValueError):
                print(f"bevnext: warning: {topic} is left out: {kind} is not installed", file=sys.stderr)
                continue
            qos = QoSProfile(depth=_DEPTH)
            if is_latched(bag, topic):
                self._latched.add(topic)
                qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
                # one publisher stands for all that there were
                qos.depth = max(_DEPTH, bag.counts[topic])
            self._publishers[topic] = node.create_publisher(message_type, topic, qos)
        if not self._publishers:
            raise BagError(f"{bag.path}: none of its message types is installed")
        self._clock: Any = None
        if clock:
            self._clock_type = message_class("rosgraph_msgs/msg/Clock")
            self._clock = node.create_publisher(self._clock_type, CLOCK, 10)
            self._step_ns = round(SECOND * rate / clock)

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

    def play(self, start_offset: float = 0.0, duration: float | None = None) -> int:
        """Publish from ``start_offset`` seconds after the beginning, for ``duration`` -> number of messages."""
        first_ns = self._bag.span_ns[0] + round(start_offset * SECOND)
        end_ns = None if duration is None else first_ns + round(duration * SECOND)
        begin = time.monotonic()
        count = 0
        self._publish_clock(first_ns)
        # what was latched before the offset is still true
        for message in self._bag.messages(self._latched) if start_offset and self._latched else ():
            if message.stamp_ns >= first_ns:
                break
            self._publishers[message.topic].publish(message.data)
        now_ns = first_ns
        for message in self._bag.messages(self._publishers, start_ns=first_ns):
            if end_ns is not None and message.stamp_ns > end_ns:
                break
            while now_ns < message.stamp_ns:
                now_ns = min(message.stamp_ns, now_ns + self._step_ns) if self._clock else message.stamp_ns
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
