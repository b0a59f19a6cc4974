# SPDX-License-Identifier: Apache-2.0
"""The launch file is executed: every argument reaches the node, the bag starts when it is active.

The tests run on a stand-in of launch's API, and on launch itself where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from bevnext_core.errors import ConfigError
from bevnext_ros.bags.play import add_arguments
from bevnext_ros.node.parameters import PARAMETERS, make_options, rig_cameras
from bevnext_tools.threads import WAITING
from tests.paths import ROOT
from tests.ros import harness, launch_stand_in
from tests.ros.recorded import drive, write_bag

FILE = ROOT / "launch" / "detector.launch.py"
REAL = importlib.util.find_spec("launch_ros") is not None  # a folder named launch is here, too
PROFILES = {"FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"}
LAYOUT = ROOT / "config" / "rviz" / "detector.rviz"


@dataclass
class Launched:
    """What a launch did: the description's arguments, processes by their executable, variables that are set."""

    arguments: dict[str, Any]
    processes: dict[str, dict[str, Any]]
    environment: dict[str, str]
    activate: Callable[[], list[list[Any]]]

    @property
    def node(self) -> dict[str, Any]:
        return self.processes["detector_node"]

    @property
    def parameters(self) -> dict[str, Any]:
        return {name: entry.value for name, entry in self.node["parameters"][1].items()}


@pytest.fixture(params=["stand-in", *(["launch"] if REAL else [])])
def system(request, monkeypatch):
    """``system(installed)``: the launch file as a module, whose actions remember their keywords."""

    def load(installed=frozenset({"ros2bag"})):
        for name, module in launch_stand_in.modules(ROOT, set(installed)).items():
            if request.param == "stand-in" or name.startswith("ament"):
                monkeypatch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("detector_launch", FILE)
        file = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(file)
        for name in ("ExecuteProcess", "LifecycleNode", "Node"):
            monkeypatch.setattr(file, name, remembering(getattr(file, name)))
        return file

    for name in (*PROFILES, *WAITING, "ROS_DISTRO"):
        monkeypatch.setenv(name, "")  # what the launch sets is undone afterwards
        monkeypatch.delenv(name)
    return load


def remembering(kind):
    class Remembering(kind):
        def __init__(self, **keywords):
            super().__init__(**keywords)
            self.keywords = keywords

    return Remembering


@pytest.fixture
def launch(system):
    """``launch(**arguments) -> Launched``: entities are visited as launch does, but no process is executed."""

    def run(installed=frozenset({"ros2bag"}), **given: str) -> Launched:
        file = system(installed)
        context = sys.modules["launch"].LaunchContext()
        context.launch_configurations.update(given)
        declared, actions = {}, []
        for entity in file.generate_launch_description().entities:
            if hasattr(entity, "choices"):
                declared[entity.name] = entity
            actions += entity.visit(context) or []
        processes = {a.keywords["executable"]: a.keywords for a in actions if hasattr(a, "keywords")}
        node = next(
            a for a in actions if hasattr(a, "keywords") and a.keywords["executable"] == "detector_node"
        )
        before = dict(os.environ)
        for action in actions:
            if not hasattr(action, "keywords"):
                action.visit(context)

        def activate(state="active"):
            message = SimpleNamespace(
                timestamp=0,
                goal_state=SimpleNamespace(label=state),
                start_state=SimpleNamespace(label="inactive"),
                transition=SimpleNamespace(label="activate"),
            )
            event = importlib.import_module("launch_ros.events.lifecycle").StateTransition(
                action=node, msg=message
            )
            return [entity.keywords["cmd"] for entity in emit(context, event)]

        environment = {name: value for name, value in os.environ.items() if before.get(name) != value}
        return Launched(declared, processes, environment, activate)

    return run


def emit(context, event):
    """The entities that launch starts upon an event."""
    if hasattr(context, "emit"):
        return context.emit(event)
    found = []
    for handler in list(context._event_handlers):
        if handler.matches(event):
            found += handler.handle(event, context) or []
    return found


def test_by_default_the_node_starts_with_its_file_and_the_profiles(launch):
    launched = launch()
    node = launched.node
    assert (node["package"], node["name"], node["namespace"]) == ("bevnext_ros", "detector", "")
    assert node["parameters"][0] == str(ROOT / "config" / "detector.yaml")
    assert launched.parameters == {"use_sim_time": False}
    assert node["respawn"] is False and node["ros_arguments"] == ["--log-level", "info"]
    assert set(launched.environment) == PROFILES
    assert all(os.path.isfile(path) for path in launched.environment.values())
    assert set(launched.processes) == {"detector_node"} and launched.activate() == []


