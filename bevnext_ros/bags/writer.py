# SPDX-License-Identifier: Apache-2.0
"""Writing ROS 2 bags without ROS. A bag appears under its name when it is complete."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bevnext_core.errors import BevnextError, one_line
from bevnext_core.files import user_path
from bevnext_ros.bags.types import make_typestore
from bevnext_ros.messages.factory import RosbagsFactory

STORAGES = ("mcap", "sqlite3")


class BagForm(NamedTuple):
    """Version of a bag's metadata.yaml, and the storage that a distribution plays without a further package."""

    version: Literal[8, 9]
    storage: str


_STRING_QOS, _SEQUENCE_QOS = BagForm(8, "sqlite3"), BagForm(9, "mcap")
FORMS = {
    "any": _STRING_QOS,
    "humble": _STRING_QOS,
    "jazzy": _SEQUENCE_QOS,
    "kilted": _SEQUENCE_QOS,
    "rolling": _SEQUENCE_QOS,
}
"""What each distribution writes itself; ``any`` is a form that all of them play. Until version 8 metadata.yaml holds
QoS profiles as a string, which every version of rosbag2 reads; from 9 on as a sequence, which Humble cannot parse."""


class BagError(BevnextError):
    """A bag is missing, unreadable, exists already, or lacks what is needed of it."""


class BagWriter:
    """Context manager that writes one bag folder.

    Written beside ``path`` and moved there at the end; after an error nothing remains.

    Args:
        path: the bag's folder; must not exist. distro: who shall play it, a key of :data:`FORMS`.
        storage: ``mcap`` or ``sqlite3``; empty for that of the distribution.

    Raises:
        BagError: the folder exists, cannot be created, or the distribution or storage is unknown.
    """

    def __init__(self, path: str | Path, distro: str = "any", storage: str = "") -> None:
        self.path = user_path(path)
        if distro not in FORMS:
            raise BagError(f"the ROS distribution must be one of {', '.join(FORMS)}, got '{distro}'")
        if storage and storage not in STORAGES:
            raise BagError(f"the storage must be {' or '.join(STORAGES)}, got '{storage}'")
        if self.path.exists():
            raise BagError(
                f"{self.path} exists: bags are never overwritten; remove it or choose another place"
            )
        self.typestore = make_typestore()
        self.factory = RosbagsFactory(self.typestore)
        self.counts: dict[str, int] = {}
        self._form = BagForm(FORMS[distro].version, storage or FORMS[distro].storage)
        self._connections: dict[str, Any] = {}
        self._folder: Path | None = None
        self._writer: Any = None

    def __enter__(self) -> BagWriter:
        from rosbags.rosbag2 import StoragePlugin, Writer

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}-"))
        except OSError as error:
            raise BagError(f"{self.path} cannot be created: {one_line(error)}") from None
        # the storage file is named after the folder, so the folder has its final name inside a temporary one
        self._writer = Writer(
            self._folder / self.path.name,
            version=self._form.version,
            storage_plugin=StoragePlugin[self._form.storage.upper()],
        )
        self._writer.open()
        return self

    def write(self, topic: str, kind: str, message: Any, stamp_ns: int, latched: bool = False) -> bytes:
        """Write a message at ``stamp_ns`` and return its serialised bytes.

        Args:
            kind: full name of the type. latched: offer transient-local durability on replay.
        """
        data = bytes(self.typestore.serialize_cdr(message, kind))
        self.copy(topic, kind, data, stamp_ns, latched)
        return data

    def copy(self, topic: str, kind: str, data: bytes, stamp_ns: int, latched: bool = False) -> None:
        """Write a message that is serialised already, as :meth:`write` does."""
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._writer.add_connection(
                topic, kind, typestore=self.typestore, offered_qos_profiles=[_qos(latched)]
            )
            self._connections[topic] = connection
        self._writer.write(connection, stamp_ns, data)
        self.counts[topic] = self.counts.get(topic, 0) + 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        assert self._folder is not None
        try:
            self._writer.close()
            if kind is None:
                (self._folder / self.path.name).rename(self.path)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _qos(latched: bool) -> Any:
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST,
        100 if latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )
