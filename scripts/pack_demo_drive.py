#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write bevnext_world/demo/kiln_lane.zip: the start of the demo's drive, which installations without a compiler play.

    python scripts/pack_demo_drive.py

To be run again when WORLD_VERSION changes (tests/world/test_packed_drive.py notices). The lidar stays out: nobody
detects with it.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bevnext_core.files import atomic_path
from bevnext_tools.threads import usable_cores
from bevnext_world.demo.drive import IMAGE_SIZE, PACKED, PACKED_KEY_FRAMES, SEED, SPLIT
from bevnext_world.recording.generate import PARTS, Order, generate


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        order = Order(Path(folder), SPLIT, SEED, 1, IMAGE_SIZE, True, PACKED_KEY_FRAMES)
        generate(order, usable_cores())
        files = [path for path in order.out.rglob("*") if path.is_file() and path.suffix != ".bin"]
        files = [path for path in files if "v1.0" not in path.parent.name or PARTS in path.parts]  # not the tables
        names = sorted(path.relative_to(order.out).as_posix() for path in files)
        with atomic_path(PACKED) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(zipfile.ZipInfo(name), (order.out / name).read_bytes(), zipfile.ZIP_DEFLATED)
    print(f"{PACKED}: {len(names)} files, {PACKED.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
