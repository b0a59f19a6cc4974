# SPDX-License-Identifier: Apache-2.0
"""Reading ROS 2 bags (MCAP or SQLite) without ROS."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bevnext_core.errors import one_line
from bevnext_core.files import user_path
from bevnext_ros.bags.storage import BagFile, RecordedTopic, bag_files, open_file, unpacked
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
    """Context manager over one bag: its folder (with metadata.yaml or without), or one of its files.

    Topics that are not in CDR are left out, and named in :attr:`others`. Split files are read as one.

    Raises:
        BagError: missing or unreadable; says what mends it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self.others: dict[str, str] = {}
        """Encoding of each topic that is recorded in another one than CDR only."""
        self._files: list[BagFile] = []
        self._topics: list[RecordedTopic] = []

    def __enter__(self) -> BagReader:
        self._scratch = tempfile.TemporaryDirectory(prefix="bevnext-bag-")
        try:
            files = [open_file(path, Path(self._scratch.name)) for path in bag_files(self.path)]
            self._files = sorted(files, key=lambda file: file.span_ns or (0, 0))
            topics = [topic for file in self._files for topic in file.topics]
            self._topics = [topic for topic in topics if topic.encoding == "cdr"]
            self.others = {topic.name: topic.encoding for topic in topics if topic.name not in self.topics}
            if topics and not self._topics:
                encodings = ", ".join(sorted(set(self.others.values())))
                raise BagError(f"{self.path}: its messages are in {encodings}; those of ROS 2 are in cdr")
        except BaseException:
            self._scratch.cleanup()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self._scratch.cleanup()

    @property
    def topics(self) -> dict[str, str]:
        """Type of each topic."""
        return {topic.name: topic.kind for topic in reversed(self._topics)}

    @property
    def counts(self) -> dict[str, int]:
        """Messages of each topic."""
        counts = dict.fromkeys(sorted(self.topics), 0)
        for topic in self._topics:
            counts[topic.name] += topic.count
        return counts

    @property
    def hashes(self) -> dict[str, str]:
        """Type hash (RIHS01) recorded with each topic."""
        return {topic.name: topic.digest for topic in self._topics}

    @property
    def durabilities(self) -> dict[str, str]:
        """What each topic was offered with: ``transient_local`` if by anybody, ``volatile``, or empty: not recorded."""
        order = ["", "volatile", "transient_local"]
        found: dict[str, str] = {}
        for topic in self._topics:
            found[topic.name] = max(found.get(topic.name, ""), topic.durability, key=order.index)
        return found

    @property
    def latched(self) -> set[str]:
        """Topics that were offered with transient-local durability."""
        return {name for name, durability in self.durabilities.items() if durability == "transient_local"}

    @property
    def span_ns(self) -> tuple[int, int]:
        """First and last time of recording; (0, 0) without messages."""
        spans = [file.span_ns for file in self._files if file.span_ns]
        return (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else (0, 0)

    def messages(self, topics: Collection[str] = (), start_ns: int | None = None) -> Iterator[BagMessage]:
        """Messages in the order of recording, of all topics or of some, from ``start_ns`` on.

        Raises:
            BagError: the bag is damaged.
        """
        group: list[BagFile] = []
        end_ns = 0
        for file in self._files:
            if file.span_ns is None:
                continue
            if group and file.span_ns[0] > end_ns:
                yield from self._merged(group, topics, start_ns)
                group = []
            group.append(file)
            end_ns = max(end_ns, file.span_ns[1])
        yield from self._merged(group, topics, start_ns)

    def _merged(
        self, files: list[BagFile], topics: Collection[str], start_ns: int | None
    ) -> Iterator[BagMessage]:
        """Files that overlap in time, as one."""

        def of(file: BagFile) -> Iterator[BagMessage]:
            wanted = {
                topic.id: partial(BagMessage, topic.name, topic.kind)
                for topic in file.topics
                if topic.encoding == "cdr" and (not topics or topic.name in topics)
            }
            for number, stamp_ns, data in file.records(wanted, start_ns) if wanted else ():
                yield wanted[number](stamp_ns, unpacked(data))

        return heapq.merge(*(of(file) for file in files), key=lambda message: message.stamp_ns)