@pytest.mark.parametrize(
    "argument, value, parameter, expected",
    [
        ("checkpoint", "/a/net.safetensors", "checkpoint", "/a/net.safetensors"),
        ("checkpoint", "~/net.safetensors", "checkpoint", os.path.expanduser("~/net.safetensors")),
        ("model", "/a/model.yaml", "model", "/a/model.yaml"),
        ("device", "cuda:1", "device", "cuda:1"),
        ("threads", "3", "threads", 3),
        ("cameras", "a, b,c", "cameras", ["a", "b", "c"]),
        ("image_topics", "{camera}/image", "image_topics", ["{camera}/image"]),
        ("image_topics", "/l/i, /r/i", "image_topics", ["/l/i", "/r/i"]),
        ("camera_info_topics", "{camera}/info", "camera_info_topics", ["{camera}/info"]),
        ("transport", "raw", "transports", ["raw"]),
        ("tf_topic", "/robot1/tf", "tf_topic", "/robot1/tf"),
        ("tf_static_topic", "tf_static", "tf_static_topic", "tf_static"),
        ("autostart", "false", "autostart", False),
        ("use_sim_time", "true", "use_sim_time", True),
    ],
)
def test_arguments_become_parameters(launch, argument, value, parameter, expected):
    launched = launch(**{argument: value})
    assert launched.parameters == {"use_sim_time": False, parameter: expected}
    assert parameter in {p.name for p in PARAMETERS} | {"use_sim_time"}


def test_raw_alone_subscribes_to_raw_topics(launch):
    file, _ = launch(transport="raw").node["parameters"]
    values = yaml.safe_load(Path(file).read_text())["/**"]["ros__parameters"]
    (camera,) = rig_cameras(make_options(values | {"transports": ["raw"]}, file), ("CAM",))
    assert (camera.image_topic, camera.raw) == ("cam/image_raw", True)


def test_how_the_node_is_started(launch, tmp_path, monkeypatch):
    own = tmp_path / "rig.yaml"
    own.write_text("detector: {ros__parameters: {}}")
    monkeypatch.setenv("HOME", str(tmp_path))
    node = launch(params="~/rig.yaml", name="front", namespace="car", respawn="true", log_level="debug").node
    assert node["parameters"][0] == str(own)
    assert (node["name"], node["namespace"], node["respawn"]) == ("front", "car", True)
    assert node["ros_arguments"] == ["--log-level", "debug"]


@pytest.mark.parametrize(
    "distribution, variables",
    [
        ("humble", PROFILES),
        ("jazzy", PROFILES),
        ("kilted", {"FASTDDS_DEFAULT_PROFILES_FILE"}),
        ("rolling", {"FASTDDS_DEFAULT_PROFILES_FILE"}),
    ],
)
def test_each_fast_dds_gets_the_profile_by_a_variable_that_it_reads(
    launch, monkeypatch, distribution, variables
):
    monkeypatch.setenv("ROS_DISTRO", distribution)
    assert set(launch().environment) == variables


@pytest.mark.parametrize("own", sorted(PROFILES))
def test_what_the_user_has_set_in_the_environment_stays(launch, monkeypatch, own):
    launched = launch()
    assert launched.node["additional_env"] == WAITING and set(launched.environment) == PROFILES
    for name in (*PROFILES, *WAITING):
        monkeypatch.delenv(name, raising=False)
    assert launch(shared_memory="false").environment == {}
    monkeypatch.setenv(own, "/own.xml")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    launched = launch()
    assert launched.environment == {}
    assert set(launched.node["additional_env"]) == set(WAITING) - {"OMP_WAIT_POLICY"}


def test_a_bag_starts_when_the_node_is_active_and_once(launch, tmp_path):
    launched = launch(bag=str(tmp_path))
    assert launched.parameters["use_sim_time"] is True and launched.parameters["activation_wait"] == 60.0
    assert set(launched.processes) == {"detector_node"}
    assert launched.activate("inactive") == []
    assert launched.activate() == [["ros2", "bag", "play", str(tmp_path), "--clock", "--delay", "1"]]
    assert launched.activate() == []  # respawned
    assert launch(bag=str(tmp_path), use_sim_time="false").parameters["use_sim_time"] is False


