# SPDX-License-Identifier: Apache-2.0
"""Reference outputs for the training tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.paths import BUNDLED


@pytest.fixture(scope="session")
def golden_path(request: pytest.FixtureRequest) -> Any:
    """Function: path of a reference output by file name; the copy in the repository comes first."""

    def find(name: str) -> Path:
        for folder in (BUNDLED, BUNDLED / "goldens"):
            if (folder / name).is_file():
                return folder / name
        return request.getfixturevalue("reference").joinpath("goldens", name)

    return find


@pytest.fixture(scope="session")
def mod_targets(golden_path: Any) -> dict[str, np.ndarray]:
    """Targets of the published code."""
    return dict(np.load(golden_path("mod_targets.npz")))


@pytest.fixture(scope="session")
def mod_geometry(golden_path: Any) -> dict[str, np.ndarray]:
    """Geometry of the published code."""
    return dict(np.load(golden_path("mod_geometry.npz")))


@pytest.fixture(scope="session")
def module_scalars(golden_path: Any) -> dict[str, Any]:
    """Scalars of the published code's modules."""
    return json.loads(golden_path("modules.json").read_text())
