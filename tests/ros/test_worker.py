# SPDX-License-Identifier: Apache-2.0
"""The decoding and detecting threads, without ROS: overload, order, faults, accounting, stopping."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from bevnext_core.calibration import Calibration, Rectifier
from bevnext_core.errors import FrameError
from bevnext_ros.node.worker import STAGES, DetectionWorker
from bevnext_ros.streams.assembler import AssembledFrame, StampedImage
from bevnext_ros.streams.faults import Faults
from bevnext_ros.streams.frame_builder import PosedFrame
from tests.ros.stand_in import StandIn

NAMES = ("A", "B")
K = np.array([[10.0, 0, 4], [0, 10.0, 3], [0, 0, 1]])


def posed(stamp: int, reason: str = "", payload: object = "good") -> PosedFrame:
    now = time.monotonic_ns()
    images = tuple(StampedImage(stamp, item, now) for item in ("good", payload))
    rectifier = tuple(Rectifier(name.lower(), Calibration(K, size=(8, 6)), "rectify") for name in NAMES)
    eye = np.tile(np.eye(4), (2, 1, 1))
    frame = AssembledFrame(stamp, images, 0, now)
    return PosedFrame(frame, rectifier, eye, eye, np.eye(4), np.eye(4), now, reason)


def decode(payload, camera):
    if payload == "bug":
        raise ZeroDivisionError("a bug")
    if payload == "bad":
        raise FrameError(f"{camera}: bad image")
    return np.zeros((6, 8, 3), np.uint8)


class Bench:
    def __init__(self, detector: StandIn, **options) -> None:
        self.results: list = []
        self.faults = Faults()
        self.detector = detector
        self.worker = DetectionWorker(
            detector, NAMES, decode, self.results.append, self.faults, **options
        )

    def rest(self) -> None:
        end = time.monotonic() + 10
        while self.worker.in_flight:
            assert time.monotonic() < end
            time.sleep(0.005)

    def accounted(self) -> bool:
        return self.worker.accepted == len(self.results) + self.worker.drops.total

    @property
    def stamps(self) -> list[int]:
        return [result.detections.stamp_ns for result in self.results]


@pytest.fixture
def bench():
    made: list[Bench] = []

    def make(wait: float = 0.0, **options) -> Bench:
        made.append(Bench(StandIn(wait), **options))
        return made[-1]

    yield make
    for item in made:
        item.worker.stop(5)


def test_queue_keeps_every_frame_in_order(bench):
    b = bench(0.01, overload="queue", queue_size=20)
    for stamp in range(1, 11):
        b.worker.submit(posed(stamp))
    b.rest()
    assert b.stamps == list(range(1, 11)) and b.worker.drops.total == 0


def test_a_full_queue_drops_the_oldest(bench):
    b = bench(0.2, overload="queue", queue_size=2)
    for stamp in range(1, 11):
        b.worker.submit(posed(stamp))
    b.rest()
    assert b.stamps[-2:] == [9, 10] and b.worker.drops["overload"] == 10 - len(b.results)
    assert b.accounted()


def test_newest_wins(bench):
    b = bench(overload="newest")
    step, running, go_on = b.detector.step, threading.Event(), threading.Event()

    def held(frame):
        running.set()
        assert go_on.wait(20)
        return step(frame)

    b.detector.step = held
    b.worker.submit(posed(1))
    assert running.wait(20)
    for stamp in range(2, 40):
        b.worker.submit(posed(stamp))
    go_on.set()
    b.rest()
    # beside the inference of the first, one may have been decoded already: nothing was known of the time that is left
    assert b.stamps[0] == 1 and b.stamps[-1] == 39 and 2 <= len(b.results) <= 3
    assert b.stamps == sorted(b.stamps) and b.accounted()


def test_decoding_begins_when_the_detector_will_soon_be_free(bench):
    worker = bench(overload="newest").worker
    with worker._condition:
        worker._waiting.append((1, posed(1)))
        assert worker._decode_delay() == 0.0
        worker._inferring, worker._busy_since_ns = True, time.monotonic_ns()
        worker._inference_ns, worker._decode_ns = 3600e9, 600e9
        assert 2000 < worker._decode_delay() <= 3600 - 1.5 * 600
        worker._newest = False  # every frame is wanted: nothing to wait for
        assert worker._decode_delay() == 0.0
        worker._waiting.clear()
        worker._inferring = False


def test_decoding_runs_beside_inference(bench):
    running = threading.Event()
    overlaps: list[bool] = []

    class Watch(StandIn):
        def step(self, frame):
            running.set()
            result = super().step(frame)
            running.clear()
            return result

    def slow(payload, camera):
        overlaps.append(running.is_set())
        time.sleep(0.02)
        return np.zeros((6, 8, 3), np.uint8)

    worker = DetectionWorker(Watch(0.1), NAMES, slow, lambda r: None, Faults(), overload="queue", queue_size=10)
    for stamp in range(1, 6):
        worker.submit(posed(stamp))
    while worker.in_flight:
        time.sleep(0.01)
    worker.stop(5)
    assert sum(overlaps) >= 6  # all but the first frame's two images


def test_bad_images_stop_the_frame_or_mask_the_camera(bench):
    b = bench(overload="queue")
    b.worker.submit(posed(1, payload="bad"))
    b.worker.submit(posed(2))
    b.rest()
    assert b.worker.drops.snapshot().get("bad_image") == 1 and b.faults.all["image b"].text == "b: bad image"
    assert b.faults.present == {}  # the next one was good
    masking = bench(mask_faulty=True)
    masking.worker.submit(posed(1, payload="bad"))
    masking.rest()
    assert masking.detector.frames[0].valid.tolist() == [True, False]
    assert masking.worker.masked_images["bad_image"] == 1


@pytest.mark.parametrize(
    "error, cause", [(FrameError("no"), "bad_frame"), (MemoryError("no"), "inference_error")]
)
def test_a_failing_detector_costs_one_frame(bench, error, cause):
    b = bench(overload="queue")
    step, failed = b.detector.step, []

    def failing(frame):
        if frame.stamp_ns == 2:
            failed.append(True)
            raise error
        return step(frame)

    b.detector.step = failing
    for stamp in (1, 2, 3):
        b.worker.submit(posed(stamp))
    b.rest()
    assert b.stamps == [1, 3] and b.worker.drops.snapshot() == {cause: 1} and failed
    assert bool(b.detector.resets) == (cause == "inference_error")


def test_faults_of_decoder_and_publisher_do_not_kill_the_threads(bench):
    b = bench(overload="queue")
    b.worker.submit(posed(1, payload="bug"))
    b.worker.submit(posed(2))
    b.rest()
    assert b.worker.drops.snapshot() == {"decode_error": 1} and b.stamps == [2]

    def fail(result):
        raise RuntimeError("publisher is gone")

    worker = DetectionWorker(StandIn(), NAMES, decode, fail, b.faults)
    worker.submit(posed(3))
    while worker.in_flight:
        time.sleep(0.005)
    assert worker.drops.snapshot() == {"publish_error": 1} and worker.stop(5)


def test_a_reset_reason_outlives_frames_that_are_dropped(bench):
    b = bench(0.1, overload="newest")
    b.worker.submit(posed(1))
    time.sleep(0.03)
    b.worker.submit(posed(2, "time went back by 9.0 s"))
    for stamp in (3, 4):
        b.worker.submit(posed(stamp))
    b.rest()
    assert b.detector.resets == ["time went back by 9.0 s"] and 4 in b.stamps
    b.worker.submit(posed(5, "the calibration of a changed", payload="bad"))
    b.rest()
    b.worker.submit(posed(6))
    b.rest()
    assert b.detector.resets[-1] == "the calibration of a changed"
    assert b.results[-1].detections.info.reset_reason == "the calibration of a changed"


def test_a_frame_that_is_skipped_on_purpose_hands_its_reset_reason_on(bench):
    b = bench(overload="queue")
    b.worker.submit(posed(1))
    b.worker.skip(posed(2, "time went back by 9.0 s"), "no_subscriber")
    b.worker.skip(posed(3, "the calibration of a changed"), "no_subscriber")
    b.worker.submit(posed(4))
    b.rest()
    assert b.worker.drops.snapshot() == {"no_subscriber": 2} and b.accounted()
    assert b.results[-1].detections.info.reset_reason == "time went back by 9.0 s; the calibration of a changed"


def test_stages_are_measured(bench):
    b = bench(0.05)
    b.worker.submit(posed(1))
    b.rest()
    seconds = b.results[0].seconds
    assert tuple(seconds) == STAGES[:6] and seconds["inference"] >= 0.05
    assert all(value >= 0 for value in seconds.values())


def test_stop_waits_for_the_inference_and_counts_the_rest(bench):
    b = bench(0.3, overload="queue")
    for stamp in (1, 2, 3, 4):
        b.worker.submit(posed(stamp))
    time.sleep(0.1)
    assert b.worker.stop(5) and not b.worker.is_alive
    assert not b.results and b.worker.drops.snapshot() == {"deactivated": 4}
    b.worker.submit(posed(5))
    assert b.worker.drops["deactivated"] == 5
    slow = bench(3.0)
    slow.worker.submit(posed(1))
    time.sleep(0.1)
    assert not slow.worker.stop(0.1) and slow.worker.is_alive
