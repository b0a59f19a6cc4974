# SPDX-License-Identifier: Apache-2.0
"""The files of a ROS 2 bag: where they are, which topics each holds, and their messages in the order of recording.

A file is told by its first bytes, and read alone: what metadata.yaml says about topics is not needed, so that bags
without one, foreign quality-of-service profiles and topics that are not in CDR are no obstacle.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

import yaml
import zstandard
from mcap.exceptions import McapError
from mcap.reader import SeekingReader
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader
from mcap.summary import Summary

from bevnext_core.errors import one_line
from bevnext_ros.bags.writer import BagError

_ZSTD = b"\x28\xb5\x2f\xfd"
MAGIC = {
    b"\x89MCAP0\r\n": "mcap",
    b"SQLite format 3\0": "sqlite3",
    b"#ROSBAG V": "ROS 1",
    b"\x28\xb5\x2f\xfd": "zstd",
}
SUFFIXES = (".mcap", ".db3", ".zstd", ".bag")
Record = tuple[int, int, bytes]
"""Topic's id, time of recording in nanoseconds, data."""


@dataclass(frozen=True)
class RecordedTopic:
    """A topic of one file: ``encoding`` is ``cdr`` for ROS 2; ``durability`` is empty where none was recorded."""

    id: int
    name: str
    kind: str
    encoding: str
    durability: str
    digest: str
    count: int


class BagFile(Protocol):
    """One file of a bag. ``span_ns``: first and last time of recording; ``None`` without messages."""

    topics: list[RecordedTopic]
    span_ns: tuple[int, int] | None

    def records(self, ids: Collection[int], start_ns: int | None) -> Iterator[Record]:
        """Messages of some topics from ``start_ns`` on. Raises BagError when the file is damaged."""


def bag_files(path: Path) -> list[Path]:
    """The files of a bag: those that its metadata.yaml names, else all in its folder, else ``path`` itself.

    Raises:
        BagError: there is none; says what is missing and what to do.
    """
    if not path.exists():
        raise BagError(f"no such bag: {path}")
    if path.name == "metadata.yaml":
        path = path.parent
    if path.is_file():
        return [path]
    listed = path / "metadata.yaml"
    if listed.is_file():
        return _listed_files(listed)
    found = sorted((p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file()), key=_by_number)
    if not found:
        inner = sorted(p.parent.name for p in path.glob("*/metadata.yaml"))
        hint = f"; its folders {', '.join(inner)} are bags" if inner else ""
        raise BagError(f"{path} is no bag: it holds no metadata.yaml, .mcap or .db3{hint}")
    return found


def _listed_files(metadata: Path) -> list[Path]:
    folder = metadata.parent
    reindex = f"`ros2 bag reindex {shlex.quote(str(folder))}` writes it anew; without it the files are read as they are"
    try:
        content = yaml.safe_load(metadata.read_text(encoding="utf-8"))
        names = [
            PurePath(name).name for name in content["rosbag2_bagfile_information"]["relative_file_paths"]
        ]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise BagError(
            f"{metadata} cannot be read ({type(error).__name__}: {one_line(error)}): {reindex}"
        ) from None
    paths = [folder / name if (folder / name).exists() else folder / f"{name}.zstd" for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not path.exists()]
    if missing or not paths:
        raise BagError(f"{metadata} names {', '.join(missing) or 'no file'}, not in {folder}: {reindex}")
    return paths


def _by_number(path: Path) -> list[Any]:
    """Split bags count their files: 2 comes before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def open_file(path: Path, scratch: Path) -> BagFile:
    """Open a file of a bag; one that is compressed as a whole is unpacked into the folder ``scratch``.

    Raises:
        BagError: it is empty, damaged, of ROS 1 or no bag at all; says what mends it.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise BagError(f"{path} cannot be read: {error.strerror}") from None
    if not start:
        raise BagError(
            f"{path} is empty: nothing was recorded into it; move it away to read the bag's other files"
        )
    kind = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), "")
    if kind == "mcap":
        return McapFile(path)
    if kind == "sqlite3":
        return SqliteFile(path)
    if kind == "ROS 1":
        source, target = shlex.quote(str(path)), shlex.quote(str(path.with_suffix("")))
        raise BagError(
            f"{path} is a ROS 1 bag: convert it with "
            f"`rosbags-convert --src {source} --dst {target} --dst-typestore ros2_jazzy`"
        )
    if kind == "zstd":
        unpacked = scratch / path.stem
        with path.open("rb") as packed, unpacked.open("wb") as plain:
            try:
                zstandard.ZstdDecompressor().copy_stream(packed, plain)
            except zstandard.ZstdError as error:
                raise BagError(
                    f"{path}: the compressed file is damaged or truncated: {one_line(error)}"
                ) from None
        return open_file(unpacked, scratch)
    raise BagError(
        f"{path} is no bag: neither MCAP nor SQLite (a folder, a .mcap or a .db3 file is expected)"
    )


