#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lint, type check, tests, the node's on Jazzy, some on numpy 1; ends with one line `N passed, N failed, N skipped`.

    python scripts/run_checks.py [--lint-only | --jazzy-only] [pytest's arguments]

Every check runs even if one before it failed. ruff, mypy and import-linter count as one check each,
beside the tests. The node's tests mostly wait, so that they run in one process beside the others, which compute, and
their output comes after theirs; Jazzy's and those on numpy 1 follow them. Where pytest's arguments choose tests
(a path, -k, -m, --lf), only these run, all in one go. Jazzy's packages are in .venv/jazzy, numpy 1 is in .venv/numpy1;
continuous integration fails where they are not.
The exit code is 0 only if nothing failed and tests were run to their end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
# not below build/, where `colcon test-result` would count it too
REPORTS = ROOT / ".checks"
JAZZY = Path(sys.prefix) / "jazzy" / "bin" / "python"
Result = tuple[tuple[int, int, int], str]
Run = Callable[..., Result]
WAITING = "tests/ros"
# two large files: their tests are shared out one by one
JAZZY_TESTS = ["--dist", "worksteal", "-m", "ros and not slow", WAITING]
NUMPY_1 = Path(sys.prefix) / "numpy1" / "bin" / "python"
# what hands arrays to and fro most: boxes, images, tables, scores, files
NUMPY_1_TESTS = ["-m", "not slow", *(f"tests/{name}.py" for name in (
    "core/test_boxes", "core/test_decode", "core/test_frame", "core/test_images", "core/test_nuscenes",
    "core/test_step", "tools/test_draw", "tools/test_evaluation", "tools/test_submission",
))]  # fmt: skip


def run(*arguments: str, python: str = sys.executable, output: IO[str] | None = None) -> int:
    """Run `python arguments` in the repository's root and return its exit code; ``output``: a file for what it says."""
    print(f"$ {os.path.relpath(python, ROOT)} {' '.join(arguments)}", file=output, flush=True)
    return subprocess.run(
        [python, *arguments],
        cwd=ROOT, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output and subprocess.STDOUT,
    ).returncode  # fmt: skip


def clean_environment() -> dict[str, str]:
    """Without what the ROS wheels of this process's environment have set: each Python finds its own libraries."""
    env = {name: value for name, value in os.environ.items() if name != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    libraries = env.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    env["LD_LIBRARY_PATH"] = os.pathsep.join(
        folder for folder in libraries if folder and not Path(folder).is_relative_to(sys.prefix)
    )
    return env


def chooses(argument: str) -> bool:
    """Whether an argument of pytest chooses some of the tests."""
    return argument.startswith(("-k", "-m", "--lf", "--last-failed")) or (ROOT / argument.partition("::")[0]).exists()


def read_report(path: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) of a JUnit report; errors of set-up and tear-down count as failed."""
    passed = failed = skipped = 0
    for case in ElementTree.parse(path).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def run_tests(
    name: str, *arguments: str, python: str = sys.executable, output: IO[str] | None = None
) -> Result:
    """(passed, failed, skipped) of pytest's run, and what is wrong with it, if anything."""
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    report.parent.mkdir(parents=True, exist_ok=True)
    code = run("-m", "pytest", f"--junitxml={os.path.relpath(report, ROOT)}", *arguments, python=python, output=output)
    counts = read_report(report) if report.is_file() else (0, 0, 0)
    known = {0: "", 1: name, 5: f"{name} found no tests"}
    return counts, known.get(code, f"{name} (ended with exit code {code})")


def tests_beside(arguments: list[str]) -> tuple[list[Run], list[str]]:
    """The runs that go beside that of most tests, and what is missing."""
    runs = [partial(run_tests, "pytest-ros", *arguments, WAITING)]
    distribution, ci = os.environ.get("ROS_DISTRO"), os.environ.get("CI")
    missing = []
    if distribution:
        print(f"the node's tests run on ROS {distribution}, which is active, not on Jazzy's packages")
    elif JAZZY.is_file():
        runs.append(partial(run_tests, "pytest-jazzy", *arguments, *JAZZY_TESTS, python=str(JAZZY)))
    elif ci:
        missing.append(f"no Jazzy in {JAZZY.parents[1]}")
    if NUMPY_1.is_file():
        runs.append(partial(run_tests, "pytest-numpy1", *arguments, *NUMPY_1_TESTS, python=str(NUMPY_1)))
    elif ci and sys.version_info < (3, 13) and not distribution:
        missing.append(f"no numpy 1 in {NUMPY_1.parents[1]}")
    return runs, missing


def run_side_by_side(first: Run, others: list[Run]) -> list[Result]:
    """What ``first`` gives, and the others beside it, one after another; what these say is told at the end."""
    log = REPORTS / "beside.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output, ThreadPoolExecutor(1) as executor:
        waiting = [executor.submit(other, output=output) for other in others]
        try:
            results = [first()]
            print(f"now those beside, which say it in {os.path.relpath(log, ROOT)} until they end", flush=True)
            return [*results, *(one.result() for one in waiting)]
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)  # what has not begun is left
            raise
        finally:
            output.flush()
            print(log.read_text(errors="replace"))


def main() -> int:
    arguments = sys.argv[1:]
    only = next((part for part in ("lint", "jazzy") if f"--{part}-only" in arguments), "")
    arguments = [argument for argument in arguments if argument != f"--{only}-only"]
    start = time.monotonic()

    passed = failed = skipped = 0
    trouble = []
    layers = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    lint = (
        ("ruff", ["-m", "ruff", "check", "."]),
        ("mypy", ["-m", "mypy"]),
        ("import-linter", ["-c", layers, "--no-logo"]),
    )
    for name, command in lint if only != "jazzy" else ():
        if run(*command) == 0:
            passed += 1
        else:
            failed += 1
            trouble.append(name)

    runs = []
    if not only and any(map(chooses, arguments)):
        runs.append(run_tests("pytest", *arguments))
    elif not only:
        others, missing = tests_beside([*arguments, "-n", "1", "-p", "no:cacheprovider"])
        trouble += missing
        runs += run_side_by_side(partial(run_tests, "pytest", *arguments, f"--ignore={WAITING}"), others)
    elif only == "jazzy" and JAZZY.is_file():
        runs.append(run_tests("pytest-jazzy", *arguments, *JAZZY_TESTS, python=str(JAZZY)))
    elif only == "jazzy":
        trouble.append(f"no Jazzy in {JAZZY.parents[1]}")
    for counts, wrong in runs:
        passed, failed, skipped = passed + counts[0], failed + counts[1], skipped + counts[2]
        trouble += [wrong] if wrong else []

    if trouble:
        print(f"failed: {', '.join(trouble)}")
    print(f"checks took {time.monotonic() - start:.0f} s")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
