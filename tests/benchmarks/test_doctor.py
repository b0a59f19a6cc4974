# SPDX-License-Identifier: Apache-2.0
"""``bevnext doctor`` says what is there and what is not, and never fails."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
import torch

from bevnext_core.ops import native
from bevnext_core.precision import precision_text
from bevnext_tools.cli.main import main


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:24].strip() or f"more {number}": line[24:].strip() for number, line in enumerate(lines)}


def test_versions_forms_and_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEVNEXT_BEV_POOL", "plain")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setenv("BEVNEXT_CACHE_DIR", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "bevnext_stage1.pth").touch()
    found = rows(capsys)
    assert found["torch"] == importlib.metadata.version("torch") == torch.__version__.partition("+")[0]
    assert found["BEV pooling, cpu"] == "plain" and found["BEVNEXT_BEV_POOL"] == "plain"
    assert found["weights"] == "demo, bevnext-r50-stage1 (downloaded); all there are: bevnext weights"
    assert "rerun-sdk" in found
    assert found["precision auto, cpu"] == precision_text("auto", "cpu")
    assert found["ROS"] == "jazzy" and "GB free" in found["cache"]


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> tuple[str, ...]:
        raise native.NativeBuildError("no C++ compiler found")

    find = importlib.util.find_spec
    monkeypatch.setattr(native, "compiler", nothing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nuscenes" else find(name))
    monkeypatch.setenv("BEVNEXT_CRF", "fast")
    found = rows(capsys)
    assert found["C++ compiler"] == "no C++ compiler found"
    assert any("pip install --no-deps nuscenes-devkit" in fact for fact in found.values())
    assert "must be auto, native or plain" in found["CRF, cpu"]
