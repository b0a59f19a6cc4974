#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Feed the node random faults over DDS for a long time: no crash, flat memory, every frame accounted for.

    .venv/bin/python scripts/soak.py --minutes 30 [--seed 1] [--policy mask]

Prints one line a minute and a summary; the exit code is 0 only if nothing was found.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from tests.ros import harness  # noqa: E402
from tests.ros.harness import DELAY_MS, MS, NAMES, SECOND, Rig, ego_pose, jpeg  # noqa: E402

MEMORY_BOUND = 40e6
"""Bytes that the node may grow after its first quarter: buffers fill to their bounds, allocators keep some."""
DEACTIVATE, ACTIVATE = 4, 3


class Soak:
    """One run: sweeps at ten a second, each with a fault drawn at random (or none)."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.rng = random.Random(seed)
        self.stamp = harness.START
        self.faults: dict[str, int] = {}
        self.memory: list[int] = []
        self.subscribed = True

    def step(self) -> None:
        """One sweep with perhaps a fault."""
        kinds = [name[4:] for name in dir(self) if name.startswith("bad_")]
        kind = self.rng.choice(kinds) if self.rng.random() < 0.4 else "nothing"
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.stamp += 100 * MS
        if kind == "nothing":
            self.rig.sweep(self.stamp, pause=False)
        else:
            getattr(self, f"bad_{kind}")()

    def camera(self) -> str:
        return self.rng.choice(NAMES)

    def images(self, names: list[str], **changes: object) -> None:
        for name in names:
            self.rig.publish_image(name, self.stamp + DELAY_MS[name] * MS, **changes)

    def poses(self) -> None:
        self.rig.publish_poses(self.stamp - 20 * MS, self.stamp + 40 * MS)

    def bad_missing_cameras(self) -> None:
        self.rig.sweep(self.stamp, skip=tuple(self.rng.sample(NAMES, self.rng.randint(1, 6))), pause=False)

    def bad_order(self) -> None:
        self.images(self.rng.sample(NAMES, 6))
        self.poses()

    def bad_duplicates(self) -> None:
        self.poses()
        self.images([*NAMES, *NAMES])

    def bad_zero_stamp(self) -> None:
        self.rig.publish_image(self.camera(), 0)
        self.rig.publish_pose(0)
        self.rig.sweep(self.stamp, pause=False)

    def bad_future_stamp(self) -> None:
        self.rig.publish_image(self.camera(), self.stamp + 3600 * SECOND)

    def bad_truncated(self) -> None:
        self.poses()
        self.images([self.camera()], data=jpeg((64, 40), 1)[: self.rng.randint(0, 400)])
        self.images(list(NAMES))

    def bad_garbage(self) -> None:
        self.poses()
        self.images(list(NAMES), data=self.rng.randbytes(500))

    def bad_size(self) -> None:
        self.poses()
        self.images(list(NAMES), data=jpeg((80, 40), 1))

    def bad_no_pose(self) -> None:
        self.images(list(NAMES))

    def bad_pose_nan(self) -> None:
        pose = ego_pose(self.stamp)
        pose[self.rng.randrange(3), 3] = self.rng.choice([np.nan, np.inf])
        self.rig.publish_pose(self.stamp, pose)
        self.images(list(NAMES))

    def bad_pose_jump(self) -> None:
        pose = ego_pose(self.stamp)
        pose[:3, 3] += 500
        for offset in range(-20, 41, 20):
            self.rig.publish_pose(self.stamp + offset * MS, pose)
        self.images(list(NAMES))

    def bad_late_and_foreign_transforms(self) -> None:
        """Of frames that no camera needs and of the rig's own, seconds late or of another clock."""
        for _ in range(self.rng.randint(1, 6)):
            edge = self.rng.choice([("base_link", "wheel"), ("map", "marker"), ("odom", "base_link")])
            offset = self.rng.choice([-1, 1]) * self.rng.choice([1_500, 5_000, 10**11]) * MS
            self.rig.publish_transform(*edge, ego_pose(self.stamp), max(self.stamp + offset, 1))
        self.rig.sweep(self.stamp, pause=False)

    def bad_late_images(self) -> None:
        for camera in self.rng.sample(NAMES, self.rng.randint(1, 5)):
            self.rig.publish_image(camera, self.stamp - self.rng.randint(1_200, 9_000) * MS)
        self.rig.sweep(self.stamp, pause=False)

    def bad_stale_stream(self) -> None:
        """A second rig a few seconds behind: its poses and all but one of its cameras, between the true ones."""
        behind = self.rng.randint(1_500, 5_000) * MS
        self.rig.publish_poses(self.stamp - behind - 20 * MS, self.stamp - behind + 40 * MS)
        for camera in NAMES[1:]:
            self.rig.publish_image(camera, self.stamp - behind)
        self.rig.sweep(self.stamp, pause=False)

    def bad_calibration_jitter(self) -> None:
        """Computed anew: other in the last digits."""
        for camera in NAMES:
            self.rig.publish_info(camera, self.rig.intrinsics() * (1 + self.rng.uniform(-1e-12, 1e-12)))
        self.rig.sweep(self.stamp, pause=False)

    def bad_time_back(self) -> None:
        self.stamp -= self.rng.randint(500, 20_000) * MS
        self.stamp = max(self.stamp, harness.START)
        self.rig.sweep(self.stamp, pause=False)

    def bad_time_forward(self) -> None:
        self.stamp += self.rng.randint(1_000, 60_000) * MS
        self.rig.sweep(self.stamp, pause=False)

    def bad_calibration(self) -> None:
        values = self.rng.choice([np.zeros((3, 3)), np.full((3, 3), np.nan), self.rig.intrinsics() * 1.01])
        self.rig.publish_info(self.camera(), values)
        self.rig.sweep(self.stamp, pause=False)
        self.rig.publish_info(self.camera())

    def bad_burst(self) -> None:
        for _ in range(20):
            self.stamp += 33 * MS
            self.rig.sweep(self.stamp, pause=False)

    def bad_silence(self) -> None:
        self.rig.spin(self.rng.uniform(0.2, 1.5))

    def bad_life_cycle(self) -> None:
        if self.rng.random() < 0.2:
            self.rig.call(DEACTIVATE)
            self.rig.call(ACTIVATE)

    def bad_subscribers(self) -> None:
        if self.rng.random() < 0.3:
            (self.rig.unsubscribe if self.subscribed else self.rig.subscribe)()
            self.subscribed = not self.subscribed
        self.rig.sweep(self.stamp, pause=False)

    def run(self, seconds: float) -> list[str]:
        """Run, then let the node come to rest -> what is wrong (empty: nothing)."""
        rig = self.rig
        process = psutil.Process(rig.process.pid)
        begin = reported = time.monotonic()
        steps = 0
        while time.monotonic() - begin < seconds:
            self.step()
            steps += 1
            rig.spin(0.05)
            # what was received is not kept: this process shall stay small too
            for received in (rig.detections, rig.boxes, rig.markers, rig.latencies, rig.diagnostics[:-3]):
                received.clear()
            del rig.diagnostics[:-3]
            if not rig.alive():
                return [f"the node ended with exit code {rig.process.returncode}"]
            self.memory.append(process.memory_info().rss)
            if time.monotonic() - reported > 60:
                reported = time.monotonic()
                print(
                    f"{(reported - begin) / 60:.0f} min: {steps} sweeps, {self.memory[-1] / 1e6:.0f} MB",
                    flush=True,
                )
        return self.judge()

    def judge(self) -> list[str]:
        """After the faults: it works again, all is accounted for, memory is flat."""
        rig, wrong = self.rig, []
        if not self.subscribed:
            rig.subscribe()
        rig.spin(1.0)
        for name in NAMES:
            rig.publish_info(name)
        rig.spin(2.0)
        self.stamp += 100 * SECOND
        rig.detections.clear()
        for _ in range(10):
            self.stamp += 100 * MS
            rig.sweep(self.stamp)
            rig.spin(0.08)
        rig.spin(2.0)
        if len(rig.detections) < 5:
            wrong.append(f"only {len(rig.detections)} of 10 good frames were published after the faults")
        rig.fresh()
        if rig.value("node", "frames_in_flight") != "0" or not rig.accounted():
            wrong.append(f"frames are not accounted for: {rig.status('node')}, {rig.drops()}")
        quarter = len(self.memory) // 4
        growth = max(self.memory[quarter:]) - max(self.memory[: max(quarter, 1)])
        if growth > MEMORY_BOUND:
            wrong.append(f"memory grew by {growth / 1e6:.0f} MB (bound {MEMORY_BOUND / 1e6:.0f} MB)")
        return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policy", choices=("wait", "skip", "mask"), default="mask")
    parser.add_argument("--overload", choices=("newest", "queue"), default="newest")
    args = parser.parse_args()
    if reason := harness.missing():
        print(f"soak: {reason}", file=sys.stderr)
        return 2
    import rclpy

    os.environ.update(harness.environment())
    rclpy.init()
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(
            Path(folder),
            wait=0.03,
            parameters={"missing_camera": args.policy, "overload": args.overload, "overload_queue": 5},
            images="small",
            command=None,
        )
        try:
            rig.ready()
            soak = Soak(rig, args.seed)
            wrong = soak.run(args.minutes * 60)
            print(f"faults: {soak.faults}")
            print(f"frames: {rig.status('node').get('values')}")
            print(f"drops: {rig.drops()}")
            print(f"memory: {soak.memory[0] / 1e6:.0f} to {max(soak.memory) / 1e6:.0f} MB")
            if rig.alive() and rig.stop() != 0:
                wrong.append(f"the node did not end cleanly: exit code {rig.process.returncode}")
            if "Traceback" in rig.output.read_text():
                wrong.append("the node's output holds a traceback")
            for line in wrong:
                print(f"soak: wrong: {line}\n{rig.output.read_text()[-2000:]}", file=sys.stderr)
        finally:
            rig.close()
            rclpy.try_shutdown()
    print("soak: failed" if wrong else "soak: nothing found")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