class McapFile:
    """An MCAP file. Messages in other encodings than CDR may stand beside those of ROS 2."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._damage(), path.open("rb") as stream:
            stream.seek(-8, os.SEEK_END)
            if not MAGIC.get(stream.read()):
                raise McapError("its end is missing: the recorder was killed, or the copy is incomplete")
            stream.seek(0)
            summary = SeekingReader(stream).get_summary()
            self._indexed = _is_complete(summary)
            if summary and summary.statistics and self._indexed:
                statistics, channels, schemas = summary.statistics, summary.channels, summary.schemas
                counts = statistics.channel_message_counts
                times = (statistics.message_start_time, statistics.message_end_time)
            else:
                channels, schemas, counts, times = self._scan(stream)
        self.span_ns = times if any(counts.values()) else None
        self.topics = [
            RecordedTopic(
                channel.id,
                channel.topic,
                full_name(schemas[channel.schema_id].name) if channel.schema_id in schemas else "",
                channel.message_encoding,
                durability(channel.metadata.get("offered_qos_profiles", "")),
                channel.metadata.get("topic_type_hash", ""),
                counts.get(channel.id, 0),
            )
            for channel in channels.values()
        ]

    def _scan(
        self, stream: Any
    ) -> tuple[dict[int, Channel], dict[int, Schema], dict[int, int], tuple[int, int]]:
        channels: dict[int, Channel] = {}
        schemas: dict[int, Schema] = {}
        counts: dict[int, int] = {}
        first, last = 2**63, 0
        stream.seek(0)
        for record in StreamReader(stream).records:
            if isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Message):
                counts[record.channel_id] = counts.get(record.channel_id, 0) + 1
                first, last = min(first, record.log_time), max(last, record.log_time)
        return channels, schemas, counts, (first, last)

    def records(self, ids: Collection[int], start_ns: int | None) -> Iterator[Record]:
        names = {topic.name for topic in self.topics if topic.id in ids}
        with self._damage(), self._path.open("rb") as stream:
            if self._indexed:
                reader = SeekingReader(stream, validate_crcs=True)
                messages = (message for *_, message in reader.iter_messages(names, starting_at=start_ns))
            else:
                records = StreamReader(stream, validate_crcs=True).records
                messages = (record for record in records if isinstance(record, Message))
            for message in messages:
                if message.channel_id in ids and (start_ns is None or message.log_time >= start_ns):
                    yield message.channel_id, message.log_time, message.data

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        # a cut or flipped byte surfaces as whatever the reader and the decompressors meet first
        except (
            McapError,
            struct.error,
            zstandard.ZstdError,
            LookupError,
            ValueError,
            OSError,
            RuntimeError,
        ) as error:
            mended = self._path.with_stem(f"{self._path.stem}_recovered")
            raise BagError(
                f"{self._path} is truncated or damaged ({one_line(error)}): mend it with "
                f"`mcap recover {shlex.quote(str(self._path))} -o {shlex.quote(str(mended))}`"
            ) from None


def _is_complete(summary: Summary | None) -> bool:
    """Whether a file can be read by its index alone: all parts of the summary are optional."""
    if not (summary and summary.statistics and summary.channels and summary.chunk_indexes):
        return False
    return all(channel.schema_id in {0, *summary.schemas} for channel in summary.channels.values())


class SqliteFile:
    """A SQLite file, of any version of rosbag2."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._damage(), closing(self._connect()) as database:
            columns = {row[1] for row in database.execute("PRAGMA table_info(topics)")}
            wanted = [
                name if name in columns else "''"
                for name in ("offered_qos_profiles", "type_description_hash")
            ]
            counts = dict(database.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id"))
            rows = database.execute(
                f"SELECT id, name, type, serialization_format, {', '.join(wanted)} FROM topics ORDER BY id"
            ).fetchall()
            first, last = database.execute("SELECT MIN(timestamp), MAX(timestamp) FROM messages").fetchone()
        self.span_ns = None if first is None else (first, last)
        self.topics = [
            RecordedTopic(number, name, kind, encoding, durability(qos), digest, counts.get(number, 0))
            for number, name, kind, encoding, qos, digest in rows
        ]

    def _connect(self) -> sqlite3.Connection:
        path = self._path.resolve()
        # what a killed recorder left in a write-ahead log belongs to the bag; without one nothing is written beside it
        log = path.with_name(f"{path.name}-wal").exists()
        return sqlite3.connect(f"{path.as_uri()}?mode=ro{'' if log else '&immutable=1'}", uri=True)

    def records(self, ids: Collection[int], start_ns: int | None) -> Iterator[Record]:
        query = (
            f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({', '.join('?' * len(ids))}) "
            "AND timestamp >= ? ORDER BY timestamp, id"
        )
        with self._damage(), closing(self._connect()) as database:
            yield from database.execute(query, (*ids, -(2**63) if start_ns is None else start_ns))

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            source, mended = (
                shlex.quote(str(self._path)),
                self._path.with_stem(f"{self._path.stem}_recovered"),
            )
            raise BagError(
                f"{self._path} is truncated or damaged ({one_line(error)}): mend it with "
                f"`sqlite3 {source} .recover | sqlite3 {shlex.quote(str(mended))}`"
            ) from None


def durability(profiles: str) -> str:
    """What the publishers of a topic offered: ``transient_local`` if any did, ``volatile``, or empty for unknown.

    Args:
        profiles: YAML as rosbag2 records it; policies by number (to version 8) or by name. Foreign text is unknown.
    """
    try:
        entries = yaml.safe_load(profiles)
    except yaml.YAMLError:
        return ""
    entries = entries if isinstance(entries, list) else []
    found = {str(entry.get("durability")).lower() for entry in entries if isinstance(entry, dict)}
    return (
        "transient_local"
        if found & {"1", "transient_local"}
        else "volatile"
        if found & {"2", "volatile"}
        else ""
    )


def unpacked(data: bytes) -> bytes:
    """A message's CDR bytes, which start with a zero; decompressed where each message was compressed.

    Raises:
        BagError: the compressed bytes are damaged.
    """
    if not data.startswith(_ZSTD):
        return data
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        raise BagError(f"a compressed message is damaged: {one_line(error)}") from None


def full_name(kind: str) -> str:
    """A type's name as ROS 2 has it: other tools leave the ``msg`` out of ``sensor_msgs/msg/Image``."""
    package, _, rest = kind.partition("/")
    return kind if "/" in rest or not rest else f"{package}/msg/{rest}"
