#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo's drive through the node: played over DDS between processes, compared with the detector fed directly.

    .venv/bin/python scripts/demo_ros.py [--checkpoint FILE] [--key-frames N]

Ends with a verdict, and with exit code 0 if the node published the same boxes for every frame of the drive.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from bevnext_core.detections import Detections  # noqa: E402
from bevnext_core.errors import BevnextError, one_line  # noqa: E402
from bevnext_core.files import Parser  # noqa: E402
from bevnext_world.cli.demo import add_drive_arguments, demo_weights  # noqa: E402
from bevnext_world.demo.drive import Drive, prepare_drive  # noqa: E402
from scripts.compare_submissions import compare as compare_groups  # noqa: E402
from scripts.ros_self_check import isolate, stop  # noqa: E402

TOLERANCE = 1e-3
"""Metres, radians, m/s and score by which two equal boxes may differ: poses travel through TF."""
START_SECONDS, SILENT_SECONDS = 120.0, 30.0
EVERYTHING = {"score_threshold": 0.0, "max_detections": 500}
# Nothing may be dropped for being late: the network may be slower than the drive.
PATIENT = {
    "overload": "queue",
    "overload_queue": 1000,
    "image_reliability": "reliable",
    "image_depth": 1000,
    "image_deadline": 5.0,
    "transform_deadline": 5.0,
    "frame_queue": 100,
}


@dataclass(frozen=True)
class Verdict:
    """Frames that agree and all frames; boxes compared, the largest difference; what disagrees, in words."""

    equal: int
    frames: int
    boxes: int
    largest: float
    faults: tuple[str, ...]


def compare(published: dict[int, Detections], expected: dict[int, Detections]) -> Verdict:
    """Boxes by the frames' stamps: every box needs a partner of its own, of its class, within the tolerance."""
    faults, equal, boxes, largest = [], 0, 0, 0.0
    for stamp, wanted in expected.items():
        found = published.get(stamp)
        if found is None:
            faults.append(f"frame {stamp}: not published")
            continue
        paired, _, difference = compare_groups(by_class(found), by_class(wanted), TOLERANCE)
        boxes += len(wanted)
        largest = max(largest, difference)
        alone = len(wanted) - paired
        if alone or len(found) != len(wanted):
            faults.append(f"frame {stamp}: {len(found)} boxes, {len(wanted)} expected, {alone} without partner")
        else:
            equal += 1
    faults += [f"frame {stamp}: not expected" for stamp in published if stamp not in expected]
    return Verdict(equal, len(expected), boxes, largest, tuple(faults))


def by_class(detections: Detections) -> dict[str, np.ndarray]:
    """``[M, 11]`` per class: boxes, with the heading as a direction, and scores."""
    boxes, names = detections.boxes, np.array(detections.names, object)
    values = [boxes[:, :6], np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7]), boxes[:, 7:], detections.scores[:, None]]
    rows = np.concatenate(values, 1)
    return {name: rows[names == name] for name in set(names)}


def detect_directly(drive: Drive, checkpoint: Path) -> tuple[dict[int, Detections], float]:
    """The detector fed with the data set's frames -> boxes by stamp, and the seconds per frame."""
    from tqdm import tqdm

    from bevnext_core.detector import Detector, DetectorOptions

    # in the node's precision
    detector = Detector.from_checkpoint(checkpoint, "auto", DetectorOptions(precision="auto"))
    reader = drive.reader(detector.config)
    found, seconds = {}, 0.0
    for ref in tqdm(reader.refs(drive.scene), desc="detector alone", unit="frame", disable=None):
        frame = reader.load(ref)
        start = time.perf_counter()
        detections = detector.step(frame)
        seconds += time.perf_counter() - start
        found[ref.stamp_ns] = detections.above(EVERYTHING["score_threshold"], int(EVERYTHING["max_detections"]))
    return found, seconds / len(found)


class Listener:
    """Takes the node's boxes and diagnostics."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        from bevnext_ros.messages.factory import message_class

        self.node = rclpy.create_node("bevnext_demo")
        self.found: dict[int, Detections] = {}
        self.drops: dict[str, str] = {}
        self._names = class_names
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        cloud = message_class("sensor_msgs/msg/PointCloud2")
        diagnostics = message_class("diagnostic_msgs/msg/DiagnosticArray")
        self.node.create_subscription(cloud, "/detector/boxes", self._on_boxes, 1000)
        self.node.create_subscription(diagnostics, "/diagnostics", self._on_diagnostics, 10)

    def spin(self, seconds: float) -> None:
        self._executor.spin_once(timeout_sec=seconds)

    def is_heard(self, topic: str) -> bool:
        """Whether somebody listens to ``topic``."""
        return self.node.count_subscribers(topic) > 0

    def _on_boxes(self, message: Any) -> None:
        from bevnext_ros.messages.conversions import CLOUD_FIELDS, cloud_records, stamp_ns

        records = cloud_records(message)
        boxes = np.stack([records[name] for name in CLOUD_FIELDS[:9]], 1)
        labels = records["class"].astype(np.int64)
        stamp = stamp_ns(message.header)
        self.found[stamp] = Detections(boxes, records["score"], labels, self._names, stamp, np.eye(4))

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith(": drops"):
                self.drops = {item.key: item.value for item in status.values if item.value not in ("", "0")}

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()


def start(command: list[str], log: Path) -> subprocess.Popen:
    """A process of this Python in the repository, its output in ``log``."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )


