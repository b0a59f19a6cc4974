# SPDX-License-Identifier: Apache-2.0
"""The table of parameters, its file, and the rig it describes."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from bevnext_core.classes import CAMERAS
from bevnext_core.errors import ConfigError
from bevnext_ros.node.parameters import (
    PARAMETERS,
    Options,
    dump_options,
    load_options,
    make_options,
    rig_cameras,
)
from bevnext_tools.resources import shared_file
from tests.paths import ROOT


def test_the_shipped_file_is_the_table():
    path = shared_file("config/detector.yaml")
    assert path.read_text() == dump_options(make_options({}, "defaults"))
    assert load_options(path) == make_options({}, "defaults")
    assert [p.name for p in PARAMETERS] == [f.name for f in dataclasses.fields(Options)]


@pytest.mark.parametrize(
    "values, text",
    [
        ({"overlod": "newest"}, r"here: unknown parameter overlod; did you mean 'overload'\?$"),
        ({"score_treshold": 0.4}, r"unknown parameter score_treshold; did you mean 'score_threshold'\?$"),
        ({"fps": 10}, "unknown parameter fps; known are autostart, checkpoint, model"),
        (
            {"image.topics": 1, "max_spreed": 1},
            "unknown parameter image.topics, max_spreed; did you mean 'image_topics', 'max_spread'",
        ),
        ({"overload": "oldest"}, "'overload' must be one of newest, queue, got 'oldest'"),
        ({"max_spread": 2.0}, "'max_spread' must be between 0 and 1, got 2.0"),
        ({"max_spread": "wide"}, "'max_spread' must be a number, got 'wide'"),
        ({"frame_queue": True}, "'frame_queue' must be an integer, got True"),
        ({"frame_queue": 5.0}, "'frame_queue' must be an integer, got 5.0"),
        ({"compile": 1}, "'compile' must be true or false, got 1"),
        ({"cameras": []}, r"'cameras' must be a list that is not empty, got \[\]"),
        ({"cameras": "front"}, "'cameras' must be a list, got 'front'"),
        ({"cameras": ["a", 1]}, r"here: 'cameras\[1\]' must be a string, got 1$"),
        ({"transports": ["raw", "zip"]}, r"'transports\[1\]' must be one of compressed, raw, got 'zip'"),
        ({"slow_frame": float("nan")}, "'slow_frame' must be between 0 and 60, got nan"),
        ({"device": 0}, "'device' must be a string, got 0"),
        (
            {"slow_frames": 0, "overload": "last"},
            "'overload' must be one of .*; 'slow_frames' must be between 1 and",
        ),
    ],
)
def test_wrong_values_name_the_parameter_and_what_is_allowed(values, text):
    with pytest.raises(ConfigError, match=text):
        make_options(values, "here")


@pytest.mark.parametrize(
    ("values", "instead"),
    [
        ({"crf_canvas": "own"}, "remove it: a past frame always has its own"),
        ({"camera_params": "key"}, "bevnext evaluate --mode window"),
        ({"cuda_graphs": False}, "use compile: true, compile_mode: reduce-overhead"),
    ],
)
def test_removed_parameters_are_refused_and_say_what_is_in_their_place(tmp_path, values, instead):
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
    with pytest.raises(
        ConfigError, match=rf"f\.yaml: the parameter '{next(iter(values))}' is gone; .*{instead}"
    ):
        load_options(path)


def test_default_rig_has_the_models_names():
    rig = rig_cameras(make_options({}, ""), CAMERAS)
    assert [camera.name for camera in rig] == [name.lower() for name in CAMERAS]
    assert rig[1].image_topic == "cam_front/image_raw/compressed" and not rig[1].raw


def test_the_default_topics_are_those_of_the_transport():
    rig = rig_cameras(make_options({"transports": ["raw", "compressed"]}, ""), ("A", "B"))
    assert [camera.image_topic for camera in rig] == ["a/image_raw", "b/image_raw/compressed"]
    named = rig_cameras(make_options({"image_topics": ["/x", ""]}, ""), ("A", "B"))
    assert [camera.image_topic for camera in named] == ["/x", "b/image_raw/compressed"]


def test_cameras_can_differ_in_everything():
    options = make_options(
        {
            "cameras": ["left", "front"],
            "image_topics": ["/l/image", "/f/image/compressed"],
            "camera_info_topics": ["/rig/{camera}/info"],
            "transports": ["raw", "compressed"],
            "camera_frames": ["left_eye", ""],
        },
        "",
    )
    left, front = rig_cameras(options, ("A", "B"))
    assert (left.image_topic, left.info_topic, left.raw, left.frame) == (
        "/l/image",
        "/rig/left/info",
        True,
        "left_eye",
    )
    assert (front.image_topic, front.raw, front.frame) == ("/f/image/compressed", False, "")


@pytest.mark.parametrize(
    "values, text",
    [
        ({"cameras": ["a"]}, r"the model takes 2 cameras \(A, B\), the parameter 'cameras' names 1 \(a\)"),
        ({"cameras": ["a", "a"]}, "twice"),
        ({"transports": ["raw"] * 3}, "'transports' has 3 entries for 2 cameras"),
        ({"image_topics": ["image"]}, "'image_topics' gives two cameras one topic"),
        (
            {"transports": ["raw"], "image_topics": ["/rig/{camera}/compressed"]},
            r"'image_topics' gives /rig/a/compressed to a, whose transport is raw: .* or set 'transports'",
        ),
    ],
)
def test_rigs_that_do_not_fit_the_model(values, text):
    with pytest.raises(ConfigError, match=text):
        rig_cameras(make_options(values, ""), ("A", "B"))


def test_the_page_has_every_parameter_with_its_default_and_range():
    text = (ROOT / "docs" / "ros.md").read_text()
    for parameter in PARAMETERS:
        row = next((line for line in text.splitlines() if line.startswith(f"| `{parameter.name}` |")), "")
        assert row, parameter.name
        default, limits = (cell.strip(" `") for cell in row.split(" | ")[1:3])
        assert str(yaml.safe_load(default)) == str(parameter.default) or float(default) == parameter.default
        assert limits == (
            "" if parameter.limits is None else f"{parameter.limits[0]:g} to {parameter.limits[1]:g}"
        )
        assert row.split(" | ")[3] == (
            "live" if parameter.live else "read-only" if parameter.read_only else ""
        )
