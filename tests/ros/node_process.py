# SPDX-License-Identifier: Apache-2.0
"""The node with a stand-in detector, as a process: python -m tests.ros.node_process LOG WAIT [ROS arguments].

With ``-`` for LOG the detector only waits.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from bevnext_core.config import ModelConfig
from bevnext_core.errors import CheckpointError
from bevnext_ros.node.main import run
from tests.ros.stand_in import StandIn, Waiting


def main() -> int:
    log, wait = sys.argv[1], float(sys.argv[2])
    config = dataclasses.replace(ModelConfig(), name="stand_in")

    def make(options):
        if options.checkpoint.startswith("missing"):
            raise CheckpointError(f"no such checkpoint: {options.checkpoint}")
        return Waiting(wait, None, config) if log == "-" else StandIn(wait, Path(log), config)

    return run(make, [sys.argv[0], *sys.argv[3:]])


if __name__ == "__main__":
    sys.exit(main())
