# SPDX-License-Identifier: Apache-2.0
"""How the node's program ends when it cannot start: one line that names the interpreter and the remedy."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.ros import harness

HIDE = "import sys; sys.modules['{name}'] = None; sys.argv = ['detector_node']; "
RUN = "from bevnext_ros.node.main import main; sys.exit(main())"


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name, remedy", [("torch", "make setup"), ("rclpy", "setup.bash")])
def test_a_missing_package_is_one_line_with_interpreter_and_remedy(name, remedy):
    result = run(HIDE.format(name=name) + RUN)
    assert result.returncode == 1 and result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("detector_node: error: ") and sys.executable in lines[0] and remedy in lines[0]


def start_node(*arguments):
    """The node with no detector, left as soon as it stands: prints its options' values."""
    code = (
        "import sys; import bevnext_ros.node.detector_node as module; from bevnext_ros.node.main import run\n"
        "class Stood(module.DetectorNode):\n"
        "    def __init__(self, *given):\n"
        "        super().__init__(*given)\n"
        "        print(self._options); sys.stdout.flush(); import os; os._exit(0)\n"
        "module.DetectorNode = Stood; sys.exit(run(lambda options: None, sys.argv))"
    )
    return run(code, "--ros-args", *arguments, **harness.environment())


@pytest.mark.ros
@pytest.mark.parametrize(
    "argument, text",
    [
        ("max_spread:=[1.0, 2.0]", "'max_spread' must be a number, got [1.0, 2.0]"),
        ("max_spread:=true", "'max_spread' must be a number, got True"),
        ("frame_queue:=2.5", "frame_queue"),
        ("max_spread:=7", "'max_spread' must be between 0 and 1, got 7"),
        ("overload:=oldest", "'overload' must be one of newest, queue, got 'oldest'"),
        ("cameras:=[]", "cameras"),
        ("fps:=10", "unknown parameter fps; known are autostart"),
        ("use_sim_tme:=true", "unknown parameter use_sim_tme"),
        ("camera_params:=key", "the parameter 'camera_params' is gone; remove it"),
        ("cuda_graphs:=true", "the parameter 'cuda_graphs' is gone; use compile: true"),
    ],
)
def test_wrong_parameters_are_named(dds, argument, text):
    from bevnext_ros.node.detector_node import DetectorNode

    with pytest.raises(Exception, match=re.escape(text)):
        DetectorNode(
            lambda options: None, cli_args=["--ros-args", "-p", argument], use_global_arguments=False
        )


@pytest.mark.ros
@pytest.mark.parametrize(
    "argument, text",
    [
        ("max_spread:=wide", "'max_spread' must be a number, got 'wide'"),
        ("frame_queue:=0", "frame_queue"),
        ("max_spread:=7.5", "max_spread"),
        ("crf_canvas:=own", "the node's parameters: the parameter 'crf_canvas' is gone; remove it"),
        ("score_treshold:=0.4", "unknown parameter score_treshold; did you mean 'score_threshold'?"),
    ],
)
def test_wrong_parameters_are_one_line(dds, argument, text):
    result = start_node("-p", argument)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "error: the node cannot start: " in result.stderr and text in result.stderr, result.stderr


@pytest.mark.ros
def test_an_integer_is_taken_for_a_number(dds, tmp_path):
    """As docs and files write defaults: 2, not 2.0; `-p` gives integers too."""
    file = tmp_path / "p.yaml"
    file.write_text("/**:\n  ros__parameters: {history_max_gap: 3, diagnostics_period: 1, slow_frame: 0}\n")
    given = (
        "-p",
        "score_threshold:=0",
        "-p",
        "transform_keep:=20",
        "-p",
        "max_spread:=1",
        "--params-file",
        str(file),
    )
    result = start_node(*given)
    assert result.returncode == 0, result.stderr
    for text in (
        "history_max_gap=3.0", "diagnostics_period=1.0", "slow_frame=0.0", "score_threshold=0.0", "transform_keep=20.0",
        "max_spread=1.0",
    ):  # fmt: skip
        assert text in result.stdout


@pytest.mark.ros
def test_a_file_of_several_nodes_starts_the_node(dds, tmp_path):
    """Others' sections and shared ones, general parameters, and a name in a section for all that is not this node's."""
    file = tmp_path / "p.yaml"
    file.write_text(
        "/**:\n  ros__parameters: {fps: 10, use_sim_time: true, max_detections: 7}\n"
        "driver:\n  ros__parameters: {exposure: 3}\n"
        "robot1:\n  detector:\n    ros__parameters:\n      score_threshold: 0.5\n"
        "      start_type_description_service: false\n"
        "      qos_overrides: {/tf: {subscription: {depth: 10}}}\n"
    )
    given = ("--params-file", str(file), "-r", "__ns:=/robot1")
    result = start_node(*given)
    assert result.returncode == 0, result.stderr
    assert "score_threshold=0.5" in result.stdout and "max_detections=7" in result.stdout
    assert "no parameter of this node: fps" in result.stderr
    file.write_text(file.read_text() + "      fps: 10\n")
    result = start_node(*given)
    assert result.returncode == 1 and "unknown parameter fps" in result.stderr


@pytest.mark.ros
def test_a_file_for_others_only_is_said(dds, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("/robot2/detector:\n  ros__parameters: {max_detections: 7}\n")
    result = start_node("--params-file", str(file))
    assert result.returncode == 0 and "max_detections=200" in result.stdout
    assert "nothing for the node /detector, only for /robot2/detector" in result.stderr
