# SPDX-License-Identifier: Apache-2.0
"""Without nuscenes-devkit: detecting and the ROS package's own parts need none of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bevnext_core.checkpoint import save_checkpoint
from tests.paths import ROOT
from tests.published import build

HIDE = "import sys; sys.modules['nuscenes'] = None\n"
DETECT = """
from bevnext_core.detector import Detector
from bevnext_ros.bags import detect as bag_detect
from bevnext_ros.bags import evaluate as bag_evaluate
from bevnext_ros.bags import nuscenes_to_bag
from bevnext_ros.node.detector_factory import make_detector
from bevnext_ros.node.parameters import make_options
from tests.rig import drive

by_hand = Detector.from_checkpoint(sys.argv[1])
by_node = make_detector(make_options({"checkpoint": sys.argv[1], "device": "cpu", "precision": "fp32"}, ""))
for frame in drive(2):
    found, expected = by_node.step(frame), by_hand.step(frame)
    assert len(found) and (found.boxes == expected.boxes).all()
print(len(found), "boxes")
"""
TABLES = """
from bevnext_tools.cli.main import main
sys.exit(main(["detect", "--dataroot", sys.argv[2], "--checkpoint", sys.argv[1], "--out", sys.argv[2] + "/out"]))
"""


def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE + code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_detector_and_the_parts_of_the_node_work_without_the_devkit(tmp_path: Path) -> None:
    model = build("small2")
    save_checkpoint(tmp_path / "c.safetensors", model.state_dict(), model.config)
    done = run(DETECT, tmp_path / "c.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("boxes\n")

    (tmp_path / "v1.0-mini").mkdir()
    (tmp_path / "v1.0-mini" / "scene.json").write_text("[]")
    done = run(TABLES, tmp_path / "c.safetensors", tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "pip install --no-deps nuscenes-devkit" in done.stderr
