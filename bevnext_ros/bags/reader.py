"""Reading ROS 2 bags (MCAP or SQLite) without ROS."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevnext_core.errors import one_line
from bevnext_ros.bags.types import make_typestore
from bevnext_ros.bags.writer import BagError


@dataclass(frozen=True)
class BagMessage:
    """One recorded message: ``stamp_ns`` is the time of recording, ``data`` the CDR bytes."""

    topic: str
    kind: str
    stamp_ns: int
    data: bytes

    def decode(self) -> Any:
        """The message. Raises BagError when the bytes do not fit the type."""
        try:
            return make_typestore().deserialize_cdr(self.data, self.kind)
        except Exception as error:  # damaged bytes surface as whatever the decoder meets first
            raise BagError(
                f"{self.topic} at {self.stamp_ns} ns: not a valid {self.kind}: {one_line(error)}"
            ) from None


class BagReader:
    """Context manager over one bag (its folder, or a single ``.mcap`` or ``.db3`` file).

    Raises:
        BagError: missing or unreadable.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._reader: Any = None

    def __enter__(self) -> BagReader:
        from rosbags.rosbag2 import Reader, ReaderError

        try:
            self._reader = Reader(self.path)
            self._reader.open()
        except FileNotFoundError:
            raise BagError(f"no such bag: {self.path}") from None
        except (ReaderError, OSError, ValueError, KeyError) as error:
            raise BagError(f"{self.path}: cannot be read as a ROS 2 bag: {one_line(error)}") from None
        return self

    def __exit__(self, *unused: object) -> None:
        self._reader.close()

    @property
    def topics(self) -> dict[str, str]:
        """Type of each topic."""
        return {connection.topic: connection.msgtype for connection in self._reader.connections}

    @property
    def counts(self) -> dict[str, int]:
        """Messages of each topic."""
        return {name: info.msgcount for name, info in self._reader.topics.items()}

    @property
    def hashes(self) -> dict[str, str]:
        """Type hash (RIHS01) recorded with each topic."""
        return {connection.topic: connection.digest for connection in self._reader.connections}

    @property
    def latched(self) -> set[str]:
        """Topics that were offered with transient-local durability."""
        return {
            connection.topic
            for connection in self._reader.connections
            if any(qos.durability.name == "TRANSIENT_LOCAL" for qos in connection.ext.offered_qos_profiles)
        }

    @property
    def span_ns(self) -> tuple[int, int]:
        """First and last time of recording."""
        return self._reader.start_time, self._reader.end_time

    def messages(self, topics: Collection[str] = (), start_ns: int | None = None) -> Iterator[BagMessage]:
        """Messages in the order of recording, of all topics or of some.

        Raises:
            BagError: the bag is damaged.
        """
        from rosbags.rosbag2 import ReaderError

        connections = [c for c in self._reader.connections if not topics or c.topic in topics]
        if not connections:
            return
        try:
            for connection, stamp_ns, data in self._reader.messages(connections, start=start_ns):
                yield BagMessage(connection.topic, connection.msgtype, stamp_ns, bytes(data))
        except (ReaderError, OSError, ValueError) as error:
            raise BagError(f"{self.path}: the bag is damaged: {one_line(error)}") from None
