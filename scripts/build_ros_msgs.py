#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build ros_msgs/ (vision_msgs and tf2_msgs, which the Python index has not) into the running environment.

    .venv/bin/python scripts/build_ros_msgs.py

For environments with the Python index's ROS packages only; a ROS distribution has its own. Afterwards
`import vision_msgs.msg` works there without any activation. Needs a C and C++ compiler and Python's headers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = ROOT / "ros_msgs"
BUILD = ROOT / "build" / "ros_msgs"
PREFIX = Path(sys.prefix)


class BuildError(Exception):
    """The messages cannot be built; the message is one line that says why."""


def check_environment() -> None:
    if sys.prefix == sys.base_prefix:
        raise BuildError(f"{sys.executable} is not in a virtual environment; use .venv/bin/python")
    if os.environ.get("ROS_DISTRO"):
        raise BuildError("a ROS distribution is active (ROS_DISTRO): use its vision_msgs and tf2_msgs")
    if not (PREFIX / "share" / "rosidl_default_generators").is_dir():
        raise BuildError("the ROS packages of constraints/ros-pypi.txt are not installed: `make setup`")
    missing = missing_tools()
    if missing:
        raise BuildError(missing)


def missing_tools() -> str | None:
    """What this machine lacks for compiling Python extensions, as one line; None if nothing."""
    for variable, default in (("CC", "cc"), ("CXX", "c++")):
        compiler = os.environ.get(variable, default).split()[0]
        if not shutil.which(compiler):
            return f"no compiler `{compiler}`: on Debian and Ubuntu `apt install g++`"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return f"no Python.h for Python {version}: on Debian and Ubuntu `apt install python3-dev`"
    return None


def repair_cmake_files() -> int:
    """Point the wheels' CMake files at this environment; returns how many were changed.

    The message packages export the include folders of the machine that built them, below /opt/python, and
    CMake refuses targets whose include folders do not exist. A file may be a hard link into an installer's cache, which
    other environments take it from: a new one takes its place, and what stands in it may be another environment's.
    """
    import numpy

    replacements = [
        (re.compile(r"(?<![^;\"\s])/[^;\"\s]*/numpy/_?core/include"), numpy.get_include()),
        (re.compile(r"(?<![^;\"\s])/[^;\"\s]*/include/python3\.\d+"), sysconfig.get_paths()["include"]),
    ]
    changed = 0
    for path in (PREFIX / "share").rglob("*.cmake"):
        text = repaired = path.read_text(errors="surrogateescape")
        for pattern, folder in replacements:
            repaired = pattern.sub(lambda _, folder=folder: folder, repaired)
        if repaired != text:
            path.unlink()
            path.write_text(repaired, errors="surrogateescape")
            changed += 1
    return changed


def build() -> None:
    packages = sorted(path.parent for path in MESSAGES.glob("*/package.xml"))
    # What another workspace or environment has set must not leak into this build.
    dropped = ("COLCON_", "AMENT_", "CMAKE_", "PYTHONPATH", "PYTHONHOME")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    env["AMENT_PREFIX_PATH"] = env["CMAKE_PREFIX_PATH"] = str(PREFIX)
    env["PATH"] = f"{PREFIX / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"
    command = [sys.executable, "-m", "colcon", "--log-base", BUILD / "log", "build", "--merge-install"]
    command += ["--install-base", PREFIX, "--build-base", BUILD, "--base-paths", *packages]
    command += ["--event-handlers", "console_cohesion+"]
    command += ["--cmake-args", "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={sys.executable}", "-Wno-dev"]
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if result.returncode != 0:
        sys.stderr.write("\n".join(result.stdout.splitlines()[-60:]) + "\n")
        raise BuildError(f"colcon could not build them (exit code {result.returncode}), log in {BUILD}/log")


def check_import() -> None:
    """In a process of its own: the packages were not there when this one started."""
    code = "from vision_msgs.msg import Detection3DArray as D; from tf2_msgs.msg import TFMessage as T"
    for name in ("D", "T"):
        code += f"; {name}.__class__.__import_type_support__(); assert {name}.__class__._TYPE_SUPPORT"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PREFIX)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise BuildError(f"they were built and cannot be imported: {last}")


def main() -> int:
    try:
        check_environment()
        repair_cmake_files()
        # A build folder configured for another environment is of no use.
        shutil.rmtree(BUILD, ignore_errors=True)
        build()
        check_import()
    except BuildError as error:
        print(f"ROS messages: error: {error}", file=sys.stderr)
        return 1
    print(f"ROS messages: vision_msgs and tf2_msgs are in {PREFIX}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
