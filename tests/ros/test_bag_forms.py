# SPDX-License-Identifier: Apache-2.0
"""Bags for each distribution: read back with rosbags, and held against the rules by which that rosbag2 parses them.

The rules are written out from rosbag2's sources, at the revisions that docs/ros.md names: ``metadata_io.cpp`` and
``qos.cpp`` of Humble, ``yaml.hpp`` and ``qos.cpp`` of the later ones.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from bevnext_ros.bags.nuscenes_to_bag import add_arguments, run
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import FORMS, BagWriter
from bevnext_ros.messages.conversions import make_transform
from tests.nuscenes_dataroot import write_dataroot

DISTRIBUTIONS = ("humble", "jazzy", "kilted", "rolling")
START = 1_600_000_000_000_000_000


def write(path: Path, **options: str) -> dict[str, Any]:
    """A bag with a latched and a volatile topic -> what its metadata.yaml says."""
    with BagWriter(path, **options) as writer:
        transform = make_transform(writer.factory, "base_link", "eye", (1, 0, 0, 0), (1, 2, 3), START)
        message = writer.factory.make("tf2_msgs/msg/TFMessage", transforms=[transform])
        writer.write("/tf_static", "tf2_msgs/msg/TFMessage", message, START, latched=True)
        writer.write("/tf", "tf2_msgs/msg/TFMessage", message, START + 5)
    return yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]


def check_profile(profile: dict[str, Any], by_name: bool) -> str:
    """``convert<rclcpp::QoS>::decode``: history decides between numbers and names -> the durability's name."""
    names = {
        "history": ["system_default", "keep_last", "keep_all", "unknown"],
        "reliability": ["system_default", "reliable", "best_effort", "unknown"],
        "durability": ["system_default", "transient_local", "volatile", "unknown"],
        "liveliness": ["system_default", "automatic"],
    }
    for key, known in names.items():
        value = profile[key]
        assert (value in known) if by_name else (type(value) is int and 0 <= value < len(known)), (key, value)
    assert 0 <= profile["depth"] < 2**31 and type(profile["avoid_ros_namespace_conventions"]) is bool
    for key in ("deadline", "lifespan", "liveliness_lease_duration"):
        # RMW_FASTRTPS_FOXY_INFINITE, which all of them take for no limit
        assert profile[key] == {"sec": 0x7FFFFFFF, "nsec": 0xFFFFFFFF}
    return profile["durability"] if by_name else names["durability"][profile["durability"]]


def check_metadata(metadata: dict[str, Any], distro: str) -> dict[str, str]:
    """``convert<BagMetadata>::decode`` of a distribution -> durability by topic. Fails where it would throw."""
    version = metadata["version"]
    strings = ["storage_identifier", "compression_format", "compression_mode"]
    durabilities = {}
    assert isinstance(version, int) and metadata["storage_identifier"] in (
        ("sqlite3",) if distro == "humble" else ("sqlite3", "mcap")
    )
    for topic in metadata["topics_with_message_count"]:
        entry = topic["topic_metadata"]
        assert isinstance(topic["message_count"], int)
        fields = ["name", "type", "serialization_format"]
        if distro != "humble" and version >= 7:
            fields.append("type_description_hash")
        assert all(isinstance(entry[name], str) for name in fields)
        profiles = entry["offered_qos_profiles"]
        if distro == "humble" or version < 9:
            assert isinstance(profiles, str), "as<std::string>() of a sequence throws"
            profiles = yaml.safe_load(profiles)
        assert isinstance(profiles, list) and len(profiles) == 1
        by_name = distro != "humble" and isinstance(profiles[0]["history"], str)
        durabilities[entry["name"]] = check_profile(profiles[0], by_name)
    if distro != "humble" and version >= 8:
        strings.append("ros_distro")
    assert all(isinstance(metadata[name], str) for name in strings)
    assert metadata["files"] and metadata["relative_file_paths"]
    assert (metadata["custom_data"] or {}) == {}  # an empty map, or null, of which yaml-cpp iterates nothing
    return durabilities


@pytest.mark.parametrize("distro", DISTRIBUTIONS)
def test_what_is_written_for_a_distribution_and_for_all_of_them_is_parsed_by_it(tmp_path, distro):
    for form in ("any", distro):
        metadata = write(tmp_path / form, distro=form)
        expected = {"/tf_static": "transient_local", "/tf": "volatile"}
        assert check_metadata(metadata, distro) == expected
        with BagReader(tmp_path / form) as bag:
            assert bag.latched == {"/tf_static"} and bag.counts == {"/tf_static": 1, "/tf": 1}
            assert [message.stamp_ns - START for message in bag.messages()] == [0, 5]
    # what rosbag2 looks at inside the file: a profile per topic, as a string
    file = next((tmp_path / "any").glob("*.db3"))
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT name, offered_qos_profiles FROM topics").fetchall()
    assert {name: check_profile(yaml.safe_load(qos)[0], False) for name, qos in rows} == expected


def test_the_check_notices_what_humble_cannot_parse(tmp_path):
    metadata = write(tmp_path / "bag", distro="jazzy")
    with pytest.raises(AssertionError):
        check_metadata(metadata, "humble")
    metadata = write(tmp_path / "mcap", storage="mcap")
    with pytest.raises(AssertionError):
        check_metadata(metadata, "humble")  # its storage is a package of its own there
    assert check_metadata(metadata, "jazzy")


def test_the_command_writes_the_chosen_form(tmp_path):
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    import argparse

    root = write_dataroot(tmp_path / "root", {"scene-0103": 1})
    for name, arguments, version, suffix in (
        ("default", [], 8, "db3"),
        ("humble", ["--ros-distro", "humble"], 8, "db3"),
        ("rolling", ["--ros-distro", "rolling"], 9, "mcap"),
        ("both", ["--ros-distro", "jazzy", "--storage", "sqlite3"], 9, "db3"),
    ):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        args = parser.parse_args(["--dataroot", str(root), "--out", str(tmp_path / name), *arguments])
        assert run(args) == 0
        bag = tmp_path / name / "scene-0103"
        metadata = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        assert metadata["version"] == version and len(list(bag.glob(f"*.{suffix}"))) == 1
    assert set(FORMS) == {"any", *DISTRIBUTIONS}
