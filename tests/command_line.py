# SPDX-License-Identifier: Apache-2.0
"""The command ``bevnext`` as its users run it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.paths import ROOT


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bevnext_tools", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a failed command."""
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("bevnext: error: ")
    return line
