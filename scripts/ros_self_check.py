#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether ROS works here: a Detection3DArray and a TFMessage travel from one process to another.

    .venv/bin/python scripts/ros_self_check.py

Uses a domain of its own and the loopback device only, so that it neither sees nor disturbs other nodes.
Ends with one line, and exit code 0 if the messages arrived as they were sent.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

LIMIT_S = 30.0
DETECTIONS, TRANSFORMS = "bevnext_self_check/detections", "bevnext_self_check/transforms"


def isolate() -> None:
    """A domain of its own, this machine only. Humble knows the older of the two settings alone."""
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    if os.environ.get("ROS_DISTRO") == "humble":
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    else:
        os.environ.pop("ROS_LOCALHOST_ONLY", None)
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"


def example():
    """The two messages, every part of them filled."""
    from geometry_msgs.msg import TransformStamped
    from tf2_msgs.msg import TFMessage
    from vision_msgs.msg import Detection3D, Detection3DArray, ObjectHypothesisWithPose

    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = "car", 0.75
    hypothesis.pose.pose.position.x = 12.5
    detection = Detection3D(results=[hypothesis], id="7")
    detection.header.frame_id = "base_link"
    detection.bbox.center.position.y = -3.25
    detection.bbox.center.orientation.z, detection.bbox.center.orientation.w = 0.6, 0.8
    detection.bbox.size.x, detection.bbox.size.y, detection.bbox.size.z = 4.5, 1.75, 1.5
    detections = Detection3DArray(detections=[detection] * 3)
    detections.header.frame_id = "base_link"
    detections.header.stamp.sec, detections.header.stamp.nanosec = 1_533_151_603, 512_404_000
    transform = TransformStamped(child_frame_id="base_link")
    transform.header.frame_id = "map"
    transform.transform.translation.x = 600.125
    return detections, TFMessage(transforms=[transform])


def publish() -> None:
    """The sender: repeats both messages until it is ended by SIGTERM, which shuts rclpy down."""
    import rclpy
    import rclpy.executors
    from tf2_msgs.msg import TFMessage
    from vision_msgs.msg import Detection3DArray

    rclpy.init()
    node = rclpy.create_node("bevnext_self_check_sender")
    detections, transforms = example()
    to_detections = node.create_publisher(Detection3DArray, DETECTIONS, 1)
    to_transforms = node.create_publisher(TFMessage, TRANSFORMS, 1)

    def send() -> None:
        to_detections.publish(detections)
        to_transforms.publish(transforms)

    node.create_timer(0.05, send)
    end = time.monotonic() + 2 * LIMIT_S  # also when nobody ends it
    with contextlib.suppress(rclpy.executors.ExternalShutdownException):
        while rclpy.ok() and time.monotonic() < end:
            rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.try_shutdown()


def stop(process: subprocess.Popen) -> None:
    """End it gently: one that is killed leaves its shared memory behind."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def receive() -> str:
    """The receiver: waits for both messages and compares them; what it says goes on the last line."""
    import rclpy
    from rclpy.utilities import get_rmw_implementation_identifier
    from tf2_msgs.msg import TFMessage
    from vision_msgs.msg import Detection3DArray

    received: dict[str, object] = {}
    rclpy.init()
    node = rclpy.create_node("bevnext_self_check_receiver")
    for name, kind in ((DETECTIONS, Detection3DArray), (TRANSFORMS, TFMessage)):
        node.create_subscription(kind, name, lambda message, name=name: received.update({name: message}), 1)
    sender = subprocess.Popen([sys.executable, __file__, "--publish"], stdin=subprocess.DEVNULL)
    start = time.monotonic()
    try:
        while len(received) < 2:
            if sender.poll() is not None:
                raise RuntimeError(f"the sending process ended with exit code {sender.returncode}")
            if time.monotonic() - start > LIMIT_S:
                raise RuntimeError(f"only {len(received)} of 2 messages arrived in {LIMIT_S:.0f} s")
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        stop(sender)
        node.destroy_node()
        rclpy.shutdown()
    if (received[DETECTIONS], received[TRANSFORMS]) != example():
        raise RuntimeError("a message arrived changed")
    where = os.environ.get("ROS_DISTRO") or "packages of the Python index"
    return f"{where}, {get_rmw_implementation_identifier()}, two processes, {time.monotonic() - start:.1f} s"


def main() -> int:
    if sys.argv[1:] == ["--publish"]:
        publish()
        return 0
    isolate()
    try:
        print(f"ROS environment works: {receive()}")
    except (ImportError, RuntimeError) as error:
        print(f"ROS environment does not work: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
