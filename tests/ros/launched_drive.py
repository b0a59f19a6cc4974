# SPDX-License-Identifier: Apache-2.0
"""launch_test: the launch file starts a node, then a bag when the node is active; all of the bag is detected.

Started by test_launch.py, with the bag, the parameter file and the detector's log in the environment.
"""

import json
import os
import time
import unittest
from pathlib import Path

import launch_testing
import rclpy
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_testing.actions import ReadyToTest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from launch import LaunchDescription

FOLDER = Path(os.environ["DETECTOR_LAUNCH_TEST"])
PATIENCE = 40.0


@launch_testing.parametrize("autostart", ["true", "false"])
def generate_test_description(autostart):
    log = FOLDER / "steps.jsonl"
    log.write_text("")
    arguments = {"bag": FOLDER / "bag", "params": FOLDER / "params.yaml", "rate": "2", "autostart": autostart}
    source = PythonLaunchDescriptionSource(os.environ["DETECTOR_LAUNCH_FILE"])
    detector = IncludeLaunchDescription(source, launch_arguments=[(k, str(v)) for k, v in arguments.items()])
    return LaunchDescription([detector, ReadyToTest()])


def activate_by_hand(is_playing):
    """Configures and activates; again, if launch was not yet connected when the node told of its activation."""
    rclpy.init()
    node = rclpy.create_node("supervisor")
    client = node.create_client(ChangeState, "/detector/change_state")
    assert client.wait_for_service(PATIENCE)

    def change(transition):
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        rclpy.spin_until_future_complete(node, future, timeout_sec=PATIENCE)
        assert future.result().success

    change(Transition.TRANSITION_CONFIGURE)
    assert not is_playing()
    end = time.monotonic() + PATIENCE
    while not is_playing() and time.monotonic() < end:
        change(Transition.TRANSITION_ACTIVATE)
        again = time.monotonic() + 3
        while not is_playing() and time.monotonic() < again:
            time.sleep(0.1)
        if not is_playing():
            change(Transition.TRANSITION_DEACTIVATE)
    node.destroy_node()
    rclpy.shutdown()


class TestDrive(unittest.TestCase):
    def test_the_whole_bag_is_detected(self, proc_info, autostart):
        proc_info.assertWaitForStartup(process="detector_node", timeout=PATIENCE)
        if autostart == "false":
            activate_by_hand(lambda: any("detector_node" not in name for name in proc_info.process_names()))
        end = time.monotonic() + PATIENCE
        steps = []
        while len(steps) < 4 and time.monotonic() < end:
            time.sleep(0.2)
            steps = [json.loads(line) for line in (FOLDER / "steps.jsonl").read_text().splitlines()]
        assert [step["stamp"] - steps[0]["stamp"] for step in steps] == [i * 500_000_000 for i in range(4)]


@launch_testing.post_shutdown_test()
class TestAfterwards(unittest.TestCase):
    def test_all_ended_well(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info, [0, 130])  # the player is interrupted
