# SPDX-License-Identifier: Apache-2.0
"""Threads: settings come before torch, the user's own stay, limits of a control group are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bevnext_core.errors import ConfigError
from bevnext_tools import threads
from tests.paths import ROOT

CORES = len(os.sched_getaffinity(0))


def environment_of(code: str, **given: str) -> dict[str, str]:
    names = (*threads.WAITING, "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in names}
    code += f"\nimport os; print([os.environ.get(name) for name in {names}])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, **given}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(names, eval(done.stdout.splitlines()[-1])))


COMMAND = "from bevnext_tools.cli.main import main; main(['--version'])"


def test_the_command_line_sets_them_before_torch() -> None:
    found = environment_of(COMMAND + "; import sys; assert 'torch' not in sys.modules")
    assert found == {**threads.WAITING, "OMP_NUM_THREADS": str(threads.usable_cores())}


# A program that looks at the settings in the moment in which torch is looked for.
PROGRAM = """
import os, runpy, sys

class Seen:
    def find_spec(self, name, *_):
        if name == "torch":
            print(dict(os.environ))
            sys.exit()

sys.meta_path.insert(0, Seen())
sys.argv = ["training/{0}", "--stage", "1", "--dry-run"]  # which only train.py reads before it needs torch
runpy.run_path("training/{0}", run_name="__main__")
"""


@pytest.mark.parametrize("script", ["ablate.py", "evaluate.py", "train.py"])
def test_training_sets_them_before_torch(script: str) -> None:
    env = {name: value for name, value in os.environ.items() if name not in (*threads.WAITING, "OMP_NUM_THREADS")}
    code = PROGRAM.replace("{0}", script)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout)
    assert threads.WAITING.items() <= found.items() and found["OMP_NUM_THREADS"] == str(threads.usable_cores())


def test_the_users_settings_stay() -> None:
    found = environment_of(COMMAND, OMP_WAIT_POLICY="active", OMP_NUM_THREADS="7")
    assert (found["OMP_WAIT_POLICY"], found["OMP_NUM_THREADS"]) == ("active", "7")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, CORES),
        ({"cpu.max": "max 100000\n"}, CORES),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),  # half a core is one thread
        ({"cpu.max": f"{(CORES + 8) * 100000} 100000\n"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "nonsense\n"}, CORES),
    ],
)
def test_usable_cores(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.usable_cores() == expected


def test_a_count_reaches_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    try:
        threads.use_threads(3)
        assert torch.get_num_threads() == 3
        threads.use_threads(None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
        threads.use_threads(0)
