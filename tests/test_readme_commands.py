# SPDX-License-Identifier: Apache-2.0
"""The README's commands: each one is run as it stands, or is listed here with the reason why it is not.

They run in README's order in a folder that looks like the checkout. A small made data set stands where the README
says /data/nuscenes, and a small network of made weights takes the place of bevnext-r50-stage2.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

README = ROOT / "README.md"
NUSCENES = "/data/nuscenes"
WEIGHTS = "bevnext-r50-stage2"

NOT_RUN = {
    "make setup": "installs packages from the network; it has been run where this test runs",
    "make test": "runs this test",
    "make demo": "tests/test_packaging.py sees what it calls, tests/world/test_demo.py tests that",
    ".venv/bin/bevnext weights get ": "uses the network; tests/core/test_weights.py has a server of its own",
    ".venv/bin/bevnext detect --images ": "needs images and poses; tests/tools/test_rig_images.py has them",
    ".venv/bin/bevnext detect --bag ": "needs a recording; tests/ros/test_bag_detect.py has them",
    "rosdep ": "installs packages from the network",
    "make -C src/": "needs a colcon workspace and a ROS distribution",
    "ros2 launch ": "needs a ROS distribution; tests/ros/test_launch.py starts the launch file",
}
"""How a command begins that is not run, and why."""

ADDED = {".venv/bin/python training/train.py ": "--dry-run"}
"""How a command begins that would take hours, and what is appended to it."""


def shell_commands(text: str) -> list[str]:
    """The commands of all fenced shell blocks, in order; continued lines joined, comments left out."""
    commands = []
    for block in re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = re.sub(r"(^|\s+)#.*", "", line).strip()
            if command:
                commands.append(command)
    return commands


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


COMMANDS = shell_commands(README.read_text())
RUN = [command for command in COMMANDS if not command.startswith(tuple(NOT_RUN))]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkout's files, the programs of its environment, a data set and weights."""
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    from bevnext_core.files import cache_directory
    from tests.nuscenes_dataroot import write_dataroot
    from tests.published import save_small

    folder = tmp_path_factory.mktemp("readme") / "checkout"
    folder.mkdir()
    packages = ("bevnext_core", "bevnext_tools", "bevnext_ros", "bevnext_world", "bevnext_benchmarks", "training")
    for name in (*packages, "config", "docs", "scripts", "tests", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, module in (("python", ""), ("bevnext", "-m bevnext_tools")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (programs / name).chmod(0o755)
    write_dataroot(folder / "nuscenes", {"scene-0103": 3, "scene-0916": 2, "scene-0061": 1})
    training = write_dataroot(folder / "training_set", {"scene-0001": 20}, version="v1.0-trainval")
    shutil.copytree(training, folder / "nuscenes", dirs_exist_ok=True)
    for kept in cache_directory().iterdir():  # compiled operators are not compiled again
        if kept.name != "weights":
            (folder / "cache").mkdir(exist_ok=True)
            (folder / "cache" / kept.name).symlink_to(kept)
    save_small(folder / "cache" / "weights" / f"{WEIGHTS}.safetensors")
    return folder


def run_shell(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    dataroot = str(checkout / "nuscenes")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {"BEVNEXT_SAMPLE": dataroot, "BEVNEXT_CACHE_DIR": str(checkout / "cache"), "PYTHONPATH": path}
    env = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace(NUSCENES, dataroot)],
        cwd=checkout,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_parser_finds_commands() -> None:
    text = "a\n```bash\none   # first\n# none\ntwo --a \\\n    --b\nthree 'a#b'\n```\n"
    text += "```python\nx = 1\n```\n```sh\nfour\n```\n"
    assert shell_commands(text) == ["one", "two --a --b", "three 'a#b'", "four"]
    assert python_blocks(text) == ["x = 1\n"]


def test_every_command_that_is_not_run_is_in_the_readme() -> None:
    for start in [*NOT_RUN, *ADDED]:
        assert any(command.startswith(start) for command in COMMANDS), f"no command begins with '{start}'"
    assert len(RUN) >= 5, RUN


@pytest.mark.parametrize("command", RUN, ids=[f"{n}-{command[:50]}" for n, command in enumerate(RUN)])
def test_command_runs(command: str, checkout: Path) -> None:
    added = [extra for start, extra in ADDED.items() if command.startswith(start)]
    result = run_shell(" ".join([command, *added]), checkout)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number", range(len(python_blocks(README.read_text()))))
def test_python_example_runs(number: int, checkout: Path) -> None:
    code = python_blocks(README.read_text())[number].replace('device="cuda"', 'device="cpu"')
    (checkout / "example.py").write_text(code.replace(NUSCENES, str(checkout / "nuscenes")))
    result = run_shell(".venv/bin/python example.py", checkout)
    assert result.returncode == 0, result.stderr[-2000:]


def test_wrong_command_would_be_noticed(checkout: Path) -> None:
    assert shutil.which("bash")
    assert run_shell(".venv/bin/bevnext detect --no-such-option", checkout).returncode == 2
