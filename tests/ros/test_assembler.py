# SPDX-License-Identifier: Apache-2.0
"""The frame assembler: which images make a frame, when, and what becomes of every image and frame."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevnext_core.errors import ConfigError
from bevnext_ros.streams.assembler import FrameAssembler
from bevnext_ros.streams.faults import Faults

MS = 1_000_000
CAMERAS = ("left", "front", "right", "back")
OFFSETS = {"left": -8, "front": 0, "right": 8, "back": 25}
"""Firing times relative to the front camera, ms, as on a nuScenes car."""


def make(**options) -> FrameAssembler:
    return FrameAssembler(CAMERAS, "front", **options)


class Feed:
    """Feeds images by stamp; arrival (steady) time runs with the stamps unless given."""

    def __init__(self, assembler: FrameAssembler) -> None:
        self.assembler = assembler
        self.frames: list = []

    def image(self, camera: str, stamp_ms: int, arrival_ms: int | None = None) -> None:
        now = (stamp_ms if arrival_ms is None else arrival_ms) * MS
        self.frames += self.assembler.add(camera, stamp_ms * MS, f"{camera}@{stamp_ms}", now)

    def sweep(self, start_ms: int, skip: tuple[str, ...] = (), delay: int = 0) -> None:
        for camera, offset in sorted(OFFSETS.items(), key=lambda item: item[1]):
            if camera not in skip:
                self.image(camera, start_ms + offset, start_ms + offset + delay)

    def poll(self, now_ms: int) -> None:
        self.frames += self.assembler.poll(now_ms * MS)

    def payloads(self) -> list[list[str | None]]:
        return [[None if i is None else i.payload for i in frame.images] for frame in self.frames]


def accounted(assembler: FrameAssembler) -> bool:
    return assembler.seen == assembler.emitted + assembler.frame_drops.total + assembler.waiting


def test_nearest_image_before_or_after_is_taken_and_the_anchor_gives_the_stamp():
    feed = Feed(make(max_spread=0.06))
    for start in (1000, 1100, 1200):
        feed.sweep(start)
    feed.poll(5000)
    assert feed.payloads() == [
        [f"left@{s - 8}", f"front@{s}", f"right@{s + 8}", f"back@{s + 25}"] for s in (1000, 1100, 1200)
    ]
    assert [frame.stamp_ns for frame in feed.frames] == [1000 * MS, 1100 * MS, 1200 * MS]
    assert feed.frames[0].newest_arrival_ns == 1025 * MS


def test_known_period_completes_a_frame_without_waiting_for_the_next_image():
    feed = Feed(make())
    for start in (1000, 1100, 1200, 1300):
        feed.sweep(start)
    # the left camera's next image (1392) is still to come, and no deadline has passed since
    assert feed.frames[-1].stamp_ns == 1300 * MS and feed.frames[-1].assembled_ns == 1325 * MS


def test_before_a_period_is_known_a_frame_waits_for_a_nearer_image_or_the_deadline():
    feed = Feed(make(deadline=0.2, max_spread=0.2))
    feed.sweep(1000)
    assert not feed.frames
    feed.image("left", 1003)  # nearer than 992, so it must be this one
    assert feed.payloads()[0][0] == "left@1003"
    feed = Feed(make(deadline=0.2))
    feed.sweep(1000)
    feed.poll(1199)
    assert not feed.frames
    feed.poll(1200)
    assert feed.payloads()[0][0] == "left@992"


def test_images_beyond_the_spread_do_not_count():
    feed = Feed(make(max_spread=0.02, missing="mask", deadline=0.1))
    feed.sweep(1000)
    feed.poll(1200)
    assert feed.payloads() == [["left@992", "front@1000", "right@1008", None]]


@pytest.mark.parametrize("missing", ["skip", "mask", "wait"])
def test_a_camera_that_stops_and_comes_back(missing):
    feed = Feed(make(missing=missing, deadline=0.15, silent_after=0.5, queue_size=20))
    for i in range(5):
        feed.sweep(1000 + 100 * i)
    for i in range(5, 15):
        feed.sweep(1000 + 100 * i, skip=("right",))
    for i in range(15, 20):
        feed.sweep(1000 + 100 * i)
    feed.poll(10_000)
    stamps = [frame.stamp_ns // MS for frame in feed.frames]
    stopped = [1500 + 100 * i for i in range(10)]
    whole = [s for s in range(1000, 3000, 100) if s not in stopped]
    if missing == "mask":
        assert stamps == list(range(1000, 3000, 100))
        assert [f.stamp_ns // MS for f in feed.frames if f.images[2] is None] == stopped
        # once the camera is silent, frames no longer wait for it
        late = {f.stamp_ns // MS: (f.assembled_ns - f.stamp_ns) // MS for f in feed.frames}
        assert late[1500] >= 150 and late[2300] <= 30
    else:
        assert stamps == whole
        assert feed.assembler.frame_drops.snapshot() == {"missing_camera": 10}
    assert accounted(feed.assembler)


@pytest.mark.parametrize("missing", ["skip", "mask"])
def test_a_pause_of_the_whole_rig_is_no_silence(missing):
    """After it, the first frame waits for its images as any other."""
    feed = Feed(make(missing=missing, silent_after=0.5))
    for start in (1000, 1100, 1200, 9000, 9100):
        feed.sweep(start)
    feed.poll(20_000)
    assert [frame.stamp_ns // MS for frame in feed.frames] == [1000, 1100, 1200, 9000, 9100]
    assert all(None not in frame.images for frame in feed.frames)


def test_images_that_waited_for_their_turn_do_not_run_into_the_deadline():
    assembler = make(deadline=0.1)
    frames = []
    for camera, offset in OFFSETS.items():  # taken 5 s after they arrived, one after the other
        frames += assembler.add(camera, (1000 + offset) * MS, camera, 6000 * MS + offset, 1000 * MS + offset)
        frames += assembler.poll(6000 * MS + offset)
    frames += assembler.poll(6101 * MS)
    assert len(frames) == 1 and frames[0].newest_arrival_ns == 1000 * MS + 25


def test_wait_holds_a_frame_for_a_late_camera_beyond_the_deadline():
    feed = Feed(make(missing="wait", deadline=0.05))
    feed.sweep(1000, skip=("right",))
    feed.poll(9000)
    assert not feed.frames
    feed.image("right", 1008, 9001)
    assert feed.payloads() == [["left@992", "front@1000", "right@1008", "back@1025"]]


def test_wait_is_bounded_by_the_queue():
    feed = Feed(make(missing="wait", queue_size=3))
    for i in range(10):
        feed.sweep(1000 + 100 * i, skip=("right",))
    assert feed.assembler.waiting == 3
    assert feed.assembler.frame_drops.snapshot() == {"queue_full": 7}
    assert accounted(feed.assembler)


def test_zero_stamps_duplicates_and_late_images_are_counted():
    feed = Feed(make())
    feed.image("front", 0, 900)
    feed.image("left", 0, 900)
    for start in (1000, 1100, 1200, 1300):
        feed.sweep(start)
    feed.image("front", 1300, 1400)
    feed.image("front", 1250, 1400)
    feed.image("back", 900, 1400)
    assert feed.assembler.frame_drops.snapshot() == {"duplicate": 1, "late": 1, "zero_stamp": 1}
    assert feed.assembler.image_drops.snapshot() == {"duplicate": 1, "late": 2, "zero_stamp": 2}
    assert len(feed.frames) == 4 and accounted(feed.assembler)


def test_messages_out_of_order_within_the_deadline_make_the_same_frames():
    feed = Feed(make(deadline=0.3))
    order = [("front", 1000), ("back", 1025), ("front", 1100), ("left", 1092), ("back", 1125), ("left", 992)]
    order += [("right", 1108), ("right", 1008)]
    for camera, stamp in order:
        feed.image(camera, stamp, 1130)
    feed.poll(3000)
    assert feed.payloads() == [
        [f"left@{s - 8}", f"front@{s}", f"right@{s + 8}", f"back@{s + 25}"] for s in (1000, 1100)
    ]


def test_a_rig_whose_cameras_went_back_begins_anew_with_a_reason():
    """Which stamps mean that is for the timeline to say (test_timeline.py)."""
    feed = Feed(make())
    for lap in range(3):
        for camera in CAMERAS if lap else ():
            feed.assembler.forget(camera, "time went back by 2.0 s")
        for i in range(5):
            feed.sweep(10_000 + 500 * i)
        feed.poll(99_000)
    assert [frame.stamp_ns // MS for frame in feed.frames] == [10_000, 10_500, 11_000, 11_500, 12_000] * 3
    reasons = [frame.reset_reason for frame in feed.frames]
    assert [bool(reason) for reason in reasons] == ([False] * 5 + [True] + [False] * 4 + [True] + [False] * 4)
    assert accounted(feed.assembler)


def test_a_camera_that_went_back_alone_costs_only_its_own_images():
    feed = Feed(make(missing="skip"))
    for i in range(4):
        feed.sweep(1000 + 100 * i)
    feed.image("right", 3_600_000, 1390)
    feed.assembler.forget("right", "time went back by 3600.0 s")
    for i in range(4, 8):
        feed.sweep(1000 + 100 * i)
    assert [f.stamp_ns // MS for f in feed.frames] == [1000 + 100 * i for i in range(8)]
    assert not any(frame.reset_reason for frame in feed.frames)


def test_a_dropped_frame_names_the_cameras_that_it_lacked():
    faults = Faults()
    feed = Feed(make(faults=faults, topics={"right": "/right/image", "back": "/back/image"}))
    for start in (1000, 1100):
        feed.sweep(start, skip=("right", "back") if start == 1100 else ("back",))
    feed.poll(5000)
    assert faults.last().startswith(
        "a frame was dropped (missing_camera): right (/right/image) has no image near it, its newest is 0.092 s "
        "older; back (/back/image) has no image near it, it has given none"
    )


def test_flush_gives_what_is_complete_and_drops_the_rest():
    feed = Feed(make(missing="wait", deadline=1.0))
    feed.sweep(1000)
    feed.sweep(1080, skip=("right", "left"))
    assert not feed.frames
    frames = feed.assembler.flush(1100 * MS)
    assert [frame.stamp_ns // MS for frame in frames] == [1000]
    assert feed.assembler.frame_drops.snapshot() == {"missing_camera": 1}
    assert accounted(feed.assembler)


def test_images_are_not_kept_for_ever():
    feed = Feed(make(queue_size=5))
    for i in range(200):
        feed.sweep(1000 + 100 * i, skip=("front",))  # the anchor is dead: no frame ever
    assert sum(len(state.images) for state in feed.assembler._states) <= 15
    assert feed.assembler.image_drops["queue_full"] == 3 * 195
    assert feed.assembler.ages(21_000 * MS)["front"] is None


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match="'top' is not one of"):
        FrameAssembler(CAMERAS, "top")
    with pytest.raises(ConfigError, match="wait, skip or mask"):
        make(missing="drop")
    with pytest.raises(ConfigError, match="twice"):
        FrameAssembler(("a", "a"), "a")


EVENTS = st.lists(
    st.tuples(st.sampled_from(CAMERAS), st.integers(-2, 40), st.integers(0, 80)), min_size=1, max_size=120
)


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.sampled_from(["wait", "skip", "mask"]), st.integers(1, 5))
def test_every_frame_is_accounted_for_whatever_comes(events, missing, queue_size):
    """Any stamps in any order, time that goes back included: no crash, nothing unaccounted, bounded memory."""
    assembler = make(missing=missing, queue_size=queue_size, deadline=0.1)
    now, frames, received = 0, [], 0
    for camera, tick, wait in events:
        now += wait * MS
        received += 1
        frames += assembler.add(camera, max(tick, 0) * 97 * MS, camera, now)
        assert accounted(assembler)
        assert assembler.waiting <= queue_size
    frames += assembler.flush(now)
    assert assembler.waiting == 0 and accounted(assembler)
    held = {(c, image.stamp_ns) for c, s in zip(CAMERAS, assembler._states) for image in s.images}
    used = {id(image) for frame in frames for image in frame.images if image is not None}
    unused_held = sum(image.stamp_ns not in s.used for s in assembler._states for image in s.images)
    assert received == len(used) + unused_held + assembler.image_drops.total
    assert len(held) <= queue_size * len(CAMERAS)
    for frame in frames:
        assert frame.images[1] is not None and frame.images[1].stamp_ns == frame.stamp_ns
        assert missing == "mask" or all(image is not None for image in frame.images)
        for image in frame.images:
            assert image is None or abs(image.stamp_ns - frame.stamp_ns) <= 60 * MS
