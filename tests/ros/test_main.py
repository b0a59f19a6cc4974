"""How the node's program ends when it cannot start: one line that names the interpreter and the remedy."""

from __future__ import annotations

import os
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


@pytest.mark.ros
@pytest.mark.parametrize("argument", ["max_spread:=wide", "frame_queue:=0", "max_spread:=7.5"])
def test_parameters_of_the_wrong_type_or_range_are_one_line(dds, argument):
    result = run(
        "import sys; from bevnext_ros.node.main import run; sys.exit(run(lambda options: None, sys.argv))",
        *("--ros-args", "-p", argument),
        **harness.environment(),
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "error: the node cannot start: " in result.stderr and argument.split(":")[0] in result.stderr
