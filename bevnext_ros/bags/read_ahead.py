# SPDX-License-Identifier: Apache-2.0
"""What a recording says later than it is needed: calibrations, static transforms, poses; read ahead of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bevnext_ros.bags.reader import BagMessage, BagReader
from bevnext_ros.bags.writer import BagError
from bevnext_ros.messages.conversions import calibration_from_camera_info
from bevnext_ros.streams.frame_builder import PosedFrame
from bevnext_ros.streams.rig_stream import RigStream

Handlers = dict[str, tuple[str, str]]
"""What to do with each topic that is needed: {topic: (kind, camera)}; kinds are image, info, tf and tf_static."""


class ReadAhead:
    """Gives a stream what its frames wait for, from further on in the bag.

    A camera's first usable calibration and the first transform of each static frame hold from the beginning; later
    ones from when they were recorded. Poses keep pace with the recording, and are read on while a frame waits for them.

    Args:
        warn: takes a line about a message that cannot be read.
    """

    def __init__(
        self, bag: BagReader, stream: RigStream, handlers: Handlers, warn: Callable[[str], None]
    ) -> None:
        self._bag = bag
        self._stream = stream
        self._handlers = handlers
        self._warn = warn
        self._poses = self._messages("tf")
        self._next: tuple[BagMessage, Any] | None = next(self._poses, None)

    def _messages(self, kind: str) -> Iterator[tuple[BagMessage, Any]]:
        topics = {topic for topic, (its_kind, _) in self._handlers.items() if its_kind == kind}
        for message in self._bag.messages(topics) if topics else ():
            try:
                yield message, message.decode()
            except BagError as error:
                self._warn(str(error))

    def begin(self) -> None:
        """Give the first calibration of each camera and the first transform of each static frame."""
        start_ns = self._bag.span_ns[0]
        known: set[str] = set()
        for _, content in self._messages("tf_static"):
            fresh = [item for item in content.transforms if item.child_frame_id not in known]
            known |= {item.child_frame_id for item in fresh}
            content.transforms = fresh
            self._stream.transform(content, True, start_ns)
        wanted = {camera for kind, camera in self._handlers.values() if kind == "info"}
        for message, content in self._messages("info"):
            camera = self._handlers[message.topic][1]
            if camera in wanted and self._stream.builder.accepts(camera, calibration_from_camera_info(content)):
                wanted.discard(camera)
                self._stream.camera_info(camera, content, start_ns)
            if not wanted:
                break

    def poses_until(self, stamp_ns: int) -> list[PosedFrame]:
        """Give the poses recorded up to a time; returns the frames that became ready."""
        ready = []
        while self._next is not None and self._next[0].stamp_ns <= stamp_ns:
            ready += self._give_pose(stamp_ns)
        return ready

    def poses_for_waiting(self, now_ns: int) -> list[PosedFrame]:
        """Read on until no frame waits, time goes back or the poses end; what waits then is dropped."""
        ready = []
        while self._stream.builder.waiting and self._next is not None and not self._stream.poses_went_back:
            ready += self._give_pose(now_ns)
        return ready + self._stream.builder.flush(now_ns)

    def _give_pose(self, now_ns: int) -> list[PosedFrame]:
        assert self._next is not None
        content = self._next[1]
        self._next = next(self._poses, None)
        return self._stream.transform(content, False, now_ns)
