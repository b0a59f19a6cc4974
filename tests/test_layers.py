# SPDX-License-Identifier: Apache-2.0
"""The contracts between the packages are kept, and import-linter sees when one is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGES = ("bevnext_core", "bevnext_tools", "bevnext_ros", "bevnext_world", "bevnext_benchmarks", "training")
FORBIDDEN = {
    "bevnext_core/geometry.py": "import bevnext_world.streets.roads",
    "bevnext_core/boxes.py": "from bevnext_ros.streams import drops",
    "bevnext_core/frame.py": "import training.run.ema",
    "bevnext_core/files.py": "from bevnext_tools.draw import colors",
    "bevnext_core/network/heads.py": "from bevnext_core import detector",
    "bevnext_core/ops/nms/plain.py": "from bevnext_core.datasets import nuscenes",
    "bevnext_tools/draw/colors.py": "import bevnext_world.models.palette",
    "bevnext_tools/draw/text.py": "from bevnext_tools.cli import registry",
    "bevnext_tools/rig/stamps.py": "from bevnext_tools.cli import main",
    "bevnext_ros/streams/drops.py": "import bevnext_world.models.palette",
    "bevnext_world/models/palette.py": "import training.run.ema",
    "training/run/ema.py": "import bevnext_ros.streams.drops",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages' sources and the contracts."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    command = [sys.executable, "-c", code, "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_a_forbidden_import_breaks_a_contract(copy: Path) -> None:
    pytest.importorskip("importlinter")
    kept = lint(copy)
    assert kept.returncode == 0, kept.stdout
    for name, line in FORBIDDEN.items():
        path = copy / name
        path.write_text(path.read_text() + f"\n{line}\n")
    broken = lint(copy)
    assert broken.returncode == 1
    for name in FORBIDDEN:
        module = name.removesuffix(".py").replace("/", ".")
        assert f"{module} -> " in broken.stdout, f"nobody noticed the import in {module}"
