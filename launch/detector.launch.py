"""ros2 launch bevnext_ros detector.launch.py checkpoint:=FILE [params:=FILE] [cameras:=...] [bag:=...] [rviz:=true]

`--show-args` lists the arguments. An argument that is left empty keeps the value of the parameter file.
"""

import os

import yaml
from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

SHARE = get_package_share_directory("bevnext_ros")
ARGUMENTS = [
    ("params", os.path.join(SHARE, "config", "detector.yaml"), "parameter file of the node"),
    ("checkpoint", "", "the network's file; its model comes with it"),
    ("model", "", "model configuration (YAML) that the checkpoint must agree with"),
    ("device", "", "cpu, cuda, cuda:1, ... or auto"),
    ("cameras", "", "names in the model's order, a,b,c; or a YAML file with a list of cameras"),
    ("transport", "", "compressed or raw, for all cameras"),
    ("use_sim_time", "", "true: time comes from /clock (the default with bag:=)"),
    ("namespace", "", "namespace of the node"),
    ("log_level", "info", "debug, info, warn or error"),
    ("bag", "", "a bag to play to the node"),
    ("rviz", "false", "true: show the boxes in RViz"),
    ("shared_memory", "true", "false: do not use the Fast DDS shared-memory profile"),
]
CAMERA_KEYS = {
    "name": "cameras",
    "image_topic": "image_topics",
    "camera_info_topic": "camera_info_topics",
    "transport": "transports",
    "frame": "camera_frames",
}


def is_true(text):
    if text.lower() not in ("true", "false", "1", "0", ""):
        raise RuntimeError(f"expected true or false, got '{text}'")
    return text.lower() in ("true", "1")


def camera_parameters(text):
    """Parameters from names with commas, or from a YAML file: a list of {name, image_topic, ...}."""
    if not text.endswith((".yaml", ".yml")):
        return {"cameras": [name.strip() for name in text.split(",")]}
    with open(text, encoding="utf-8") as file:
        cameras = yaml.safe_load(file)
    if not isinstance(cameras, list) or not all(isinstance(c, dict) and "name" in c for c in cameras):
        raise RuntimeError(f"{text}: expected a list of cameras, each with a name")
    parameters = {}
    for key, parameter in CAMERA_KEYS.items():
        given = [camera.get(key) for camera in cameras]
        if any(value is not None for value in given):
            if None in given:
                raise RuntimeError(f"{text}: '{key}' is given for some cameras only")
            parameters[parameter] = given
    unknown = {key for camera in cameras for key in camera} - set(CAMERA_KEYS)
    if unknown:
        raise RuntimeError(f"{text}: unknown keys {sorted(unknown)}; known are {list(CAMERA_KEYS)}")
    return parameters


def start(context):
    """The actions, once the arguments are known."""
    # no shell expands params:=~/rig.yaml
    value = {name: os.path.expanduser(LaunchConfiguration(name).perform(context)) for name, _, _ in ARGUMENTS}
    overrides = {name: value[name] for name in ("checkpoint", "model", "device") if value[name]}
    if value["cameras"]:
        overrides.update(camera_parameters(value["cameras"]))
    if value["transport"]:
        overrides["transports"] = [value["transport"]]
    sim_time = is_true(value["use_sim_time"]) if value["use_sim_time"] else bool(value["bag"])
    overrides["use_sim_time"] = sim_time

    actions = []
    if is_true(value["shared_memory"]) and "FASTDDS_DEFAULT_PROFILES_FILE" not in os.environ:
        profile = os.path.join(SHARE, "config", "fastdds_shm.xml")
        actions.append(SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", profile))
    actions.append(
        Node(
            package="bevnext_ros",
            executable="detector_node",
            name="detector",
            namespace=value["namespace"],
            parameters=[value["params"], overrides],
            arguments=["--ros-args", "--log-level", value["log_level"]],
            output="screen",
        )
    )
    if value["bag"]:
        actions.append(ExecuteProcess(cmd=["ros2", "bag", "play", value["bag"], "--clock"], output="screen"))
    if is_true(value["rviz"]):
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                name="rviz2",
                arguments=["-d", os.path.join(SHARE, "config", "rviz", "detector.rviz")],
                parameters=[{"use_sim_time": sim_time}],
            )
        )
    return actions


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
