# SPDX-License-Identifier: Apache-2.0
"""A rig of cameras on a drive that publishes over DDS, and a node process that it feeds and watches."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyquaternion import Quaternion

from bevnext_core.classes import CAMERAS
from bevnext_core.geometry import rigid
from bevnext_ros.messages.conversions import (
    detection_rows,
    make_camera_info,
    make_compressed_image,
    make_header,
    make_time,
    make_transform,
    stamp_ns,
)
from bevnext_ros.messages.factory import RclpyFactory, message_class

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "config" / "fastdds_shm.xml"
MS, SECOND = 1_000_000, 1_000_000_000
START = 1_700_000_000 * SECOND
NAMES = tuple(name.lower() for name in CAMERAS)
DELAY_MS = dict(zip(NAMES, (-8, 0, 8, 35, 25, 16)))
"""Firing times relative to the front camera, as on a nuScenes car."""
YAW = dict(zip(NAMES, (55, 0, -55, 110, 180, -110)))
SIZES = {"small": (64, 40), "full": (1600, 900)}
OPTICAL = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))


def missing() -> str:
    """Why there is no ROS here; empty when there is."""
    for package in ("rclpy", "vision_msgs", "tf2_msgs"):
        if importlib.util.find_spec(package) is None:
            return f"needs ROS 2: {package} is not installed (`make setup`, or source a distribution)"
    return ""


def profile() -> dict[str, str]:
    """Shared memory for images: Fast DDS 3 reads the first, Fast DDS 2 (Humble, Jazzy) the second alone."""
    return dict.fromkeys(("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"), str(PROFILE))


@functools.cache
def domain() -> str:
    """A DDS domain of this test process's own: it holds the lock of a file for as long as it lives."""
    for step in range(100):
        number = 1 + (os.getpid() + step) % 100
        file = Path(tempfile.gettempdir()) / f"bevnext-test-domain-{os.getuid()}-{number}"
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return str(number)
    raise RuntimeError("a hundred processes test with DDS here already")


def environment() -> dict[str, str]:
    """The process's own DDS domain, on this machine only."""
    return {
        "ROS_DOMAIN_ID": domain(),
        "ROS_LOCALHOST_ONLY": "1",
        **profile(),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "PYTHONUNBUFFERED": "1",
    }


def ego_pose(stamp: int) -> np.ndarray:
    """odom <- base_link of a car that turns while it drives; closed form."""
    t = (stamp - START) / SECOND
    yaw = 0.5 * t
    pose = np.eye(4)
    pose[:3, :3] = Quaternion(axis=[0, 0, 1], radians=yaw).rotation_matrix
    pose[:3, 3] = 20 * np.sin(yaw), 20 * (1 - np.cos(yaw)), 0.1 * t
    return pose


def camera_pose(camera: str) -> np.ndarray:
    """base_link <- optical frame."""
    turn = Quaternion(axis=[0, 0, 1], degrees=YAW[camera])
    return rigid((turn * OPTICAL).elements, np.array(turn.rotate([1.5, 0, 0])) + (0, 0, 1.5))


