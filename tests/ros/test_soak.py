# SPDX-License-Identifier: Apache-2.0
"""Half a minute of random faults, and the node's own latency: the programs that do more of it, run for a short time."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.ros import harness

pytestmark = [pytest.mark.ros, pytest.mark.slow]


@pytest.fixture(autouse=True)
def needs_ros():
    if reason := harness.missing():
        pytest.skip(reason)


def run(*command: str) -> str:
    """Run a program to its end -> its output; fails with it."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_half_a_minute_of_random_faults():
    output = run("scripts/soak.py", "--minutes", "0.5", "--seed", "3")
    assert output.strip().endswith("soak: nothing found")


def test_latency_of_the_node_alone_is_measured_over_every_frame():
    """How long it takes is the machine's affair (docs/ros.md); here each frame is measured or counted."""
    output = run("-m", "bevnext_benchmarks.latency", "--frames", "20")
    published, drops = re.search(r"^frames: (\d+) of 20 published, drops (.*)$", output, re.M).groups()
    assert 1 <= int(published) <= int(published) + sum(ast.literal_eval(drops).values()) <= 20
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if len(line.split()) == 5}
    for stage in ("node", "decode", "detector", "total"):
        values = [float(value) for value in rows[stage]]
        assert values == sorted(values) and values[0] > 0, output
