"""`bevnext play`: bytes, pace, clock and latching, over DDS and with a stand-in node."""

from __future__ import annotations

import argparse
import time

import pytest

from bevnext_core.errors import BevnextError
from bevnext_ros.bags import play
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagError, BagWriter
from bevnext_ros.messages.conversions import make_compressed_image, make_transform
from tests.ros.harness import MS, START

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """Ten images at 10 Hz on /play/image, a latched transform, one image a second before."""
    path = tmp_path_factory.mktemp("bag") / "bag"
    with BagWriter(path) as writer:
        factory = writer.factory
        transform = make_transform(factory, "base_link", "eye", (1, 0, 0, 0), (1, 2, 3), START)
        message = factory.make("tf2_msgs/msg/TFMessage", transforms=[transform])
        writer.write("/play/tf_static", "tf2_msgs/msg/TFMessage", message, START, latched=True)
        for number in range(10):
            stamp = START + number * 100 * MS
            image = make_compressed_image(factory, stamp, "eye", bytes([number]) * 50)
            writer.write("/play/image", "sensor_msgs/msg/CompressedImage", image, stamp)
    return path


class Ear:
    """Listens to the bag's topics."""

    def __init__(self, rclpy):
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CompressedImage
        from tf2_msgs.msg import TFMessage

        self.rclpy = rclpy
        self.node = rclpy.create_node("ear")
        self.images, self.times, self.clocks, self.static = [], [], [], []
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(CompressedImage, "/play/image", self._image, 100)
        self.node.create_subscription(TFMessage, "/play/tf_static", self.static.append, latched)
        self.node.create_subscription(Clock, "/clock", lambda m: self.clocks.append(self._ns(m.clock)), 1000)

    def _image(self, message):
        self.images.append(bytes(message.data))
        self.times.append(time.monotonic())

    def _ns(self, stamp):
        return stamp.sec * 1_000_000_000 + stamp.nanosec

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.rclpy.spin_once(self.node, timeout_sec=left)


@pytest.fixture
def ear(dds):
    ear = Ear(dds)
    yield ear
    ear.node.destroy_node()


def player_of(bag, ear, **options):
    node = ear.rclpy.create_node("player")
    return node, play.Player(bag, node, sleep=ear.spin, **options)


def test_bytes_pace_and_clock(bag, ear):
    with BagReader(bag) as reader:
        node, player = player_of(reader, ear, rate=2.0, clock=True)
        assert player.wait_for_listeners(10)
        assert player.play() == 11
        player.finish()
        ear.spin(0.3)
        node.destroy_node()
    assert ear.images == [bytes([number]) * 50 for number in range(10)] and len(ear.static) == 1
    assert 0.35 < ear.times[-1] - ear.times[0] < 0.9  # 0.9 s of recording at twice the speed
    assert ear.clocks == sorted(ear.clocks) and len(ear.clocks) >= 85
    assert START < ear.clocks[0] <= START + 10 * MS and ear.clocks[-1] == START + 900 * MS


def test_start_offset_keeps_what_was_latched_and_a_loop_goes_back(bag, ear):
    with BagReader(bag) as reader:
        node, player = player_of(reader, ear, rate=10.0, clock=True)
        assert player.wait_for_listeners(10)
        assert player.play(0.55) == 4
        assert player.play(0.55) == 4
        player.finish()
        ear.spin(0.3)
        node.destroy_node()
    assert ear.images == [bytes([number]) * 50 for number in (6, 7, 8, 9)] * 2 and len(ear.static) >= 1
    assert any(b < a for a, b in zip(ear.clocks, ear.clocks[1:]))


def test_wrong_options_and_bags(tmp_path, bag, dds):
    parser = argparse.ArgumentParser()
    play.add_arguments(parser)
    with pytest.raises(BevnextError, match="--rate must be above 0, got 0"):
        play.run(parser.parse_args([str(bag), "--rate", "0"]))
    with pytest.raises(BevnextError, match="must not be negative"):
        play.run(parser.parse_args([str(bag), "--wait", "-1"]))
    with pytest.raises(BagError, match="no such bag"):
        play.run(parser.parse_args([str(tmp_path / "none")]))