def through_node(
    bag: Path, checkpoint: Path, listener: Listener, count: int, rate: float, folder: Path
) -> None:
    """Play the bag to the node, both in processes of their own, until ``count`` frames came or nothing comes.

    Raises:
        BevnextError: one of the two ended early, or the node did not become active.
    """
    from tqdm import tqdm

    from bevnext_core.classes import ANCHOR_CAMERA
    from bevnext_ros.bags.nuscenes_to_bag import image_topic

    parameters = {**EVERYTHING, **PATIENT, "checkpoint": str(checkpoint.resolve())}
    arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    logs = {name: folder / f"{name}.txt" for name in ("node", "player")}
    processes = {"node": start(["bevnext_ros.node.main", "--ros-args", *arguments], logs["node"])}
    try:
        end = time.monotonic() + START_SECONDS
        while not listener.is_heard(image_topic(ANCHOR_CAMERA)):
            check(processes["node"], "node", logs["node"])
            if time.monotonic() > end:
                raise BevnextError(f"the node was not active after {START_SECONDS:.0f} s: {last(logs['node'])}")
            listener.spin(0.1)
        play = ["bevnext_ros", "play", str(bag), "--rate", f"{rate:.3f}"]
        processes["player"] = start(play, logs["player"])
        with tqdm(total=count, desc="node over DDS", unit="frame", disable=None) as bar:
            heard = time.monotonic()
            while len(listener.found) < count:
                before = len(listener.found)
                listener.spin(0.1)
                bar.update(len(listener.found) - before)
                check(processes["node"], "node", logs["node"])
                if processes["player"].poll() is None or len(listener.found) > before:
                    heard = time.monotonic()
                elif processes["player"].returncode:
                    check(processes["player"], "player", logs["player"])
                if time.monotonic() - heard > SILENT_SECONDS:
                    break
        # a frame too many, and the last diagnostics, would come now
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            listener.spin(0.1)
    finally:
        for process in processes.values():
            stop(process)


def check(process: subprocess.Popen, name: str, log: Path) -> None:
    if process.poll() is not None:
        raise BevnextError(f"the {name} ended with exit code {process.returncode}: {last(log)}")


def last(log: Path) -> str:
    """The last line of a log."""
    return (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


def run(args: argparse.Namespace) -> int:
    """Compare and print the verdict. Raises BevnextError."""
    try:
        import rclpy
    except ImportError as error:
        raise BevnextError(
            f"this needs ROS 2 ({one_line(error)}): `make setup`, or source a distribution's setup.bash first"
        ) from None
    from bevnext_core.datasets.nuscenes_tables import load_tables
    from bevnext_ros.bags.nuscenes_to_bag import convert_scene

    checkpoint = demo_weights(args.checkpoint)
    drive = prepare_drive(args.drive, args.key_frames)
    expected, seconds = detect_directly(drive, checkpoint)
    names = next(iter(expected.values())).class_names
    length = (max(expected) - min(expected)) * 1e-9
    # Slower than it was driven where the network is slow: the queues stay short.
    rate = min(1.0, length / (seconds * len(expected)))
    isolate()
    for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):  # Fast DDS 3 and 2
        os.environ[name] = str(ROOT / "config" / "fastdds_shm.xml")
    rclpy.init()
    with tempfile.TemporaryDirectory(prefix="bevnext_demo_") as folder:
        bag = Path(folder) / drive.scene
        convert_scene(load_tables(drive.dataroot, drive.version), drive.scene, bag, sweeps=True)
        listener = Listener(names)
        try:
            through_node(bag, checkpoint, listener, len(expected), rate, Path(folder))
        finally:
            listener.close()
            rclpy.try_shutdown()
    verdict = compare(listener.found, expected)
    for fault in verdict.faults[:10]:
        print(fault)
    if listener.drops:
        print("the node dropped frames: " + ", ".join(f"{k} {v}" for k, v in listener.drops.items()))
    print(
        f"{verdict.equal} of {verdict.frames} frames equal: {verdict.boxes} boxes, played at {rate:.2f} times the "
        f"recorded speed, largest difference {verdict.largest:.1e}"
    )
    outcome = "DIFFERS from" if verdict.faults else "gives the same boxes as"
    print(f"the node over DDS {outcome} the detector")
    return 1 if verdict.faults else 0


def main() -> int:
    parser = Parser(description=str(__doc__).splitlines()[0])
    add_drive_arguments(parser)
    try:
        return run(parser.parse_args())
    except (BevnextError, OSError) as error:
        print(f"demo_ros: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo_ros: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
