# SPDX-License-Identifier: Apache-2.0
"""`synchronizer: message_filters`, with a stand-in for the package (the real one on a distribution)."""

from __future__ import annotations

import itertools
import sys
import types

import pytest

from bevnext_core.errors import ConfigError
from bevnext_ros.node.parameters import make_options
from bevnext_ros.streams.message_filters_assembler import MessageFiltersAssembler
from bevnext_ros.streams.rig_stream import RigStream

MS = 1_000_000
CAMERAS = ("left", "front")


class SimpleFilter:
    def __init__(self):
        self.callbacks = []

    def registerCallback(self, callback, *arguments):  # the package's own name
        self.callbacks.append((callback, arguments))

    def signalMessage(self, message):
        for callback, arguments in self.callbacks:
            callback(message, *arguments)


class Synchronizer(SimpleFilter):
    """Matches any images within the slop, and like the real one discards what is older than its newest."""

    def __init__(self, filters, queue_size, slop):
        super().__init__()
        self.queues = [[] for _ in filters]
        self.slop_ns = slop * 1e9
        self.newest = 0
        for index, source in enumerate(filters):
            source.registerCallback(self.take, index)

    def take(self, message, index):
        stamp = ns(message)
        if stamp < self.newest - 1_000 * MS:
            return  # the real one falls silent after time went back
        self.newest = max(self.newest, stamp)
        self.queues[index].append(message)
        for chosen in itertools.product(*self.queues):
            stamps = [ns(item) for item in chosen]
            if max(stamps) - min(stamps) <= self.slop_ns:
                for queue, item in zip(self.queues, chosen):
                    queue.remove(item)
                self.signalMessage_all(chosen)
                return

    def signalMessage_all(self, chosen):
        for callback, arguments in self.callbacks:
            callback(*chosen, *arguments)


def ns(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def image(stamp_ns: int):
    stamp = types.SimpleNamespace(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)
    return types.SimpleNamespace(header=types.SimpleNamespace(stamp=stamp, frame_id="eye"))


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("message_filters")
    module.SimpleFilter, module.ApproximateTimeSynchronizer = SimpleFilter, Synchronizer
    monkeypatch.setitem(sys.modules, "message_filters", module)


def make(**options) -> MessageFiltersAssembler:
    return MessageFiltersAssembler(
        CAMERAS, "front", **{"max_spread": 0.05, "queue_size": 4, **options}
    )


def feed(assembler, camera: str, stamp_ms: int):
    return assembler.add(camera, stamp_ms * MS, image(stamp_ms * MS), stamp_ms * MS)


def accounted(a) -> bool:
    return a.seen == a.emitted + a.frame_drops.total + a.waiting


def test_frames_have_the_anchor_stamp_and_all_images(package):
    a = make()
    assert feed(a, "front", 10_000) == []
    (frame,) = feed(a, "left", 10_008)
    assert frame.stamp_ns == 10_000 * MS and frame.newest_arrival_ns == 10_008 * MS
    assert [item.stamp_ns for item in frame.images] == [10_008 * MS, 10_000 * MS]
    assert accounted(a) and a.waiting == 0


def test_frames_without_partner_are_counted(package):
    a = make()
    for stamp in (10_000, 10_100, 10_200):
        feed(a, "front", stamp)
    assert len(feed(a, "left", 10_208)) == 1
    assert a.frame_drops.snapshot() == {"not_matched": 2} and accounted(a)
    for stamp in range(10_300, 11_000, 100):
        feed(a, "front", stamp)
    assert a.waiting == 4 and accounted(a)
    a.flush(0)
    assert a.waiting == 0 and accounted(a)


def test_time_that_goes_back_makes_the_synchronizer_anew(package):
    a = make()
    feed(a, "front", 100_000)
    assert len(feed(a, "left", 100_000)) == 1
    feed(a, "front", 101_000)
    for camera in CAMERAS:
        a.forget(camera, "time went back by 51.0 s")
    feed(a, "front", 50_000)
    (frame,) = feed(a, "left", 50_000)
    assert frame.reset_reason == "time went back by 51.0 s" and accounted(a)
    assert a.frame_drops.snapshot() == {"time_jump": 1}


def test_refused_images_are_counted(package):
    a = make()
    assert a.refuse("front", "late", 5) == a.refuse("left", "early", 6) == []
    assert a.frame_drops.snapshot() == {"late": 1} and a.image_drops.snapshot() == {"early": 1, "late": 1}
    assert accounted(a) and a.ages(7) == {"left": 1e-9, "front": 2e-9}


def test_zero_and_repeated_stamps_are_counted(package):
    a = make()
    for stamp in (0, 10_000, 10_000):
        feed(a, "front", stamp)
    assert a.frame_drops.snapshot() == {"duplicate": 1, "zero_stamp": 1} and accounted(a)


def test_without_the_package_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "message_filters", None)
    with pytest.raises(ConfigError, match=r"not installed.*set it to 'anchor'"):
        make()


def test_the_parameter_chooses_it(package):
    options = make_options({"synchronizer": "message_filters"}, "")
    stream = RigStream(options, ("A", "B"), "A")
    assert isinstance(stream.assembler, MessageFiltersAssembler)
    assert stream.waiting == 0 and stream.poll(0) == []
