# SPDX-License-Identifier: Apache-2.0
"""What the ROS 2 package adds to the command ``bevnext``."""

from bevnext_tools.cli.registry import Command

COMMANDS = {
    "nuscenes-to-bag": Command("bevnext_ros.bags.nuscenes_to_bag", "convert nuScenes scenes to ROS 2 bags"),
    "play": Command("bevnext_ros.bags.play", "publish a recorded bag through ROS 2"),
}
EXTENSIONS = {
    "detect-bag": "bevnext_ros.bags.detect:run_detect_bag",
    "evaluate-bag": "bevnext_ros.bags.evaluate:run_evaluate_bag",
}
