# SPDX-License-Identifier: Apache-2.0
"""Which file ``--checkpoint`` names, and that a mistake is found before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bevnext_core import weights
from bevnext_core.errors import CheckpointError
from bevnext_ros.node.detector_factory import make_detector
from bevnext_ros.node.parameters import make_options
from bevnext_tools.checkpoints import DEMO_FILE, checkpoint_config, checkpoint_file
from tests.own_rig import write_recording
from tests.paths import ROOT

WITHOUT_TORCH = """
import sys
from bevnext_tools.cli.main import main
code = main(sys.argv[1:])
sys.exit("torch was imported" if "torch" in sys.modules else code)
"""
NAME = "bevnext-r50-stage2"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVNEXT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(weights.ACCEPT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)


def test_demo_is_a_name_everywhere(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()  # `bevnext demo` leaves it
    file = checkpoint_file("demo")
    assert Path(file).samefile(ROOT / DEMO_FILE)
    assert checkpoint_config(file).name == "demo_stage2"
    node = make_detector(make_options({"checkpoint": "demo", "device": "cpu"}, "test"))
    assert node.config == checkpoint_config(file)
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("mine")
    assert checkpoint_file("demo") == "demo" and checkpoint_config("demo") is None


def test_published_weights_that_are_not_here() -> None:
    with pytest.raises(CheckpointError, match=r"weights accept.* --checkpoint demo, are here: they know the synthetic"):
        checkpoint_file(NAME)
    weights.folder().mkdir(parents=True)
    (weights.folder() / f"{NAME}.safetensors").touch()
    assert checkpoint_file(NAME) == NAME and checkpoint_config(NAME).name == "bevnext_r50_stage2"


def test_what_is_wrong_is_found_without_torch(tmp_path: Path) -> None:
    recording = write_recording(tmp_path / "rec")
    (recording / "images" / "left").rename(tmp_path / "left")
    rig = ["--rig", recording / "rig.yaml", "--images"]
    nowhere = ["--dataroot", tmp_path / "nowhere"]
    for command, message in (
        (["detect", *nowhere, "--checkpoint", "demo_stage2"], "demo_stage2; by name there are demo, bevnext-"),
        (["detect", *nowhere, "--checkpoint", "rec"], "rec is a folder, no checkpoint"),
        (["detect", *nowhere, "--checkpoint", NAME], "--checkpoint demo"),
        (["detect", *nowhere, "--checkpoint", "demo"], str(tmp_path / "nowhere")),
        (["detect", *rig, recording / "images", "--checkpoint", "demo"], "left"),
        (["detect", *rig, "gone", "--checkpoint", "demo"], "no such folder of images"),
        (["detect", "--bag", "gone", "--checkpoint", "demo"], "gone"),
        (["evaluate", *nowhere, "--eval-set", "mini_val", "--checkpoint", "gone"], "no such checkpoint: gone"),
        (["evaluate", *nowhere, "--eval-set", "mini_val", "--checkpoint", "demo"], str(tmp_path / "nowhere")),
    ):  # fmt: skip
        options = [*command, *(["--out", "out"] if command[0] == "detect" else [])]
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *map(str, options)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and message in done.stderr, (command, done.stderr)
        assert len(done.stderr.splitlines()) == 1
