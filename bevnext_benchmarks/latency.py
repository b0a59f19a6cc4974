# SPDX-License-Identifier: Apache-2.0
"""Latency of the node alone: six compressed 1600x900 images at 10 Hz, a detector that only waits.

    python -m bevnext_benchmarks.latency [--frames 600] [--checkpoint FILE]

Needs the checkout. Prints the milliseconds from the arrival of a frame's newest image to its publication, without the
detector and without JPEG decoding (both given on their own). With --checkpoint the real network runs instead of the
wait.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bevnext_core.files import Parser
from bevnext_ros.node.worker import STAGES
from tests.ros import harness
from tests.ros.harness import DELAY_MS, MS, NAMES, START, Rig

PERCENTILES = (25, 50, 95, 100)
SCHEDULE = sorted(NAMES, key=DELAY_MS.__getitem__)


def drive(rig: Rig, frames: int, interval: float) -> None:
    """Images at their true times: every camera fires at its own moment of the interval."""
    begin = time.monotonic() + 0.1
    for number in range(frames):
        stamp = START + round(number * interval * 1e9)
        for camera in SCHEDULE:
            due = begin + number * interval + DELAY_MS[camera] / 1e3
            rig.spin(max(0.0, due - time.monotonic()))
            rig.publish_pose(stamp + DELAY_MS[camera] * MS)
            rig.publish_image(camera, stamp + DELAY_MS[camera] * MS)


def measure(frames: int, interval: float, wait: float, checkpoint: str = "") -> dict[str, np.ndarray]:
    """Milliseconds per published frame: the node's own, and every stage."""
    parameters = {"overload": "newest", "slow_frame": 60.0, "image_depth": 20}
    program = ["tests.ros.node_process", "-", str(wait)]
    if checkpoint:
        program, parameters["checkpoint"] = ["bevnext_ros.node.main"], checkpoint
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), wait, parameters, "full", [sys.executable, "-m", *program])
        try:
            rig.until(lambda: rig.value("node", "state") == "active", timeout=60, what="an active node")
            rig.ready()
            drive(rig, frames, interval)
            rig.spin(2.0 + wait)
            rig.fresh()
            print(f"frames: {rig.value('node', 'frames_published')} of {frames} published, drops {rig.drops()}")
            table = np.array(rig.latencies)
        finally:
            rig.close()
    columns = {"detector" if stage == "inference" else stage: table[:, index] for index, stage in enumerate(STAGES)}
    return {"node": columns["total"] - columns["detector"] - columns["decode"], **columns}


def main() -> int:
    parser = Parser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--rate", type=float, default=10.0, help="Hz")
    parser.add_argument("--wait", type=float, default=0.05, help="s that the stand-in detector waits")
    parser.add_argument("--checkpoint", default="", help="run this network instead")
    args = parser.parse_args()
    if reason := harness.missing():
        print(f"latency: {reason}", file=sys.stderr)
        return 2
    import rclpy

    os.environ.update(harness.environment())
    rclpy.init()
    try:
        columns = measure(args.frames, 1 / args.rate, args.wait, args.checkpoint)
    finally:
        rclpy.try_shutdown()
    print(f"{'ms':<12}" + "".join(f"{'p' + str(p):>8}" for p in PERCENTILES))
    for name, values in columns.items():
        print(f"{name:<12}" + "".join(f"{np.percentile(values, p):8.1f}" for p in PERCENTILES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
