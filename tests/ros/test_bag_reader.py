# SPDX-License-Identifier: Apache-2.0
"""Recordings as they are found: without metadata.yaml, split, cut off, of other tools; read, or a line says why not."""

from __future__ import annotations

import random
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
import zstandard
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.storage import durability, unpacked
from bevnext_ros.bags.writer import BagError
from tests.ros.recorded import (
    FACTORY,
    IMAGE,
    START,
    drive,
    frames,
    transform,
    write_bag,
    write_mcap,
)

FORMS = [{"distro": "any"}, {"distro": "jazzy"}]
WHOLE = len(drive())


def count(path: Path) -> int:
    with BagReader(path) as bag:
        stamps = [message.stamp_ns for message in bag.messages()]
    assert stamps == sorted(stamps)
    return len(stamps)


def refusal(path: Path) -> str:
    """The message of the error that reading ends with: one line."""
    with pytest.raises(BagError) as caught:
        count(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parts(folder: Path, sizes: list[int], suffix: str) -> Path:
    """A split bag: consecutive parts of the drive, named as rosbag2 names them."""
    messages, folder_parts = drive(), folder.with_name("parts")
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        part, messages = messages[:size], messages[size:]
        bag = write_bag(folder_parts / f"p{number}", part, storage="mcap" if suffix == "mcap" else "sqlite3")
        shutil.move(str(next(bag.glob(f"*.{suffix}"))), folder / f"drive_{number}.{suffix}")
    return folder


# ------------------------------------------------------------------------------------------------ metadata.yaml
@pytest.mark.parametrize("form", FORMS)
def test_a_folder_without_metadata_is_read(tmp_path, form):
    bag = write_bag(tmp_path / "bag", drive(), **form)
    (bag / "metadata.yaml").unlink()
    assert count(bag) == WHOLE and len(frames(bag)[0]) == 4


@pytest.mark.parametrize("form", FORMS)
def test_a_lone_file_and_the_metadata_itself_are_read(tmp_path, form):
    bag = write_bag(tmp_path / "bag", drive(), **form)
    file = next(path for path in bag.iterdir() if path.suffix != ".yaml")
    assert count(bag / "metadata.yaml") == count(file) == WHOLE
    odd = file.rename(tmp_path / "a name? with #marks & no suffix")
    assert count(odd) == WHOLE


@pytest.mark.parametrize("suffix", ["mcap", "db3"])
def test_split_bags_are_read_in_order_of_time_whatever_their_names_say(tmp_path, suffix):
    bag = parts(tmp_path / "bag", [20, 5, *[3] * 9, 1000], suffix)
    assert len(list(bag.iterdir())) == 12 and count(bag) == WHOLE
    (bag / f"drive_0.{suffix}").rename(bag / f"z.{suffix}")
    assert count(bag) == WHOLE and len(frames(bag)[0]) == 4


def test_files_that_overlap_in_time_are_merged(tmp_path):
    """A recorder per camera: one file each."""
    for name in ("front", "back", "rest"):
        part = [item for item in drive() if (name in item.topic or name == "rest") and "tf" not in item.topic]
        part = [
            item for item in part if name != "rest" or not ("front" in item.topic or "back" in item.topic)
        ]
        write_mcap(tmp_path / "bag" / f"{name}.mcap", part)
    write_mcap(tmp_path / "bag" / "tf.mcap", [item for item in drive() if "tf" in item.topic])
    assert count(tmp_path / "bag") == len(frames(tmp_path / "bag")[0]) * 12 + 76 + 0 * WHOLE


def test_metadata_that_names_missing_files_or_cannot_be_read_says_what_mends_it(tmp_path):
    bag = write_bag(tmp_path / "a bag", drive())
    metadata = bag / "metadata.yaml"
    content = metadata.read_text()
    metadata.write_text(
        content.replace("relative_file_paths:\n  - a bag.db3", "relative_file_paths:\n  - a_1.db3")
    )
    assert "names a_1.db3, not in" in refusal(bag) and "`ros2 bag reindex '" in refusal(bag)
    for broken in ("", "no bag", "{", "rosbag2_bagfile_information: {relative_file_paths: 3}"):
        metadata.write_text(broken)
        assert f"{metadata} cannot be read" in refusal(bag) and "ros2 bag reindex" in refusal(bag)
    metadata.unlink()
    assert count(bag) == WHOLE


def test_profiles_in_the_metadata_that_differ_from_those_in_the_file_lose_nothing(tmp_path):
    """A reindexed or edited bag: topics are those of the file, whatever metadata.yaml says of them."""
    bag = write_bag(tmp_path / "bag", drive())
    content = yaml.safe_load((bag / "metadata.yaml").read_text())
    for topic in content["rosbag2_bagfile_information"]["topics_with_message_count"]:
        topic["topic_metadata"]["offered_qos_profiles"] = ""
    (bag / "metadata.yaml").write_text(yaml.safe_dump(content))
    assert count(bag) == WHOLE and len(frames(bag)[0]) == 4


def test_what_is_no_bag_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no metadata.yaml, .mcap or .db3" in refusal(tmp_path / "empty")
    write_bag(tmp_path / "scenes" / "one", drive())
    assert "its folders one are bags" in refusal(tmp_path / "scenes")
    (tmp_path / "page.mcap").write_text("<html>not found</html>")
    assert "neither MCAP nor SQLite" in refusal(tmp_path / "page.mcap")
    assert "no such bag" in refusal(tmp_path / "gone")
    (tmp_path / "empty" / "bag_0.mcap").touch()
    assert "is empty: nothing was recorded" in refusal(tmp_path / "empty")


# ------------------------------------------------------------------------------------------------ damage
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_mcap_names_the_command_that_recovers_it(tmp_path, share):
    file = write_mcap(tmp_path / "bag" / "bag_0.mcap", drive())
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    for path in (file, file.parent):
        text = refusal(path)
        assert f"{file} is truncated or damaged" in text
        assert f"`mcap recover {file} -o {file.with_name('bag_0_recovered.mcap')}`" in text


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_database_names_the_command_that_recovers_it(tmp_path, share):
    file = next(write_bag(tmp_path / "bag", drive()).glob("*.db3"))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    text = refusal(tmp_path / "bag")
    assert "truncated or damaged" in text and f"`sqlite3 {file} .recover | sqlite3 " in text


def test_flipped_bytes_are_an_error_or_change_no_more_than_a_message(tmp_path):
    good = write_mcap(tmp_path / "good.mcap", drive()).read_bytes()
    chance = random.Random(2)
    for number in range(60):
        damaged = bytearray(good)
        damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        file = tmp_path / f"{number}.mcap"
        file.write_bytes(damaged)
        try:
            with BagReader(file) as bag:
                assert len(list(bag.messages())) <= WHOLE
        except BagError as error:
            assert "mcap" in str(error) and "\n" not in str(error)


def test_what_a_killed_recorder_left_in_the_write_ahead_log_is_read(tmp_path):
    file = next(write_bag(tmp_path / "bag", drive()).glob("*.db3"))
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(
        "INSERT INTO messages (topic_id, timestamp, data) SELECT topic_id, timestamp, data FROM messages"
    )
    database.commit()
    killed = tmp_path / "killed"
    killed.mkdir()
    for path in file.parent.glob("*.db3*"):
        shutil.copy(path, killed / path.name)
    database.close()
    assert count(killed) == 2 * WHOLE


# ------------------------------------------------------------------------------------------------ other tools
def test_topics_in_other_encodings_stand_beside_those_of_ros(tmp_path):
    foreign = [("/scene", "protobuf", b"\x08\x01"), ("/log", "json", b"{}"), ("/raw", "flatbuffer", b"")]
    file = write_mcap(tmp_path / "bag" / "mixed.mcap", drive(), foreign=foreign, profile="")
    with BagReader(file) as bag:
        assert bag.others == {"/scene": "protobuf", "/log": "json", "/raw": "flatbuffer"}
        assert not set(bag.others) & set(bag.topics)
    assert count(file) == WHOLE and len(frames(file)[0]) == 4
    images = [item for item in drive() if "cam_back/image" not in item.topic]
    topic = "/cam_back/image_raw/compressed"
    mixed = write_mcap(tmp_path / "images.mcap", images, foreign=[(topic, "protobuf", b"")])
    with pytest.raises(BagError, match=rf"{topic} is recorded in protobuf, not in cdr"):
        frames(mixed)
    alone = write_mcap(tmp_path / "foreign.mcap", [], foreign=foreign[:1])
    assert "its messages are in protobuf; those of ROS 2 are in cdr" in refusal(alone)


@pytest.mark.parametrize(
    "options",
    [
        {"use_chunking": False},
        {"index_types": 0},
        {"repeat_channels": False},
        {"repeat_schemas": False},
        {"use_statistics": False},
        {"use_summary_offsets": False},
        {"chunk_size": 1 << 22},
    ],
)
def test_mcap_files_without_chunks_index_or_summary_are_read(tmp_path, options):
    from mcap.writer import IndexType

    if "index_types" in options:
        options = {"index_types": IndexType.NONE}
    file = write_mcap(tmp_path / "bag.mcap", drive(), **options)
    assert count(file) == WHOLE and len(frames(file)[0]) == 4


@pytest.mark.parametrize("mode", list(CompressionMode))
@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("listed", [True, False])
def test_compressed_bags_are_read_with_and_without_metadata(tmp_path, mode, plugin, listed):
    if mode == CompressionMode.STORAGE and plugin == StoragePlugin.SQLITE3:
        return  # rosbag2 has no such
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    connections = {}
    with writer:
        for item in drive():
            if item.topic not in connections:
                connections[item.topic] = writer.add_connection(
                    item.topic, item.kind, typestore=FACTORY.typestore
                )
            data = bytes(FACTORY.typestore.serialize_cdr(item.message, item.kind))
            writer.write(connections[item.topic], item.stamp_ns, data)
    if not listed:
        (tmp_path / "bag" / "metadata.yaml").unlink()
    assert count(tmp_path / "bag") == WHOLE and len(frames(tmp_path / "bag")[0]) == 4


def test_damaged_compressed_messages_and_files_are_one_line(tmp_path):
    magic = b"\x28\xb5\x2f\xfd"
    assert unpacked(zstandard.compress(b"\0\1 cdr")) == b"\0\1 cdr" and unpacked(b"\0\1 cdr") == b"\0\1 cdr"
    with pytest.raises(BagError, match="a compressed message is damaged"):
        unpacked(magic + b"rubbish")
    (tmp_path / "bag.mcap.zstd").write_bytes(magic + b"rubbish")
    assert "the compressed file is damaged or truncated" in refusal(tmp_path / "bag.mcap.zstd")


@pytest.mark.parametrize(
    "profiles, expected",
    [
        ("", ""),
        ("- {history: 1, depth: 1, durability: 1}", "transient_local"),
        ("- {durability: transient_local, made_up: yes}", "transient_local"),
        ("- {durability: 2}\n- {durability: 1}", "transient_local"),
        ("- {durability: volatile, deadline: forever}", "volatile"),
        ("- {durability: best_available}", ""),
        ("- {durability: 0}\n- 7", ""),
        ("{durability: 1}", ""),
        ("42", ""),
        ("- [", ""),
        ("history: keep_last\n\tdepth", ""),
    ],
)
def test_foreign_profiles_are_read_or_taken_for_unknown(tmp_path, profiles, expected):
    assert durability(profiles) == expected
    topic = "/tf_static"
    file = write_mcap(tmp_path / "bag.mcap", drive(), qos={topic: profiles})
    with BagReader(file) as bag:
        assert bag.durabilities[topic] == expected and (topic in bag.latched) == (
            expected == "transient_local"
        )
    assert count(file) == WHOLE


def test_types_without_their_msg_and_unknown_types_are_read(tmp_path):
    foreign = [("/odd", "cdr", b"\0\1\0\0")]  # in CDR, of a type that nobody knows
    file = write_mcap(
        tmp_path / "short.mcap", drive(), foreign=foreign, name=lambda kind: kind.replace("/msg/", "/")
    )
    with BagReader(file) as bag:
        assert bag.topics["/cam_back/image_raw/compressed"] == IMAGE and bag.topics["/odd"] == "foxglove.cdr"
        (odd,) = bag.messages({"/odd"})
        with pytest.raises(BagError, match="/odd at"):
            odd.decode()
    assert len(frames(file)[0]) == 4


def test_a_ros_1_bag_names_the_command_that_converts_it_and_the_command_does(tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    store.register(
        get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage")
    )
    file = tmp_path / "old drive.bag"
    with Ros1Writer(file) as writer:
        connection = writer.add_connection("/tf_static", "tf2_msgs/msg/TFMessage", typestore=store)
        item = transform(START, "base_link", "eye").message
        header = store.types["std_msgs/msg/Header"]
        for one in item.transforms:
            stamp = store.types["builtin_interfaces/msg/Time"](one.header.stamp.sec, one.header.stamp.nanosec)
            one.header = header(seq=0, stamp=stamp, frame_id=one.header.frame_id)
        writer.write(connection, START, store.serialize_ros1(item, "tf2_msgs/msg/TFMessage"))
    text = refusal(file)
    assert "is a ROS 1 bag" in text
    command = shlex.split(text.split("`")[1])
    assert command[0] == "rosbags-convert" and command[2] == str(file)
    subprocess.run([sys.executable, "-m", "rosbags.convert", *command[1:]], check=True, capture_output=True)
    with BagReader(tmp_path / "old drive") as bag:
        (message,) = bag.messages()
        assert message.decode().transforms[0].child_frame_id == "eye"
    (tmp_path / "folder").mkdir()
    file.rename(tmp_path / "folder" / file.name)
    assert "is a ROS 1 bag" in refusal(tmp_path / "folder")
