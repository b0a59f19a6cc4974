"""Shared fixtures: reference folders (skip with a reason where absent)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.paths import REFERENCE, SAMPLE


def _require(path: Path, variable: str, what: str) -> Path:
    if not path.is_dir():
        message = f"{what} is not at {path} (set {variable} to where it is)"
        if os.environ.get("CI"):
            pytest.fail(message + "; in CI this test must not be skipped")
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the complete reference outputs."""
    return _require(REFERENCE / "goldens", "BEVNEXT_REFERENCE", "the reference").parent


@pytest.fixture(scope="session")
def sample() -> Path:
    """Dataroot of the real nuScenes keyframes."""
    return _require(SAMPLE, "BEVNEXT_SAMPLE", "the nuScenes sample")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test that draws from torch's own generator draws the same in every run, alone or among others."""
    torch.manual_seed(0)
