# SPDX-License-Identifier: Apache-2.0
"""Which time it is: messages late, stale or foreign lose no frame, time that really goes back resets once."""

from __future__ import annotations

import itertools
from types import SimpleNamespace as Message

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bevnext_ros.node.parameters import make_options
from bevnext_ros.streams.rig_stream import RigStream
from bevnext_ros.streams.timeline import SECOND

MS = 1_000_000
START = 1_600_000_000 * SECOND
CAMERAS = ("left", "front", "right", "back")
OFFSETS = dict(zip(CAMERAS, (-8, 0, 8, 25)))
EGO, WHEEL = ("odom", "base_link"), ("base_link", "wheel")
YEARS = 10**8 * SECOND
"""As far as recorded stamps may be from a wall clock."""


def header(stamp: int, frame: str = "") -> Message:
    return Message(stamp=Message(sec=stamp // SECOND, nanosec=stamp % SECOND), frame_id=frame)


def tf(edge: tuple[str, str], stamp: int, x: float = 0.0) -> Message:
    rotation, offset = Message(x=0.0, y=0.0, z=0.0, w=1.0), Message(x=x, y=0.0, z=0.0)
    move = Message(rotation=rotation, translation=offset)
    return Message(transforms=[Message(header=header(stamp, edge[0]), child_frame_id=edge[1], transform=move)])


def where(stamp: int) -> float:
    return 10.0 * (stamp - START) / SECOND


def calibration(camera: str) -> Message:
    k = [100.0, 0, 32, 0, 100.0, 24, 0, 0, 1]
    whole = Message(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
    more = {"width": 64, "height": 48, "roi": whole, "binning_x": 0, "binning_y": 0}
    return Message(header=header(1, camera), k=k, d=[], p=[0.0] * 12, distortion_model="plumb_bob", **more)


def drive(first: int, count: int, interval: int = 100) -> list[tuple[object, int]]:
    """(source, stamp) of sweeps number ``first`` ...: a pose every 20 ms, from before to after, and the images."""
    begin, end = START + first * interval * MS, START + (first + count - 1) * interval * MS
    events: list[tuple[object, int]] = [(EGO, t) for t in range(begin - 40 * MS, end + 60 * MS, 20 * MS)]
    for number in range(first, first + count):
        events += [(camera, START + (number * interval + OFFSETS[camera]) * MS) for camera in CAMERAS]
    return sorted(events, key=lambda event: event[1])


class Feed:
    """A stream with four cameras; arrival runs on by a millisecond a message, or with the stamps of one lap."""

    def __init__(self, **options) -> None:
        values = {"missing_camera": "skip", "image_deadline": 1.0, "transform_deadline": 3.0, **options}
        self.stream = RigStream(make_options(values, "the test"), CAMERAS, "front")
        self.now = START
        for camera in CAMERAS:
            self.stream.transform(tf(("base_link", camera), 0), True, self.now)
            self.stream.camera_info(camera, calibration(camera), self.now)
        self.frames: list = []

    def give(self, events, step: int = 5 * MS) -> None:
        for source, stamp in events:
            self.now += step
            if isinstance(source, str):
                image = Message(header=header(stamp, source))
                self.frames += self.stream.image(source, image, self.now)
            else:
                self.frames += self.stream.transform(tf(source, stamp, where(stamp)), False, self.now)
            assert self.accounted()

    def end(self):
        self.frames += self.stream.flush(self.now + 10 * SECOND)
        assert self.accounted() and self.stream.waiting == 0
        return self

    def accounted(self) -> bool:
        drops = sum(self.stream.frame_drops.values())
        return self.stream.seen == len(self.frames) + drops + self.stream.waiting

    @property
    def numbers(self) -> list[float]:
        return [(frame.assembled.stamp_ns - START) / MS / 100 for frame in self.frames]

    @property
    def reasons(self) -> list[str]:
        return [frame.reset_reason for frame in self.frames]


def assert_undisturbed(feed: Feed, numbers: list[int]) -> None:
    """Exactly these frames, with their own images and true poses, and no reset."""
    assert feed.numbers == numbers, feed.stream.frame_drops
    assert not any(feed.reasons)
    for frame in feed.frames:
        images = dict(zip(CAMERAS, frame.assembled.images))
        assert all(
            images[c] and images[c].stamp_ns == frame.assembled.stamp_ns + OFFSETS[c] * MS for c in CAMERAS
        )
        for camera, pose in zip(CAMERAS, frame.global_from_camera_ego):
            np.testing.assert_allclose(pose[0, 3], where(images[camera].stamp_ns), atol=1e-6)


def spread(events, noise) -> list[tuple[object, int]]:
    """``noise`` is [(position, source, stamp)]: put among the events, in order."""
    mixed = []
    for index, event in enumerate(events):
        mixed += [(source, stamp) for position, source, stamp in noise if position == index]
        mixed.append(event)
    return mixed


def every(nth: int, source, offset: int):
    """A second stream of ``source`` beside the true one, ``offset`` away, every n-th message."""
    return lambda events: [(i, source, t + offset) for i, (_, t) in enumerate(events) if i > 20 and i % nth == 0]


def once(source, offset: int, position: int = 40):
    return lambda events: [(position, source, events[position][1] + offset)]


NOISE = {
    "a foreign edge of two publishers, 2 s apart": lambda e: every(2, WHEEL, 0)(e) + every(2, WHEEL, -2 * SECOND)(e),
    "one late message of a foreign edge": lambda e: once(WHEEL, 0)(e) + once(WHEEL, -2 * SECOND, 60)(e),
    "wall clock and recorded clock on a foreign edge": lambda e: every(2, WHEEL, 0)(e) + every(3, WHEEL, YEARS)(e),
    "one late pose": once(EGO, -2 * SECOND),
    "one pose of another clock": once(EGO, YEARS),
    "a second odometry, 2 s behind": every(1, EGO, -2 * SECOND),
    "a second odometry on the wall clock": every(1, EGO, YEARS),
    "a second odometry far in the past": every(2, EGO, -YEARS),
    "one image 3 s late": once("back", -3 * SECOND),
    "one image of the anchor 3 s late": once("front", -3 * SECOND),
    "the anchor's images twice, 2 s late": every(3, "front", -2 * SECOND),
    "a camera's images on the wall clock too": every(3, "left", YEARS),
    "the anchor's images on the wall clock too": every(3, "front", YEARS),
    "three cameras late, poses not": lambda e: [n for c in CAMERAS[:3] for n in once(c, -2 * SECOND)(e)],
    "three cameras and the poses late": lambda e: [
        n for c in (*CAMERAS[:3], EGO) for n in once(c, -2 * SECOND)(e)
    ],
    "all cameras late, poses not": lambda e: [n for c in CAMERAS for n in once(c, -2 * SECOND)(e)],
}  # fmt: skip


@pytest.mark.parametrize("name", NOISE)
def test_messages_of_another_time_lose_no_frame_and_are_counted(name):
    events = drive(0, 60)
    noise = NOISE[name](events)
    feed = Feed()
    feed.give(spread(events, noise))
    feed.end()
    assert_undisturbed(feed, list(range(60)))
    refused = feed.stream.assembler.image_drops, feed.stream.transforms.drops
    foreign = [n for n in noise if abs(n[2] - events[n[0]][1]) > SECOND]
    assert sum(drops[cause] for drops in refused for cause in ("late", "early")) == len(foreign)


def test_what_is_late_is_said_by_name():
    feed = Feed(image_topics=["/rig/{camera}/image"])
    feed.give(drive(0, 30))
    feed.give([("back", START), ("back", START + 3 * SECOND)])
    assert feed.stream.faults.all["stamps back"].text == (
        "back (/rig/back/image): an image comes 2.9 s too late by its stamp and is not used"
    )


SMALL = st.integers(0, 900).map(lambda ms: -ms)
LARGE = st.one_of(
    st.integers(1_100, 9_000).map(lambda ms: -ms),
    st.integers(1_100, 9_000),
    st.sampled_from([-(10**11), 10**11]),
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_late_stale_foreign_and_repeated_streams_lose_no_frame(data):
    """Any edges, and either any cameras but one, or all cameras while the poses are true."""
    everybody = data.draw(st.booleans())
    liars = [WHEEL, *(CAMERAS if everybody else (EGO, *data.draw(st.permutations(CAMERAS))[:3]))]
    events = drive(0, 20)
    noise = []
    for position in sorted(data.draw(st.lists(st.integers(12, len(events) - 1), max_size=40))):
        if data.draw(st.booleans()):  # a message that came before comes again
            noise.append((position, *events[data.draw(st.integers(0, position - 1))]))
        else:
            offset = data.draw(LARGE) * MS
            noise.append((position, data.draw(st.sampled_from(liars)), events[position][1] + offset))
    feed = Feed()
    feed.give(spread(events, noise))
    feed.end()
    assert_undisturbed(feed, list(range(20)))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=3),
    st.integers(3, 12),
    st.sampled_from([100, 500]),
    st.sampled_from(["", "left", "right", "back"]),
    st.booleans(),
)
@example([0, 0], 4, 500, "", False)
def test_time_that_goes_back_resets_once_and_at_once(starts, count, interval, dead, with_clock):
    """Laps that begin again at or before their beginning; a camera may be dead for long; every frame is told of."""
    policy = {"missing_camera": "mask", "silent_after": 0.1, "image_deadline": 0.1} if dead else {}
    feed = Feed(**policy)
    last = 24 * 100 // interval
    expected: list[int] = []
    for lap, start in enumerate([8, *starts]):
        end = START + (last + count) * interval * MS
        first = start * 100 // interval
        if lap and end - (START + first * interval * MS) < 1.5 * SECOND:
            continue
        if lap and with_clock:
            feed.frames += feed.stream.clock_jumped(START + first * interval * MS, True, feed.now)
        events = [e for e in drive(first, last + count - first, interval) if e[0] != dead]
        before = len(feed.frames)
        # the first sweep, and the next pose
        seam = next(i for i, e in enumerate(events) if e[0] == CAMERAS[3 if dead != "back" else 2]) + 2
        feed.give(events[:seam])
        feed.now += 2 * SECOND  # no more comes: what is there must do
        feed.frames += feed.stream.poll(feed.now)
        assert len(feed.frames) > before or lap == 0
        feed.give(events[seam:])
        expected += [n * interval // 100 for n in range(first, last + count)]
    feed.end()
    resets = [i for i, reason in enumerate(feed.reasons) if reason]
    assert all("time went back by" in feed.reasons[i] for i in resets)
    laps = [0, *(i for i in range(1, len(expected)) if expected[i] < expected[i - 1])]
    assert len(resets) == len(laps) - 1
    # at a seam, frames that still waited for nearer images of their own time are given up
    missing = len(expected) - len(feed.frames)
    assert missing == feed.stream.frame_drops.get("time_jump", 0) <= 2 * len(resets)
    assert set(feed.stream.frame_drops) <= {"time_jump"}
    begins = [feed.numbers[i] for i in resets]
    assert begins == [expected[i] for i in laps[1:]]


def test_one_camera_that_goes_back_for_good_goes_alone():
    """Its clock was 5 s ahead and was set right: it is used again within a second, and nothing else is disturbed."""
    feed = Feed(missing_camera="mask", image_deadline=0.2)
    for source, stamp in drive(0, 60):
        ahead = 5 * SECOND if source == "left" and stamp < START + 3 * SECOND else 0
        feed.give([(source, stamp + ahead)], step=11 * MS)
    feed.end()
    assert feed.numbers == list(range(60)) and not any(feed.reasons)
    seen = [frame.assembled.images[0] is not None for frame in feed.frames]
    assert not any(seen[:30]) and all(seen[42:])


def test_poses_that_were_ahead_and_are_set_right_are_used_again():
    feed = Feed(transform_deadline=0.3)
    for source, stamp in drive(0, 60):
        ahead = 3600 * SECOND if source == EGO and stamp < START + 3 * SECOND else 0
        feed.give([(source, stamp + ahead)])
    feed.end()
    assert feed.numbers[-28:] == list(range(32, 60)) and not any(feed.reasons)


def test_a_rig_that_pauses_goes_on_at_once():
    feed = Feed()
    feed.give(drive(0, 10))
    feed.give(drive(700, 10))
    feed.end()
    assert feed.numbers == [*range(10), *range(700, 710)] and not any(feed.reasons)


@pytest.mark.parametrize("lag", [0, 3, 10, 20])
def test_short_laps_with_poses_that_lag_behind_the_images_lose_no_frame(lag):
    """A bag of 1.5 s in a loop to a machine that is behind: poses, of which there are more, are taken later."""
    feed = Feed(frame_queue=20)
    images = [e for e in drive(0, 4, 500) if e[0] != EGO] * 8
    poses = [(EGO, START + (500 * i + ms) * MS) for i in range(4) for ms in (-20, 0, 20, 40)] * 8
    for index in range(len(poses) + lag):
        feed.give(poses[index - lag : index - lag + 1] if index >= lag else [])
        feed.give(images[:1])
        del images[:1]
    feed.give(images)
    feed.end()
    lost = feed.stream.frame_drops
    assert set(lost) <= {"time_jump"} and lost.get("time_jump", 0) <= 2 * 7
    assert [bool(reason) for reason in feed.reasons].count(True) == 7
    assert all(number == 0 for number, reason in zip(feed.numbers, feed.reasons) if reason)


def test_cameras_alone_decide_where_no_pose_moves():
    feed = Feed(fixed_frame="base_link")
    laps = [e for e in drive(0, 20) if e[0] != EGO]
    for _ in range(3):
        feed.give(laps)
    feed.end()
    assert [bool(reason) for reason in feed.reasons].count(True) == 2
    assert len(feed.frames) + feed.stream.frame_drops.get("time_jump", 0) == 60


def test_images_of_the_new_time_do_not_take_the_poses_of_the_old_one():
    """The images go back first. The poses that are there for their stamps are of the lap before."""
    feed = Feed()
    feed.give(drive(0, 40))
    back = drive(10, 3)
    images, poses = [e for e in back if e[0] != EGO], [e for e in back if e[0] == EGO]
    before = len(feed.frames)
    feed.give(images)
    assert len(feed.frames) == before and feed.stream.waiting == 3
    feed.give(poses[:1])
    assert len(feed.frames) == before  # the new time's poses so far reach back, but not far enough
    feed.give(poses[1:])
    feed.end()
    assert feed.numbers[before:][-3:] == [10, 11, 12] and sum(map(bool, feed.reasons)) == 1


def test_the_clock_needs_one_message_to_bear_it_out():
    feed = Feed()
    feed.give(drive(0, 40))
    feed.frames += feed.stream.clock_jumped(START, True, feed.now)
    feed.give([("back", START + 3_900 * MS + 25 * MS + 100 * MS)])  # still of the old time
    assert not any(feed.reasons)
    feed.give([("left", START - 8 * MS)])  # now it is clear
    feed.give(e for e in drive(0, 3) if e[0] != "left" or e[1] > START)
    feed.end()
    assert feed.numbers[-3:] == [0, 1, 2] and sum(map(bool, feed.reasons)) == 1


def test_a_clock_that_is_published_twice_decides_nothing():
    feed = Feed()
    events = drive(0, 40)
    for index, event in enumerate(events):
        feed.frames += feed.stream.clock_jumped(START - 100 * SECOND, True, feed.now)
        feed.give([event])
        feed.frames += feed.stream.clock_jumped(event[1], False, feed.now)
        assert index or feed.stream.timeline.held("front") == 0
    feed.end()
    assert_undisturbed(feed, list(range(40)))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*CAMERAS, EGO, WHEEL]),
            st.integers(-3, 60),
            st.sampled_from([1, 40, 900, 4_000]),
        ),
        max_size=150,
    ),
    st.sampled_from(["wait", "skip", "mask"]),
)
def test_every_frame_is_accounted_for_whatever_comes(events, missing):
    feed = Feed(missing_camera=missing, frame_queue=3, image_deadline=0.2, transform_deadline=0.3)
    for source, tick, wait in events:
        feed.give([(source, START + tick * 300 * MS if tick > 0 else 0)], step=wait * MS)
        assert feed.stream.waiting <= 9
        feed.frames += feed.stream.poll(feed.now)
    feed.end()
    for before, after in itertools.pairwise(feed.frames):
        assert after.assembled.stamp_ns > before.assembled.stamp_ns or after.reset_reason
