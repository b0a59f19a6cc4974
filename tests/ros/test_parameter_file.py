# SPDX-License-Identifier: Apache-2.0
"""Parameter files mean to the node, to ``detect --bag`` and to rcl the same: sections, wildcards, general names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bevnext_core.errors import ConfigError
from bevnext_ros.node import parameters
from bevnext_ros.node.parameter_file import ParameterFile
from bevnext_ros.node.parameters import load_options

OWN = "detector:\n  ros__parameters:\n    score_threshold: 0.4\n"


def section(name: str, value: float = 0.4, parameter: str = "score_threshold") -> str:
    return f"'{name}':\n  ros__parameters:\n    {parameter}: {value}\n"


def nested(*names: str) -> str:
    """Section below section, as `ros2 param dump` writes them."""
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(names)]
    depth = "  " * len(names)
    return "\n".join([*lines, f"{depth}ros__parameters:", f"{depth}  score_threshold: 0.4", ""])


@pytest.fixture
def write(tmp_path):
    def written(text: str):
        (tmp_path / "p.yaml").write_text(text)
        return tmp_path / "p.yaml"

    return written


FOR_THE_DETECTOR = {
    "its own": OWN,
    "with a slash": section("/detector"),
    "another node's beside it": section("camera_driver", 10, "fps") + OWN,
    "a second detector after it": OWN + section("detector_rear", 0.9),
    "a second detector before it": section("detector_rear", 0.9) + OWN,
    "below a namespace": nested("robot1", "detector"),
    "below two": nested("fleet", "robot1", "detector"),
    "a path": section("/robot1/detector"),
    "half path, half nested": nested("/fleet/robot1", "detector"),
    "any node": section("/**"),
    "any node, no slash": section("**"),
    "any node at the top": section("/*"),
    "any namespace": section("/**/detector"),
    "one namespace": section("/*/detector"),
    "any node of a namespace": section("/robot1/*"),
    "below a namespace, deep": section("/robot1/**"),
    "nested wildcard": nested("robot1", "'*'"),
    "wildcard first, own later": section("/**", 0.9) + OWN,
    "own first, wildcard later": section("detector", 0.9) + section("/**"),
    "namespace and wildcard": section("/**", 0.9) + nested("robot1", "detector"),
    "no namespace and one": nested("robot1", "other") + section("/robot2/detector", 0.9) + OWN,
    "twice the same section": OWN + section("detector", 5, "frame_queue"),
    "general parameters": OWN + "    use_sim_time: true\n    start_type_description_service: false\n",
    "qos overrides": OWN + "    qos_overrides:\n      /tf:\n        subscription:\n          depth: 10\n",
    "qos overrides with dots": OWN + "    qos_overrides./tf.subscription.depth: 10\n",
    "exponent": OWN.replace("0.4", "4e-1"),
    "another node's in a wildcard": OWN + section("/**", 10, "fps"),
}


@pytest.mark.parametrize("case", FOR_THE_DETECTOR)
def test_what_is_meant_for_the_detector_is_read(case, write):
    assert load_options(write(FOR_THE_DETECTOR[case])).score_threshold == 0.4


@pytest.mark.parametrize(
    "text",
    [
        section("driver", 3, "fps"),
        section("/robot1/other"),
        nested("detector", "sub"),
        section("/other/**/x"),
    ],
)
def test_what_is_meant_for_others_only_changes_nothing_and_is_said(text, write, said):
    messages = said(parameters.__name__)
    assert load_options(write(text)).score_threshold == 0.1
    assert "nothing for the node /detector, only for /" in messages[0]


def test_the_node_can_be_chosen_and_must_be_where_two_are_meant(write):
    path = write(section("/robot1/detector", 0.5) + section("/robot2/detector", 0.6) + section("front", 0.7))
    with pytest.raises(
        ConfigError, match=r"has sections for /robot1/detector and /robot2/detector: .*--node"
    ):
        load_options(path)
    assert load_options(path, "/robot2/detector").score_threshold == 0.6
    assert load_options(path, "front").score_threshold == 0.7
    assert (
        load_options(write(section("/**", 0.5) + section("/*/detector", 0.6)), "/a/detector").score_threshold
        == 0.6
    )


@pytest.mark.parametrize(
    "text, message",
    [
        (
            section("detector", 0.4, "score_treshold"),
            "unknown parameter score_treshold; did you mean 'score_threshold'",
        ),
        (
            section("/**", 0.4, "score_treshold"),
            "unknown parameter score_treshold; did you mean 'score_threshold'",
        ),
        (section("detector", 10, "fps"), "unknown parameter fps; known are"),
        (section("/**", 10, "fps") + section("detector", 10, "fps"), "unknown parameter fps; known are"),
        (OWN + "    camera:\n      fps: 10\n", "unknown parameter camera.fps; did you mean 'cameras'"),
        (OWN + "    use_sim_times: true\n", "unknown parameter use_sim_times"),
        (OWN + "    cuda_graphs: false\n", "'cuda_graphs' is gone; use compile: true"),
        (section("robot1/detector", 2), "'score_threshold' must be between 0 and 1, got 2"),
        (OWN + "    max_spread: null\n", "'max_spread' must be a number, got 'null'"),
        (OWN + "x: &a {b: 1}\ny: *a\n", "cannot be read as YAML: ROS takes no aliases, line 5"),
        ("just text", "is no ROS parameter file"),
        ("detector: {checkpoint: a}", "is no ROS parameter file"),
        ("[1, 2]", "is no ROS parameter file"),
        ("a: {ros__parameters: 3}", "is no ROS parameter file"),
        ("detector:\n  ros__parameters:\n", "is no ROS parameter file"),
        ("ros__parameters: {score_threshold: 1}", "is no ROS parameter file"),
        ("", "is no ROS parameter file"),
        ("detector: {", "cannot be read as YAML"),
    ],
)
def test_mistakes_name_themselves_and_the_file(text, message, write):
    path = write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_options(path)
    assert str(path) in str(caught.value)


def test_another_nodes_parameter_in_a_shared_section_is_said(write, said):
    messages = said(parameters.__name__)
    load_options(write(section("/**", 10, "fps")))
    assert "no parameter of this node: fps" in messages[0]


def test_a_missing_file_is_named_and_the_home_folder_is_expanded(tmp_path, write, monkeypatch):
    with pytest.raises(ConfigError, match=r"no such parameter file: .*none\.yaml"):
        load_options(tmp_path / "none.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    write(OWN)
    assert load_options("~/p.yaml").score_threshold == 0.4


def rcl(path: Path, place: str) -> dict[str, object]:
    """What rcl makes of a file for the node ``detector`` in this namespace."""
    from rclpy.node import Node

    arguments = ["--ros-args", "--params-file", str(path)]
    node = Node(
        "detector",
        namespace=place,
        cli_args=arguments,
        use_global_arguments=False,
        enable_rosout=False,
        start_parameter_services=False,
    )
    values = {name: parameter.value for name, parameter in node._parameter_overrides.items()}
    node.destroy_node()
    return values


def assert_same(path: Path, place: str) -> None:
    ours, theirs = ParameterFile.read(path).values(f"{place}/detector"), rcl(path, place)
    assert repr(sorted(ours.items())) == repr(sorted(theirs.items())), (path.read_text(), place)


SCALARS = """10 1e-1 1.0e+3 1e3 12e03 1.5E2 1. .5 +1 -1 010 0x10 0o10 0b11 1_000 09 1:30 1.0f 2020-01-01 ~ null ~/x
'' '1' y Y n N yes on Off True TRUE tRUE .inf -.INF inf [1,2] [a,'b'] [1.0,2.5] [true,no]"""


@pytest.mark.ros
@pytest.mark.parametrize("case", FOR_THE_DETECTOR)
def test_sections_are_read_as_rcl_reads_them(case, write, dds):
    for place in ("", "/robot1"):
        assert_same(write(FOR_THE_DETECTOR[case]), place)


@pytest.mark.ros
def test_values_are_read_as_rcl_reads_them(write, dds):
    lines = [f"    v{number:02}: {scalar}\n" for number, scalar in enumerate(SCALARS.split())]
    assert_same(write("".join(["detector:\n  ros__parameters:\n", *lines])), "")


NAMES = st.sampled_from(["detector", "a", "b", "*", "**"])
PATTERNS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@pytest.mark.ros
@given(st.lists(st.tuples(PATTERNS, st.integers(0, 9), st.sampled_from("pq")), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sections_are_joined_as_rcl_joins_them(write, dds, sections):
    for place in ("", "/a", "/a/b"):
        assert_same(write("".join(section(*each) for each in sections)), place)


def test_a_rig_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text("cameras: []\n")
    with pytest.raises(ConfigError, match=r"is no ROS parameter file .*; it is a rig file, for --images and --rig"):
        ParameterFile.read(path)
