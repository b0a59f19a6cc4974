# SPDX-License-Identifier: Apache-2.0
"""`bevnext play`: bytes, pace, clock and latching, over DDS and with a stand-in node."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import pytest

from bevnext_core.errors import BevnextError
from bevnext_ros.bags import play
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagError, BagWriter
from bevnext_ros.messages.conversions import make_compressed_image, make_time, make_transform
from tests.ros.harness import MS, START
from tests.ros.recorded import FACTORY, SECOND, drive, transform, write_bag, write_mcap

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
        self.images, self.clocks, self.static = [], [], []
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(
            CompressedImage, "/play/image", lambda m: self.images.append(bytes(m.data)), 100
        )
        self.node.create_subscription(TFMessage, "/play/tf_static", self.static.append, latched)
        self.node.create_subscription(Clock, "/clock", lambda m: self.clocks.append(self._ns(m.clock)), 1000)

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


def test_bytes_and_clock(bag, ear):
    with BagReader(bag) as reader:
        node, player = player_of(reader, ear, rate=2.0, clock=200)
        assert player.wait_for_listeners(10)
        assert player.play() == 11
        player.finish()
        ear.spin(0.3)
        node.destroy_node()
    assert ear.images == [bytes([number]) * 50 for number in range(10)] and len(ear.static) == 1
    assert ear.clocks == sorted(ear.clocks) and len(ear.clocks) >= 85
    assert ear.clocks[0] == START and ear.clocks[-1] == START + 900 * MS


def test_start_offset_keeps_what_was_latched_and_a_loop_goes_back(bag, ear):
    with BagReader(bag) as reader:
        node, player = player_of(reader, ear, rate=10.0, clock=100)
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
    with pytest.raises(BagError, match=r"has no topic /no; it has /play/image, /play/tf_static"):
        play.run(parser.parse_args([str(bag), "--topics", "no"]))
    for clock in ("bag", "0", "-3"):
        with pytest.raises(SystemExit):
            parser.parse_args([str(bag), "--clock", clock])


# ------------------------------------------------------------------------------------------------ with a stand-in node
class Publisher:
    def __init__(self, qos):
        self.qos = qos
        self.sent = []

    def publish(self, message):
        self.sent.append(message)


class Node:
    """Notes what is offered and published; no DDS."""

    def __init__(self):
        self.publishers = {}

    def create_publisher(self, kind, topic, qos):
        self.publishers[topic] = Publisher(qos)
        return self.publishers[topic]

    @property
    def latched(self):
        return {
            topic
            for topic, publisher in self.publishers.items()
            if not isinstance(publisher.qos, int) and publisher.qos.durability.name == "TRANSIENT_LOCAL"
        }


def played(path, start_offset=0.0, duration=None, topics=None, **options):
    """A bag played as fast as it goes to a stand-in node -> (node, number of messages)."""
    node = Node()
    with BagReader(path) as reader:
        chosen = play.choose_topics(reader, **topics) if topics else None
        player = play.Player(
            reader, node, sleep=lambda seconds: None, topics=chosen, **{"rate": 1e6, **options}
        )
        return node, player.play(start_offset, duration)


class Clock:
    """Stands for the module of time: nothing but sleeping takes any."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("options", [{}, {"clock": 200}])
def test_messages_keep_their_distances_at_twice_the_speed(bag, dds, monkeypatch, options):
    clock, node, times = Clock(), Node(), []
    monkeypatch.setattr(play, "time", clock)
    with BagReader(bag) as reader:
        player = play.Player(reader, node, rate=2.0, sleep=clock.sleep, **options)
        monkeypatch.setattr(node.publishers["/play/image"], "publish", lambda data: times.append(clock.now))
        player.play()
    assert times == pytest.approx([0.05 * number for number in range(10)])


VOLATILE, LATCHED = "- {history: 1, depth: 10, durability: 2}", "- {history: 1, depth: 1, durability: 1}"


@pytest.mark.parametrize(
    "qos, topic, latched",
    [
        (None, "/tf_static", True),
        ({"/tf_static": "- {durability: best_available}"}, "/tf_static", True),
        ({"/tf_static": "rubbish: ["}, "/tf_static", True),
        ({"/tf_static": VOLATILE}, "/tf_static", True),
        ({"/tf_static": LATCHED}, "/tf_static", True),
        (None, "/robot1/tf_static", True),
        (None, "/map", True),
        ({"/map": VOLATILE}, "/map", False),
        ({"/map": f"{VOLATILE}\n{LATCHED}"}, "/map", True),
        (None, "/tf", False),
        ({"/tf": LATCHED}, "/tf", True),
    ],
)
def test_latched_topics_are_offered_latched_with_and_without_recorded_profiles(
    tmp_path, dds, qos, topic, latched
):
    messages = drive()
    if topic == "/robot1/tf_static":
        messages = [replace(m, topic=f"/robot1{m.topic}") if m.topic == "/tf_static" else m for m in messages]
    messages.append(replace(messages[0], topic="/map"))
    node, count = played(write_mcap(tmp_path / "bag.mcap", messages, qos=qos))
    assert count == len(messages) and (topic in node.latched) == latched
    assert all(publisher.qos.reliability.name == "RELIABLE" for publisher in node.publishers.values())