@functools.lru_cache(maxsize=64)
def jpeg(size: tuple[int, int], seed: int) -> bytes:
    """A picture that compresses about as a street does."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (max(size[1] // 8, 2), max(size[0] // 8, 2), 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


class Rig:
    """Publishes six cameras, calibrations and TF; starts the node, and collects what it says.

    Args:
        wait: seconds that the stand-in detector takes per frame. parameters: of the node.
        images: ``small`` or ``full`` size. command: another program than the node with the stand-in.
        tf_topic: where the rig says its transforms, remapped for the node.
    """

    def __init__(
        self,
        folder: Path,
        wait: float,
        parameters: dict[str, Any],
        images: str,
        command: list[str] | None,
        number: int = 0,
        tf_topic: str = "/tf",
    ) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile

        self.size = SIZES[images]
        self.factory = RclpyFactory()
        self.log = folder / f"steps{number}.jsonl"
        self.log.touch()
        self.output = folder / f"node{number}.txt"
        self.node = rclpy.create_node(f"rig_{os.getpid()}_{number}")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.detections: list[Any] = []
        self.boxes: list[Any] = []
        self.markers: list[Any] = []
        self.latencies: list[list[float]] = []
        self.diagnostics: list[dict[str, Any]] = []
        self.wanted: list[Any] = []
        self.clock: Any = None
        values = {
            "image_reliability": "reliable",
            "image_depth": 100,
            "score_threshold": 0.0,
            "diagnostics_period": 0.2,
            "overload": "queue",
            "overload_queue": 100,
            # where deadlines are not what is tested, a busy machine must not matter
            "image_deadline": 1.0,
            "transform_deadline": 5.0,
            **parameters,
        }
        image, info = (
            message_class("sensor_msgs/msg/CompressedImage"),
            message_class("sensor_msgs/msg/CameraInfo"),
        )
        tf = message_class("tf2_msgs/msg/TFMessage")
        raw = message_class("sensor_msgs/msg/Image")
        transports = values.get("transports", ["compressed"])
        self.raw = {name: (transports * 6)[i] == "raw" for i, name in enumerate(NAMES)}
        given = values.get("image_topics", [""])[0].replace("{camera}", "{0}").lstrip("/")
        patterns = {
            name: given or "{0}/image_raw" + ("" if is_raw else "/compressed")
            for name, is_raw in self.raw.items()
        }
        self.images = {
            name: self.node.create_publisher(
                raw if self.raw[name] else image, "/" + patterns[name].format(name), 100
            )
            for name in NAMES
        }
        self.infos = {name: self.node.create_publisher(info, f"/{name}/camera_info", 100) for name in NAMES}
        self.tf = self.node.create_publisher(tf, values.get("tf_topic", tf_topic), 100)
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        static = values.get("tf_static_topic", f"{tf_topic}_static")
        self.tf_static = self.node.create_publisher(tf, static, latched)
        self.node.create_subscription(
            message_class("diagnostic_msgs/msg/DiagnosticArray"), "/diagnostics", self._on_diagnostics, 100
        )
        self.subscribe()
        remap = [] if tf_topic == "/tf" else [f"/tf:={tf_topic}", f"/tf_static:={tf_topic}_static"]
        self.process = self._start_process(wait, values, command, remap)

    def subscribe(self) -> None:
        """Want all outputs."""
        for topic, kind, target in (
            ("detections", "vision_msgs/msg/Detection3DArray", self.detections),
            ("boxes", "sensor_msgs/msg/PointCloud2", self.boxes),
            ("markers", "visualization_msgs/msg/MarkerArray", self.markers),
        ):
            self.wanted.append(
                self.node.create_subscription(message_class(kind), f"/detector/{topic}", target.append, 500)
            )
        self.wanted.append(
            self.node.create_subscription(
                message_class("std_msgs/msg/Float64MultiArray"),
                "/detector/latency",
                lambda message: self.latencies.append(list(message.data)),
                500,
            )
        )

    def unsubscribe(self) -> None:
        """Want nothing."""
        for subscription in self.wanted:
            self.node.destroy_subscription(subscription)
        self.wanted.clear()

    def _start_process(
        self, wait: float, values: dict[str, Any], command: list[str] | None, remap: list[str]
    ) -> subprocess.Popen:
        command = command or [sys.executable, "-m", "tests.ros.node_process"]
        if command[-1].startswith("tests.ros."):  # a stand-in's process: it is told where to log, and to wait
            command = [*command, str(self.log), str(wait)]
        arguments = ["--ros-args", *(part for rule in remap for part in ("-r", rule))]
        for name, value in values.items():
            arguments += ["-p", f"{name}:={json.dumps(value)}"]
        return subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment()},
            stdin=subprocess.DEVNULL,
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
        )

    # ---------------------------------------------------------------------------------------- waiting
    def spin(self, seconds: float) -> None:
        """Take messages for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=min(left, 0.05))

    def until(self, condition: Callable[[], Any], timeout: float = 60.0, what: str = "") -> None:
        """Take messages until ``condition``; fails with the node's output. The time is for what never happens."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"timed out: {what}\n{self.status()}\n{self.output.read_text()[-3000:]}")
            self.executor.spin_once(timeout_sec=0.02)

    def ready(self, infos: bool = True) -> None:
        """Wait until the node is active and connected; give it static transforms and camera infos."""
        publishers = [*self.images.values(), *self.infos.values(), self.tf, self.tf_static]
        self.until(lambda: all(p.get_subscription_count() for p in publishers), what="the node to subscribe")
        self.until(
            lambda: all(
                self.node.count_publishers(f"/detector/{t}") for t in ("detections", "boxes", "latency")
            ),
            what="the node's outputs",
        )
        self.until(lambda: self.value("node", "state") == "active", what="an active node")
        self.spin(0.3)
        self.publish_static()
        for camera in NAMES if infos else ():
            self.publish_info(camera)
        self.spin(0.1)

    # ---------------------------------------------------------------------------------------- publishing
    def publish_static(self, **poses: np.ndarray) -> None:
        items = [self._transform("base_link", name, poses.get(name, camera_pose(name)), 0) for name in NAMES]
        self.tf_static.publish(self.factory.make("tf2_msgs/msg/TFMessage", transforms=items))

    def _transform(self, parent: str, child: str, pose: np.ndarray, stamp: int) -> Any:
        rotation = Quaternion(matrix=pose[:3, :3], rtol=1e-5, atol=1e-5).elements
        return make_transform(self.factory, parent, child, rotation, pose[:3, 3], stamp)

    def publish_pose(self, stamp: int, pose: np.ndarray | None = None) -> None:
        self.publish_transform("odom", "base_link", ego_pose(stamp) if pose is None else pose, stamp)

    def publish_transform(self, parent: str, child: str, pose: np.ndarray, stamp: int) -> None:
        items = [self._transform(parent, child, pose, stamp)]
        self.tf.publish(self.factory.make("tf2_msgs/msg/TFMessage", transforms=items))

    def publish_poses(self, start: int, end: int, step_ms: int = 20) -> None:
        for stamp in range(start, end + 1, step_ms * MS):
            self.publish_pose(stamp)

    def intrinsics(self) -> np.ndarray:
        width, height = self.size
        return np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])

    def publish_info(self, camera: str, intrinsics: np.ndarray | None = None, **changes: Any) -> None:
        k = self.intrinsics() if intrinsics is None else intrinsics
        message = make_camera_info(self.factory, START, camera, k, changes.pop("size", self.size))
        for name, value in changes.items():
            setattr(message, name, value)
        self.infos[camera].publish(message)

    def publish_image(self, camera: str, stamp: int, data: bytes | None = None, **changes: Any) -> None:
        if self.raw[camera]:
            rows = np.full((self.size[1], self.size[0], 3), stamp // MS % 251, np.uint8)
            fields = {
                "height": self.size[1],
                "width": self.size[0],
                "encoding": "rgb8",
                "step": self.size[0] * 3,
                "data": self.factory.data(rows.tobytes() if data is None else data),
                **changes,
            }
            header = make_header(self.factory, stamp, camera)
            self.images[camera].publish(self.factory.make("sensor_msgs/msg/Image", header=header, **fields))
            return
        data = jpeg(self.size, NAMES.index(camera)) if data is None else data
        self.images[camera].publish(make_compressed_image(self.factory, stamp, camera, data))

    def sweep(self, stamp: int, skip: tuple[str, ...] = (), poses: bool = True, pause: bool = True) -> None:
        """One image of every camera around ``stamp`` (the front camera's), after the poses it needs."""
        if poses:
            self.publish_poses(stamp - 20 * MS, stamp + 40 * MS)
        for camera, delay in sorted(DELAY_MS.items(), key=lambda item: item[1]):
            if camera not in skip:
                self.publish_image(camera, stamp + delay * MS)
        if pause:
            self.spin(0.02)

    def drive(self, count: int, first: int = 0, interval_ms: int = 100, **more: Any) -> list[int]:
        """Sweeps number ``first``, ``first + 1``, ...; returns their stamps."""
        stamps = [START + (first + i) * interval_ms * MS for i in range(count)]
        for stamp in stamps:
            self.sweep(stamp, **more)
        return stamps

    def publish_clock(self, stamp: int) -> None:
        if self.clock is None:
            self.clock = self.node.create_publisher(message_class("rosgraph_msgs/msg/Clock"), "/clock", 10)
            self.until(self.clock.get_subscription_count, what="the node to listen to the clock")
        self.clock.publish(self.factory.make("rosgraph_msgs/msg/Clock", clock=make_time(self.factory, stamp)))

    # ---------------------------------------------------------------------------------------- watching
    def _on_diagnostics(self, message: Any) -> None:
        entry: dict[str, Any] = {"stamp": stamp_ns(message.header)}
        for status in message.status:
            level = status.level if isinstance(status.level, int) else status.level[0]
            values = {item.key: item.value for item in status.values}
            entry[status.name.split(": ")[1]] = {"level": level, "message": status.message, "values": values}
        self.diagnostics.append(entry)

    def status(self, name: str = "") -> Any:
        """The newest diagnostics, all or one status."""
        newest = self.diagnostics[-1] if self.diagnostics else {}
        return newest.get(name, {}) if name else newest

    def value(self, status: str, key: str) -> str:
        return self.status(status).get("values", {}).get(key, "")

    def drops(self) -> dict[str, int]:
        """Frames dropped, by cause."""
        values = self.status("drops").get("values", {})
        return {k: int(v) for k, v in values.items() if not k.startswith("transforms_") and k != "last_fault"}

    def fresh(self) -> None:
        """Wait for diagnostics that were made after now."""
        count = len(self.diagnostics)
        self.until(lambda: len(self.diagnostics) >= count + 2, what="diagnostics")

    def accounted(self) -> bool:
        """Whether every frame that the node saw is published, counted under a cause, or in flight."""
        values = self.status("node")["values"]
        seen, published, flying = (int(values[f"frames_{k}"]) for k in ("seen", "published", "in_flight"))
        return seen == published + flying + sum(self.drops().values())

    def stamps(self) -> list[int]:
        """Stamps of the detections received."""
        return [stamp_ns(message.header) for message in self.detections]

    def rows(self, index: int) -> np.ndarray:
        return np.array([box for box, _, _ in detection_rows(self.detections[index])])

    def steps(self) -> list[dict[str, Any]]:
        """What the detector was given."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def alive(self) -> bool:
        return self.process.poll() is None

    def call(self, transition: int) -> bool:
        """A lifecycle transition by its service."""
        from lifecycle_msgs.srv import ChangeState

        client = self.node.create_client(ChangeState, "/detector/change_state")
        try:
            self.until(client.service_is_ready, what="the life cycle's service")
            request = ChangeState.Request()
            request.transition.id = transition
            future = client.call_async(request)
            self.until(future.done, what="a transition")
            return bool(future.result().success)
        finally:
            self.node.destroy_client(client)

    def stop(self, *signals: int, gap: float = 0.05, timeout: float = 60.0) -> int:
        """Send signals, wait for the end -> exit code."""
        for number in signals or (signal.SIGINT,):
            if self.alive():
                self.process.send_signal(number)
            time.sleep(gap)
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.alive():
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.executor.remove_node(self.node)
        self.executor.shutdown()
        self.node.destroy_node()
