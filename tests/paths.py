# SPDX-License-Identifier: Apache-2.0
"""Where the tests find reference data: environment variables, or folders beside the repository."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get("BEVNEXT_REFERENCE", ROOT / "../shared/reference")).resolve()
SAMPLE = Path(os.environ.get("BEVNEXT_SAMPLE", ROOT / "../shared/data/nuscenes_sample")).resolve()
BUNDLED = ROOT / "tests" / "data"
"""The part of the reference that is small enough to travel with the repository."""