def test_a_latched_topic_of_many_publishers_is_kept_whole_for_who_listens_later(tmp_path, dds):
    many = [transform(SECOND * (i + 1), "base_link", f"part_{i}", topic="/tf_static") for i in range(150)]
    node, _ = played(write_mcap(tmp_path / "bag.mcap", many))
    assert node.publishers["/tf_static"].qos.depth == 150


def with_clock(path):
    messages = drive()
    kind = "rosgraph_msgs/msg/Clock"
    for item in drive()[::20]:
        message = FACTORY.make(kind, clock=make_time(FACTORY, item.stamp_ns))
        messages.append(replace(item, topic="/clock", kind=kind, message=message))
    return write_bag(path, messages)


def test_there_is_one_clock_the_bag_s_own_or_the_player_s(tmp_path, dds):
    bag = with_clock(tmp_path / "bag")
    own, count = played(bag)
    asked, without = played(bag, clock=50)
    assert count - without == len(own.publishers["/clock"].sent) > 0
    stamps = [m.clock.sec * SECOND + m.clock.nanosec for m in asked.publishers["/clock"].sent]
    assert (
        stamps == sorted(stamps) and stamps[0] == drive()[0].stamp_ns and stamps[-1] == drive()[-1].stamp_ns
    )
    assert len([name for name in asked.publishers if name == "/clock"]) == 1


@pytest.mark.parametrize(
    "topics, expected",
    [
        ({"topics": ["/tf", "tf_static"]}, {"/tf", "/tf_static"}),
        ({"regex": "cam_back/"}, {"/cam_back/camera_info", "/cam_back/image_raw/compressed"}),
        ({"topics": ["/tf"], "regex": "back_left/camera_info$"}, {"/tf", "/cam_back_left/camera_info"}),
        ({"regex": "tf", "exclude": ["/tf"]}, {"/tf_static"}),
        ({"exclude_regex": "image|info"}, {"/tf", "/tf_static"}),
    ],
)
def test_topics_are_chosen_by_name_and_expression(tmp_path, dds, topics, expected):
    node, count = played(write_bag(tmp_path / "bag", drive()), topics=topics)
    assert set(node.publishers) == expected
    assert count == sum(item.topic in expected for item in drive())


def test_wrong_choices_of_topics_are_named(tmp_path):
    with BagReader(write_bag(tmp_path / "bag", drive())) as bag:
        with pytest.raises(BagError, match=r"has no topic /a, /b; it has /cam_back/camera_info"):
            play.choose_topics(bag, ["a", "/b", "/tf"])
        with pytest.raises(BagError, match="no topic that is left to play"):
            play.choose_topics(bag, ["/tf"], ["/tf"])
        with pytest.raises(BevnextError, match=r"'\(' is no regular expression"):
            play.choose_topics(bag, exclude_regex="(")


@pytest.mark.parametrize("offset, duration", [(0.0, None), (0.0, 1.5), (1.2, None), (1.2, 0.4), (2.4, 9.0)])
def test_start_offset_and_duration_bound_what_is_played(tmp_path, dds, offset, duration):
    node, count = played(write_bag(tmp_path / "bag", drive()), offset, duration)
    end = SECOND * 99 if duration is None else round((offset + duration) * SECOND)
    first = drive()[0].stamp_ns
    wanted = [item for item in drive() if offset * SECOND <= item.stamp_ns - first <= end]
    assert count == len(wanted) > 0
    assert len(node.publishers["/tf_static"].sent) == 6  # what was latched before the offset is still true
    assert len(node.publishers["/tf"].sent) == sum(item.topic == "/tf" for item in wanted)


def test_no_latched_topic_means_that_nothing_from_before_the_offset_is_played(tmp_path, dds):
    poses = [item for item in drive() if item.topic == "/tf"]
    node, count = played(write_bag(tmp_path / "bag", poses), 1.0)
    assert len(node.publishers["/tf"].sent) == count < len(poses)


def test_the_command_loops_with_a_clock_that_starts_anew_and_renames(tmp_path, bag, ear, monkeypatch):
    """In this process, whose rclpy is running already."""
    parser = argparse.ArgumentParser()
    play.add_arguments(parser)
    rounds = []
    original = play.Player.play

    def counted(player, *arguments):
        if len(rounds) == 2:
            raise KeyboardInterrupt
        rounds.append(arguments)
        return original(player, *arguments)

    monkeypatch.setattr(play.Player, "play", counted)
    monkeypatch.setattr(ear.rclpy, "init", lambda **options: None)
    monkeypatch.setattr(ear.rclpy, "try_shutdown", lambda: None)
    monkeypatch.setattr(play.time, "sleep", ear.spin)
    renamed = []
    from sensor_msgs.msg import CompressedImage

    ear.node.create_subscription(
        CompressedImage, "/other/image", lambda m: renamed.append(bytes(m.data)), 100
    )
    arguments = f"{bag} -l -r 20 --clock --topics /play/image -d 0.1 --playback-duration 0.5"
    arguments += " -m /play/image:=/other/image"
    with pytest.raises(KeyboardInterrupt):
        play.run(parser.parse_args(arguments.split()))
    ear.spin(0.3)
    assert renamed == [bytes([number]) * 50 for number in range(6)] * 2 and not ear.images and not ear.static
    back = [(a, b) for a, b in zip(ear.clocks, ear.clocks[1:]) if b < a]
    assert back == [(START + 500 * MS, START)]
    with pytest.raises(BevnextError, match="must be OLD:=NEW"):
        play.run(parser.parse_args([str(bag), "--remap", "nonsense"]))
