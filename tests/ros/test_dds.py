# SPDX-License-Identifier: Apache-2.0
"""What travels: the messages that are built, their hashes, the shared-memory profile, two processes.

What needs no rclpy runs everywhere: the message definitions, the profile's contents.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from tests.ros import harness

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = sorted((ROOT / "ros_msgs").glob("*/msg/*.msg"))

# The hashes that a distribution's own packages carry.
OFFICIAL_HASHES = {
    "vision_msgs/msg/Detection3DArray": (
        "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018"
    ),
    "tf2_msgs/msg/TFMessage": "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
}


@pytest.fixture
def ros():
    if reason := harness.missing():
        pytest.skip(reason)


# --- messages --------------------------------------------------------------------------------------------


def message_name(path):
    return f"{path.parents[1].name}/msg/{path.stem}"


@pytest.fixture(scope="module")
def typestore():
    """The standard messages, and the repository's own definitions of the others."""
    store = get_typestore(Stores.ROS2_KILTED)
    official_tf = store.hash_rihs01("tf2_msgs/msg/TFMessage")
    assert official_tf == OFFICIAL_HASHES["tf2_msgs/msg/TFMessage"]
    types = {}
    for path in MESSAGES:
        types |= get_types_from_msg(path.read_text(), message_name(path))
    types.pop("tf2_msgs/msg/TFMessage")
    store.register(types)
    return store


def test_message_definitions_have_the_official_hashes(typestore):
    assert {message_name(path) for path in MESSAGES} == {
        "tf2_msgs/msg/TFMessage",
        "vision_msgs/msg/BoundingBox3D",
        "vision_msgs/msg/Detection3D",
        "vision_msgs/msg/Detection3DArray",
        "vision_msgs/msg/ObjectHypothesis",
        "vision_msgs/msg/ObjectHypothesisWithPose",
    }
    # the array's hash covers the four others
    name = "vision_msgs/msg/Detection3DArray"
    assert typestore.hash_rihs01(name) == OFFICIAL_HASHES[name]
    transforms = (ROOT / "ros_msgs" / "tf2_msgs" / "msg" / "TFMessage.msg").read_text()
    types = get_types_from_msg(transforms, "tf2_msgs/msg/TFMessage")
    assert types["tf2_msgs/msg/TFMessage"] == typestore.fielddefs["tf2_msgs/msg/TFMessage"]


def test_colcon_does_not_see_the_messages():
    """In a workspace they would shadow a distribution's own packages."""
    assert (ROOT / "ros_msgs" / "COLCON_IGNORE").is_file()
    for package in {path.parents[1] for path in MESSAGES}:
        manifest = ElementTree.parse(package / "package.xml").getroot()
        assert manifest.findtext("name") == package.name
        listed = set(re.findall(r'"(msg/\w+\.msg)"', (package / "CMakeLists.txt").read_text()))
        assert listed == {f"msg/{path.name}" for path in package.glob("msg/*.msg")}


@pytest.mark.ros
@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_installed_messages_have_the_hash_that_rosbags_computes(ros, path, typestore):
    name = message_name(path)
    package, _, message = name.split("/")
    spec = importlib.util.find_spec(package)
    assert spec, f"{package} is not installed"
    for prefix in Path(spec.origin).parents:
        description = prefix / "share" / package / "msg" / f"{message}.json"
        if description.is_file():
            break
    else:
        pytest.skip(f"{package} was built without type descriptions (before Iron)")
    entries = json.loads(description.read_text())["type_hashes"]
    (installed,) = [entry["hash_string"] for entry in entries if entry["type_name"] == name]
    assert installed == typestore.hash_rihs01(name)


# --- DDS -------------------------------------------------------------------------------------------------


def test_shared_memory_profile():
    root = ElementTree.parse(harness.PROFILE).getroot()
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
    transports = {element.findtext("transport_id"): element for element in root.iter("transport_descriptor")}
    kinds = {name: element.findtext("type") for name, element in transports.items()}
    assert sorted(kinds.values()) == ["SHM", "UDPv4"]
    memory = next(element for element in transports.values() if element.findtext("type") == "SHM")
    assert int(memory.findtext("segment_size")) == 128 * 2**20
    assert int(memory.findtext("maxMessageSize")) == 8 * 2**20
    participant = root.find("participant")
    assert participant.get("is_default_profile") == "true"
    assert {element.text for element in participant.iter("transport_id")} == set(kinds)


@pytest.mark.ros
def test_self_check(ros):
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "ros_self_check.py"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("ROS environment works: ")


@pytest.mark.ros
def test_self_check_without_ros_is_one_line(ros):
    result = subprocess.run(
        # -S: no site packages, hence no rclpy
        [sys.executable, "-S", ROOT / "scripts" / "ros_self_check.py"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("ROS environment does not work: ") and result.stderr.count("\n") == 1


@pytest.mark.ros
def test_shared_memory_profile_is_used(ros):
    """With the profile, a publishing process maps a shared-memory segment of at least 128 MB."""
    if "rmw_fastrtps" not in os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps"):
        pytest.skip("another DDS implementation is chosen")

    def largest_segment(**settings):
        env = os.environ | {"ROS_DOMAIN_ID": harness.domain(), **settings}
        sender = subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "ros_self_check.py", "--publish"], env=env
        )
        try:
            largest, end = 0, time.monotonic() + 60
            while time.monotonic() < end and not largest:
                time.sleep(0.3)
                for line in Path(f"/proc/{sender.pid}/maps").read_text().splitlines():
                    if re.search(r"/dev/shm/fast(dds|rtps)_[0-9a-f]+$", line):
                        low, high = (int(part, 16) for part in line.split()[0].split("-"))
                        largest = max(largest, high - low)
            return largest
        finally:
            sender.terminate()
            sender.wait(timeout=60)

    assert 0 < largest_segment() < 16 * 2**20
    assert largest_segment(**harness.profile()) >= 128 * 2**20


def test_whoever_names_the_profile_of_one_fast_dds_names_the_other_s():
    """Fast DDS 3 reads FASTDDS_..., Fast DDS 2 (Humble, Jazzy) reads FASTRTPS_... only."""
    folders = ("bevnext_benchmarks", "bevnext_ros", "config", "docs", "launch", "scripts", "tests")
    files = [ROOT / "README.md", *(path for name in folders for path in (ROOT / name).rglob("*.*"))]
    named = {}
    for path in files:
        if path.suffix in (".md", ".py", ".xml", ".yaml"):
            found = set(re.findall(r"FAST(\w+)_DEFAULT_PROFILES_FILE", path.read_text()))
            if found:
                named[path.name] = found
    assert named.keys() >= {"demo_ros.py", "ros.md"}
    assert all(found == {"DDS", "RTPS"} for found in named.values()), named


def test_no_two_who_ask_have_one_domain():
    taken = [harness.domain(), *(harness.domain.__wrapped__() for _ in range(2))]
    assert len(set(taken)) == 3 and all(1 <= int(number) <= 100 for number in taken)


@pytest.mark.ros
def test_type_hashes_on_the_wire(ros, typestore):
    """What other nodes are told, in a process of its own (rclpy starts DDS threads)."""
    code = (
        "import sys, time, rclpy\n"
        "from vision_msgs.msg import Detection3DArray\n"
        "from tf2_msgs.msg import TFMessage\n"
        "rclpy.init()\n"
        "node = rclpy.create_node('hashes')\n"
        "for kind in (Detection3DArray, TFMessage):\n"
        "    publisher = node.create_publisher(kind, kind.__name__, 1)\n"
        "    for _ in range(100):\n"
        "        infos = node.get_publishers_info_by_topic(kind.__name__)\n"
        "        if infos: break\n"
        "        time.sleep(0.05)\n"
        "    print(infos[0].topic_type, getattr(infos[0], 'topic_type_hash', None))\n"
        "rclpy.shutdown()\n"
    )
    env = os.environ | {"ROS_DOMAIN_ID": harness.domain()}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    told = dict(line.split() for line in result.stdout.splitlines()[-2:])
    if set(told.values()) == {"None"}:
        pytest.skip("this distribution has no type hashes (before Iron)")
    assert told == OFFICIAL_HASHES
