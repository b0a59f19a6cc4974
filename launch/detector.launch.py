# SPDX-License-Identifier: Apache-2.0
"""ros2 launch bevnext_ros detector.launch.py checkpoint:=FILE [params:=FILE] [cameras:=...] [bag:=...] [rviz:=true]

`--show-args` lists the arguments. An argument that is left empty keeps the value of the parameter file.
"""

import os
import sys
from pathlib import Path
from typing import List  # noqa: UP035

from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

from bevnext_ros import launch_arguments as given
from bevnext_tools.threads import WAITING
from launch import LaunchDescription

SHARE = get_package_share_directory("bevnext_ros")
LAYOUT = os.path.join(SHARE, "config", "rviz", "detector.rviz")
# Fast DDS 2 (Humble, Iron, Jazzy) reads the second only; Fast DDS 3 reads both, and complains when one file comes twice
PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
BOOL = given.BOOLEANS
TEXTS = List[str]  # noqa: UP006 - list[str] is no type to launch_ros
ARGUMENTS = [
    ("params", os.path.join(SHARE, "config", "detector.yaml"), "parameter file of the node"),
    ("checkpoint", "", "the network's file or name (bevnext weights, or demo); its model comes with it"),
    ("model", "", "model configuration (YAML) that the checkpoint must agree with"),
    ("device", "", "cpu, cuda, cuda:1, ... or auto"),
    ("threads", "", "computing threads; 0: the cores at hand"),
    ("cameras", "", "names in the model's order, a,b,c; or a YAML file with a list of cameras"),
    ("image_topics", "", "one per camera, a,b,c; or a pattern with {camera}"),
    ("camera_info_topics", "", "one per camera, a,b,c; or a pattern with {camera}"),
    ("transport", "", "compressed or raw, of all cameras", "", "compressed", "raw"),
    ("tf_topic", "", "instead of /tf, for the node and RViz; tf: in the namespace"),
    ("tf_static_topic", "", "instead of /tf_static"),
    ("use_sim_time", "", "true: time comes from /clock (the default with bag:=)", "", *BOOL),
    ("name", "detector", "name of the node"),
    ("namespace", "", "namespace of the node, and of RViz' topics"),
    ("autostart", "", "false: the node waits to be configured and activated", "", *BOOL),
    ("respawn", "false", "true: start the node again when it ends", *BOOL),
    ("log_level", "info", "of the node", "debug", "info", "warn", "error", "fatal"),
    ("bag", "", "a bag to play once the node is active"),
    ("rate", "", "times the recorded speed, of the bag"),
    ("loop", "false", "true: play the bag again and again", *BOOL),
    ("rviz", "false", "true: show the boxes in RViz", *BOOL),
    ("shared_memory", "true", "false: do not use the Fast DDS shared-memory profile", *BOOL),
]


def start(context):
    """The actions, once the arguments are known."""
    names = [name for name, *_ in ARGUMENTS]
    given.refuse_unknown(sys.argv, __file__, names)
    value = {name: LaunchConfiguration(name).perform(context) for name in names}
    parameters = given.node_parameters(value)
    # launch_ros reads plain texts as YAML: {camera}/image would be a mapping, a camera named 1 a number
    typed = {
        name: ParameterValue(entry, value_type=TEXTS if isinstance(entry, list) else type(entry))
        for name, entry in parameters.items()
    }
    node = LifecycleNode(
        package="bevnext_ros",
        executable="detector_node",
        name=value["name"],
        namespace=value["namespace"],
        parameters=[given.existing("params", value["params"], Path.is_file), typed],
        ros_arguments=["--log-level", value["log_level"]],
        additional_env={name: text for name, text in WAITING.items() if name not in os.environ},
        respawn=given.is_true(value["respawn"]),
        respawn_delay=2.0,
        output="screen",
    )
    actions = []
    if given.is_true(value["shared_memory"]) and not any(name in os.environ for name in PROFILES):
        profile = os.path.join(SHARE, "config", "fastdds_shm.xml")
        later = (
            os.environ.get("ROS_DISTRO", "jazzy") > "jazzy"
        )  # distributions are named in the alphabet's order
        actions += [SetEnvironmentVariable(name, profile) for name in PROFILES[: 1 if later else 2]]
    command = given.play_command(player(), value)
    if command:
        play = ExecuteProcess(cmd=command, output="screen")
        # a node that is started again becomes active again
        active = OnStateTransition(
            target_lifecycle_node=node, goal_state="active", entities=[play], handle_once=True
        )
        actions.append(RegisterEventHandler(active))
    actions.append(node)
    if given.is_true(value["rviz"]):
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                name="rviz2",
                namespace=value["namespace"],
                arguments=["-d", LAYOUT],
                parameters=[{"use_sim_time": parameters["use_sim_time"]}],
                remappings=given.rviz_remappings(LAYOUT, value),
            )
        )
    return actions


def player():
    """What plays bags: `ros2 bag play`, or `bevnext play` where rosbag2 is not installed."""
    try:
        get_package_prefix("ros2bag")
    except PackageNotFoundError:
        return [ExecutableInPackage(package="bevnext_ros", executable="bevnext"), "play"]
    return ["ros2", "bag", "play"]


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text, choices=choices or None)
        for name, default, text, *choices in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
