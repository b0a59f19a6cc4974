"""The launch file is executed: every argument reaches the node. With a distribution, by launch itself."""

from __future__ import annotations

import importlib.util
import os
import sys
import types

import pytest
import yaml

from bevnext_ros.node.parameters import PARAMETERS, make_options, rig_cameras
from tests.paths import ROOT

FILE = ROOT / "launch" / "detector.launch.py"


class Action:
    """Records how it was made."""

    def __init__(self, *arguments, **keywords):
        self.arguments, self.keywords = arguments, keywords


class Configuration(Action):
    def perform(self, context):
        return context[self.arguments[0]]


def stand_ins() -> dict[str, types.ModuleType]:
    """Modules that record instead of launching."""
    modules = {}

    def module(name, **members):
        modules[name] = types.ModuleType(name)
        vars(modules[name]).update(members)

    kinds = ("DeclareLaunchArgument", "ExecuteProcess", "OpaqueFunction", "SetEnvironmentVariable")
    module("launch", LaunchDescription=type("LaunchDescription", (Action,), {}))
    module("launch.actions", **{kind: type(kind, (Action,), {}) for kind in kinds})
    module("launch.substitutions", LaunchConfiguration=Configuration)
    module("launch_ros")
    module("launch_ros.actions", Node=type("Node", (Action,), {}))
    module("ament_index_python")
    module("ament_index_python.packages", get_package_share_directory=lambda name: str(ROOT))
    return modules


@pytest.fixture
def launch(monkeypatch):
    """``launch(**arguments)`` -> (declared arguments, actions by kind)."""
    for name, module in stand_ins().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    spec = importlib.util.spec_from_file_location("detector_launch", FILE)
    file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file)

    def run(**given):
        (entities,) = file.generate_launch_description().arguments
        declared = {
            e.arguments[0]: e.keywords["default_value"] for e in entities if "default_value" in e.keywords
        }
        assert set(given) <= set(declared), set(given) - set(declared)
        function = next(e for e in entities if type(e).__name__ == "OpaqueFunction")
        actions = function.keywords["function"]({**declared, **given})
        return declared, actions

    return run


def nodes(actions) -> dict[str, dict]:
    return {a.keywords["executable"]: a.keywords for a in actions if type(a).__name__ == "Node"}


def test_by_default_the_node_starts_with_its_file_and_the_profile(launch):
    declared, actions = launch()
    node = nodes(actions)["detector_node"]
    assert node["package"] == "bevnext_ros" and node["name"] == "detector"
    file, overrides = node["parameters"]
    assert file == str(ROOT / "config" / "detector.yaml") and os.path.isfile(file)
    assert overrides == {"use_sim_time": False}
    profile = next(a for a in actions if type(a).__name__ == "SetEnvironmentVariable")
    assert profile.arguments[0] == "FASTDDS_DEFAULT_PROFILES_FILE" and os.path.isfile(profile.arguments[1])
    assert "rviz2" not in nodes(actions)
    assert set(declared) == {
        *("params", "checkpoint", "model", "device", "cameras", "transport", "use_sim_time"),
        *("namespace", "log_level", "bag", "rviz", "shared_memory"),
    }


@pytest.mark.parametrize(
    "argument, value, parameter, expected",
    [
        ("checkpoint", "/a/net.safetensors", "checkpoint", "/a/net.safetensors"),
        ("checkpoint", "~/net.safetensors", "checkpoint", os.path.expanduser("~/net.safetensors")),
        ("model", "/a/model.yaml", "model", "/a/model.yaml"),
        ("device", "cuda:1", "device", "cuda:1"),
        ("cameras", "a, b,c", "cameras", ["a", "b", "c"]),
        ("transport", "raw", "transports", ["raw"]),
        ("use_sim_time", "true", "use_sim_time", True),
    ],
)
def test_arguments_become_parameters(launch, argument, value, parameter, expected):
    _, actions = launch(**{argument: value})
    overrides = nodes(actions)["detector_node"]["parameters"][1]
    assert overrides[parameter] == expected
    assert parameter in {p.name for p in PARAMETERS} | {"use_sim_time"}


def test_the_other_arguments(launch, tmp_path, monkeypatch):
    _, actions = launch(
        params="/my.yaml", namespace="car", log_level="debug", shared_memory="false", rviz="true"
    )
    node = nodes(actions)["detector_node"]
    assert node["parameters"][0] == "/my.yaml" and node["namespace"] == "car"
    assert node["arguments"] == ["--ros-args", "--log-level", "debug"]
    assert not any(type(a).__name__ == "SetEnvironmentVariable" for a in actions)
    layout = nodes(actions)["rviz2"]["arguments"][1]
    assert os.path.isfile(layout)
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/own.xml")
    _, actions = launch()
    assert not any(type(a).__name__ == "SetEnvironmentVariable" for a in actions)
    with pytest.raises(RuntimeError, match="expected true or false, got 'yes please'"):
        launch(rviz="yes please")


def test_a_bag_is_played_on_its_own_clock(launch):
    _, actions = launch(bag="/data/scene")
    process = next(a for a in actions if type(a).__name__ == "ExecuteProcess")
    assert process.keywords["cmd"] == ["ros2", "bag", "play", "/data/scene", "--clock"]
    assert nodes(actions)["detector_node"]["parameters"][1]["use_sim_time"] is True


def test_a_camera_file_describes_the_rig(launch, tmp_path):
    rig = [
        {"name": "l", "image_topic": "/l/i", "camera_info_topic": "/l/c", "transport": "raw", "frame": "lf"},
        {
            "name": "r",
            "image_topic": "/r/i",
            "camera_info_topic": "/r/c",
            "transport": "compressed",
            "frame": "rf",
        },
    ]
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump(rig))
    overrides = nodes(launch(cameras=str(path))[1])["detector_node"]["parameters"][1]
    overrides.pop("use_sim_time")
    left, right = rig_cameras(make_options(overrides, "launch"), ("A", "B"))
    assert (left.name, left.image_topic, left.info_topic, left.raw, left.frame) == (
        "l",
        "/l/i",
        "/l/c",
        True,
        "lf",
    )
    assert (right.name, right.raw) == ("r", False)
    for wrong, text in (
        ([{"name": "l", "frame": "x"}, {"name": "r"}], "for some cameras only"),
        ([{"name": "l", "topic": "x"}], "unknown keys"),
        ({"name": "l"}, "expected a list"),
    ):
        path.write_text(yaml.safe_dump(wrong))
        with pytest.raises(RuntimeError, match=text):
            launch(cameras=str(path))


def test_the_real_launch_system_accepts_the_file():
    """On a distribution: the description is built by launch itself."""
    if not os.environ.get("ROS_DISTRO"):
        pytest.skip("needs a ROS distribution: launch is not on the Python index")
    launch = pytest.importorskip("launch")
    pytest.importorskip("launch_ros")
    source = launch.launch_description_sources.PythonLaunchDescriptionSource(str(FILE))
    description = source.get_launch_description(launch.LaunchContext())
    assert len(description.entities) == 13


def test_layouts_show_what_the_node_publishes():
    import json

    rviz = yaml.safe_load((ROOT / "config" / "rviz" / "detector.rviz").read_text())
    displays = rviz["Visualization Manager"]["Displays"]
    topics = {d["Topic"]["Value"] for d in displays if "Topic" in d}
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
