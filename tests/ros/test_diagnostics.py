# SPDX-License-Identifier: Apache-2.0
"""What a supervisor can act on: silence, bad cameras, the rate of loss, idleness; faults with age, until healed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bevnext_core.detections import Detections, StepInfo
from bevnext_ros.bags.types import make_typestore
from bevnext_ros.messages.factory import RosbagsFactory
from bevnext_ros.node.diagnostics import ERROR, OK, WARN, Diagnostics, Report, make_diagnostics
from bevnext_ros.node.rate import RateLimit
from bevnext_ros.node.worker import STAGES
from bevnext_ros.streams.faults import Faults

MS = 1_000_000
NOTHING = Detections(np.zeros((0, 9), np.float32), np.zeros(0), np.zeros(0, int), ("car",), 1, np.eye(4))


class Life:
    """A node's diagnostics, once a second of a clock that only this moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.diagnostics = Diagnostics(lambda: self.now)

    def second(self, published: int = 0, **report):
        self.now += 1.0
        for _ in range(published):
            self.diagnostics.note_result(NOTHING, dict.fromkeys(STAGES, 0.01), 1.0)
        given = {"ages": {"front": 0.1, "back": 0.1}, "anchor": "front", **report}
        statuses = self.diagnostics.statuses(Report(state="active", active=True, **given))
        return {status.name: status for status in statuses}


@pytest.mark.parametrize(
    "report, words",
    [
        (lambda i: {"drops": {"late": 3, "transform_not_yet": 5 * i}, "note": "the newest 'a' -> 'b' (1 s ago)"},
         "transform_not_yet 20 (the newest 'a' -> 'b' (1 s ago))"),
        (lambda i: {"in_flight": 2}, "2 frames are under way and none comes out"),
        (lambda i: {"ages": {"front": None, "back": 0.1}}, "none of the anchor camera front"),
        (lambda i: {"drops": {"overload": i, "no_camera_info": 2 * i}}, "no_camera_info 8"),
    ],
)  # fmt: skip
def test_no_output_although_images_come_is_an_error_with_the_cause(report, words):
    life = Life()
    life.second(published=10, drops=report(0).get("drops", {}))
    levels = [life.second(no_output_after=4.0, **report(i))["node"].level for i in (1, 2, 3)]
    assert levels == [OK] * 3
    status = life.second(no_output_after=4.0, **report(4))["node"]
    assert status.level == ERROR and status.message == f"no output for 4 s although images come: {words}"
    assert life.second(published=1)["node"].level == OK


def test_a_rig_far_from_that_of_training_warns_until_another_comes():
    life = Life()
    doubted = replace(NOTHING, info=StepInfo(doubt="trained on paper"))
    life.diagnostics.note_result(doubted, dict.fromkeys(STAGES, 0.01), 1.0)
    status = life.second()["node"]
    assert status.level == WARN and status.message == "1.0 frames/s; trained on paper"
    assert life.second(published=1)["node"].level == OK


@pytest.mark.parametrize("quiet", [{"ages": {"front": 9.0, "back": None}}, {"wanted": False}])
def test_without_images_or_subscribers_no_output_is_no_error(quiet):
    life = Life()
    for _ in range(20):
        status = life.second(**quiet)["node"]
    assert status.level == OK
    assert ("nobody subscribes" in status.message) == ("wanted" in quiet)
    assert life.second(no_output_after=2.0)["node"].level == OK  # counted from when it could give some


def test_the_warning_is_about_the_rate_of_loss():
    life, drops, published = Life(), {"overload": 0}, 0
    levels = []
    for second in range(60):
        lost = 5 if second in (20, 21, 22) else second % 3 == 0
        drops, published = {"overload": drops["overload"] + lost}, published + 10 - lost
        life.now += 1.0
        report = Report("active", active=True, drops=drops, published=published)
        levels.append(life.diagnostics.statuses(report)[3])
    assert {status.level for status in levels[5:20]} == {OK} and levels[22].level == WARN
    assert "frames lost in" in levels[22].message and "overload" in levels[22].message
    assert levels[-1].level == OK


@pytest.mark.parametrize("cause", ["no_subscriber", "deactivated", "max_rate"])
def test_what_is_skipped_on_purpose_is_no_loss(cause):
    life = Life()
    for second in range(5):
        status = life.second(published=1, drops={cause: 10 * second})["drops"]
    assert (status.level, status.message, status.values[cause]) == (OK, "none", "40")


def test_a_bad_camera_is_not_ok():
    life = Life()
    bad = {"back": "back: the image is damaged"}
    status = life.second(bad_cameras=bad)["cameras"]
    assert (status.level, status.message) == (WARN, "back: the image is damaged")
    assert life.second(bad_cameras={"front": "front: K is singular"})["cameras"].level == ERROR
    assert life.second()["cameras"].level == OK


def test_a_period_without_frames_has_no_latency():
    life = Life()
    assert life.second()["latency"].message == "no frame in this period"
    assert life.second(published=1)["latency"].message == "10.0 ms"


def test_hardware_is_named():
    statuses = list(Life().second().values())
    message = make_diagnostics(RosbagsFactory(make_typestore()), statuses, "/detector", 5, "robot cuda:0")
    assert [status.hardware_id for status in message.status] == ["robot cuda:0"] * 5


def test_faults_have_an_age_and_go_when_healed():
    now = [10.0]
    faults = Faults(clock=lambda: now[0])
    faults.note("image back", "back: damaged")
    faults.note("frame late", "a frame was dropped")
    now[0] = 13.0
    assert faults.last() == "a frame was dropped (3 s ago)"
    faults.heal("frame")
    assert faults.last() == "back: damaged (3 s ago)" and list(faults.present) == ["image back"]
    faults.heal("image back")
    assert faults.last().endswith("(3 s ago, healed)")
    now[0] = 30.0
    assert faults.last() == "" and faults.all["image back"].count == 1


@pytest.mark.parametrize("rate, taken", [(0.0, 100), (10.0, 100), (5.0, 50), (4.0, 40), (2.5, 25), (20.0, 100)])
def test_max_rate_is_kept_evenly_whatever_the_jitter(rate, taken):
    jitter = np.random.default_rng(1).integers(-4, 5, 100)
    limit = RateLimit()
    stamps = [int(i * 100 + jitter[i]) * MS for i in range(100)]
    chosen = [stamp for stamp in stamps if limit.takes(stamp, rate)]
    assert abs(len(chosen) - taken) <= 2
    assert limit.takes(-1_000_000 * MS, rate)  # time went back
