#!/usr/bin/env python3
"""Lint, type check and tests in a row; ends with one line `N passed, N failed, N skipped`.

    python scripts/run_checks.py [--lint-only] [pytest's arguments]

Every check runs even if one before it failed. ruff, mypy and import-linter count as one check each,
beside the tests.
The exit code is 0 only if nothing failed and tests were run to their end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# not below build/, where `colcon test-result` would count it too
REPORT = ROOT / ".checks" / "pytest.xml"


def run(*arguments: str) -> int:
    """Run `python arguments` in the repository's root and return its exit code."""
    print(f"$ python {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL).returncode


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


def main() -> int:
    arguments = sys.argv[1:]
    lint_only = "--lint-only" in arguments
    arguments = [argument for argument in arguments if argument != "--lint-only"]
    start = time.monotonic()

    passed = failed = skipped = 0
    trouble = []
    layers = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    for name, command in (
        ("ruff", ["-m", "ruff", "check", "."]),
        ("mypy", ["-m", "mypy"]),
        ("import-linter", ["-c", layers, "--no-logo"]),
    ):
        if run(*command) == 0:
            passed += 1
        else:
            failed += 1
            trouble.append(name)

    if not lint_only:
        REPORT.unlink(missing_ok=True)
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        code = run("-m", "pytest", f"--junitxml={os.path.relpath(REPORT, ROOT)}", *arguments)
        if REPORT.is_file():
            counts = read_report(REPORT)
            passed, failed, skipped = passed + counts[0], failed + counts[1], skipped + counts[2]
        if code == 5:
            trouble.append("pytest found no tests")
        elif code != 0:
            trouble.append("pytest" if code == 1 else f"pytest (ended with exit code {code})")

    if trouble:
        print(f"failed: {', '.join(trouble)}")
    print(f"checks took {time.monotonic() - start:.0f} s")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