def test_rate_and_loop_of_a_bag(launch, tmp_path):
    ((*_, name, rate, loop),) = launch(bag=str(tmp_path), rate="0.5", loop="True").activate()
    assert (name, rate, loop) == ("--rate", "0.5", "--loop")


def test_without_rosbag2_the_packages_own_player_takes_the_same_options(launch, tmp_path):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    ((executable, play, *options),) = launch((), bag=str(tmp_path), rate="2", loop="true").activate()
    assert type(executable).__name__ == "ExecutableInPackage" and play == "play"
    args = parser.parse_args(options)
    assert (args.bag, args.rate, args.loop, args.clock) == (str(tmp_path), 2.0, True, 100.0)


@pytest.mark.parametrize(
    "given, text",
    [
        ({"params": "/no/rig.yaml"}, "params:=/no/rig.yaml: no such file"),
        ({"params": "/tmp"}, "params:=/tmp: no such file"),
        ({"cameras": "/no/rig.yml"}, "cameras:=/no/rig.yml: no such file"),
        ({"bag": "/no/bag"}, "bag:=/no/bag: no such file"),
        ({"rate": "2"}, "rate is about a bag: give bag:=FOLDER too"),
        ({"loop": "true"}, "loop is about a bag: give bag:=FOLDER too"),
        ({"bag": "/tmp", "rate": "0"}, "rate:=0: expected a number above 0"),
        ({"bag": "/tmp", "rate": "fast"}, "rate:=fast: expected a number above 0"),
        ({"bag": "/tmp", "rate": "nan"}, "rate:=nan: expected a number above 0"),
        ({"threads": "all"}, "threads:=all: expected a whole number"),
        ({"threads": "-1"}, "threads:=-1: expected a whole number"),
        ({"cameras": "a,,b"}, "cameras:=a,,b: expected names with commas"),
        ({"image_topics": ","}, "image_topics:=,: expected names with commas"),
        ({"rviz": "yes please"}, '"rviz" provided value "yes please" is not valid'),
        ({"autostart": "off"}, '"autostart" provided value "off" is not valid'),
        ({"transport": "theora"}, '"transport" provided value "theora" is not valid'),
        ({"log_level": "loud"}, '"log_level" provided value "loud" is not valid'),
    ],
)
def test_wrong_values_name_their_argument(launch, given, text):
    with pytest.raises((ConfigError, RuntimeError)) as error:
        launch(**given)
    assert text in str(error.value)


def test_unknown_arguments_are_refused_on_the_command_line_of_this_file_only(launch, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ros2", "launch", "bevnext_ros", "detector.launch.py", "checkpiont:=a"])
    with pytest.raises(ConfigError, match="unknown launch argument 'checkpiont'; did you mean 'checkpoint'"):
        launch()
    monkeypatch.setattr(sys, "argv", ["ros2", "launch", str(FILE), "zzz:=1", "device:=cpu"])
    with pytest.raises(
        ConfigError, match="unknown launch argument 'zzz'; known are params, checkpoint, model"
    ):
        launch()
    monkeypatch.setattr(sys, "argv", ["ros2", "launch", "car", "car.launch.py", "checkpiont:=a"])
    assert launch().node


def test_rviz_shows_the_nodes_topics(launch):
    assert launch(rviz="true").processes["rviz2"]["remappings"] == []
    topics = {d["Topic"]["Value"] for d in displays() if "Topic" in d}
    rviz = launch(rviz="true", namespace="car", name="front").processes["rviz2"]
    assert rviz["namespace"] == "car" and os.path.samefile(rviz["arguments"][1], LAYOUT)
    rules = dict(rviz["remappings"])
    assert set(rules) == topics
    assert rules["/detector/markers"] == "front/markers"
    assert rules["/cam_front/image_raw/compressed"] == "cam_front/image_raw/compressed"
    rviz = launch(rviz="true", tf_topic="/robot1/tf", tf_static_topic="tf_static").processes["rviz2"]
    assert rviz["remappings"] == [("/tf", "/robot1/tf"), ("/tf_static", "tf_static")]


def test_a_camera_file_describes_the_rig(launch, tmp_path):
    rig = [
        {"name": "l", "image_topic": "/l/i", "camera_info_topic": "/l/c", "transport": "raw", "frame": "lf"},
        {
            "name": 2,
            "image_topic": "/r/i",
            "camera_info_topic": "/r/c",
            "transport": "compressed",
            "frame": "rf",
        },
    ]
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump(rig))
    left, right = rig_cameras(make_options(launch(cameras=str(path)).parameters, "launch"), ("A", "B"))
    assert (left.name, left.image_topic, left.info_topic, left.raw, left.frame) == (
        "l",
        "/l/i",
        "/l/c",
        True,
        "lf",
    )
    assert (right.name, right.raw) == ("2", False)
    for wrong, text in (
        ([{"name": "l", "frame": "x"}, {"name": "r"}], "'frame' is given for some cameras only"),
        ([{"name": "l", "topic": "x"}], "unknown keys topic; known are name, image_topic"),
        ({"name": "l"}, "expected a list"),
        ([], "expected a list"),
    ):
        path.write_text(yaml.safe_dump(wrong))
        with pytest.raises(ConfigError, match=rf"rig\.yaml: {text}"):
            launch(cameras=str(path))
    path.write_text("[a: b: c")
    with pytest.raises(ConfigError, match=r"rig\.yaml: is no YAML"):
        launch(cameras=str(path))


def test_the_meaning_of_arguments_needs_neither_torch_nor_pydantic_nor_launch():
    code = (
        "import sys; from bevnext_ros import launch_arguments; from bevnext_tools import threads; "
        "print({'torch', 'pydantic', 'numpy', 'launch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.ros
def test_launch_testing_runs_the_file_with_a_node_and_a_bag(tmp_path):
    """By launch itself: a real node with a stand-in detector, in processes."""
    if importlib.util.find_spec("launch_testing") is None or harness.missing():
        pytest.skip("needs launch_testing and rclpy: launch is not on the Python index")
    write_bag(tmp_path / "bag", drive())
    values = {
        "only_when_subscribed": False,
        "image_reliability": "reliable",
        "image_deadline": 5.0,
        "transform_deadline": 5.0,
    }
    values |= {"overload": "queue", "image_depth": 100}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"detector": {"ros__parameters": values}}))
    index = tmp_path / "prefix/share/ament_index/resource_index/packages"
    programs = tmp_path / "prefix/lib/bevnext_ros"
    for folder in (index, programs):
        folder.mkdir(parents=True)
    (index / "bevnext_ros").touch()
    (tmp_path / "prefix/share/bevnext_ros").symlink_to(ROOT)
    commands = {
        "detector_node": f"tests.ros.node_process {tmp_path}/steps.jsonl 0",
        "bevnext": "bevnext_tools",
    }
    for name, module in commands.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    paths = [str(tmp_path / "prefix"), os.environ.get("AMENT_PREFIX_PATH", ""), sys.prefix]
    environment = {
        **harness.environment(),
        "AMENT_PREFIX_PATH": os.pathsep.join(filter(None, paths)),
        "DETECTOR_LAUNCH_TEST": str(tmp_path),
        "DETECTOR_LAUNCH_FILE": str(FILE),
        "ROS_LOG_DIR": str(tmp_path / "log"),
    }
    for name in PROFILES:
        environment.pop(name, None)
    command = [
        sys.executable,
        "-m",
        "launch_testing.launch_test",
        str(FILE.parent.parent / "tests/ros/launched_drive.py"),
    ]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("Ran 1 test in") == 4


def test_the_package_depends_on_all_that_is_launched():
    text = (ROOT / "package.xml").read_text()
    for package in ("launch_ros", "ros2launch", "ros2bag", "rosbag2_storage_mcap", "rviz2", "lifecycle_msgs"):
        assert f"<exec_depend>{package}</exec_depend>" in text, package


def displays():
    return yaml.safe_load(LAYOUT.read_text())["Visualization Manager"]["Displays"]


def test_layouts_show_what_the_node_publishes():
    rviz = yaml.safe_load(LAYOUT.read_text())
    topics = {d["Topic"]["Value"] for d in displays() if "Topic" in d}
    assert {"/detector/markers", "/cam_front/image_raw/compressed"} <= topics
    assert rviz["Visualization Manager"]["Global Options"]["Fixed Frame"] == "odom"
    foxglove = json.loads((ROOT / "config" / "foxglove" / "detector.json").read_text())
    text = json.dumps(foxglove)
    for topic in (
        "/detector/markers",
        "/cam_front/image_raw/compressed",
        "/diagnostics",
        "/detector/latency",
    ):
        assert topic in text
    panels = foxglove["layout"]

    def leaves(node):
        return [node] if isinstance(node, str) else leaves(node["first"]) + leaves(node["second"])

    assert sorted(leaves(panels)) == sorted(foxglove["configById"])
