# SPDX-License-Identifier: Apache-2.0
"""Frames by the standard policy: ROS' ``message_filters`` approximate time synchroniser, where it is installed.

Same face as :class:`bevnext_ros.streams.assembler.FrameAssembler`. Known weaknesses of that policy, kept out of
the way here: after time went back it stays silent (it is made anew), and its callback must not raise or block (it
only notes the images).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from bevnext_core.errors import ConfigError
from bevnext_ros.streams.assembler import SECOND, AssembledFrame, StampedImage
from bevnext_ros.streams.drops import DropCounter


class MessageFiltersAssembler:
    """Joins image messages with ``message_filters.ApproximateTimeSynchronizer``.

    A frame needs an image of every camera; its stamp is the anchor camera's. The synchroniser does not tell what
    it drops: a frame that it never gave out counts as ``not_matched`` once a later one came out.

    Args: as those of :class:`FrameAssembler`; ``max_spread`` is the largest difference within a frame.

    Raises:
        ConfigError: ``message_filters`` is not installed.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        anchor: str,
        *,
        max_spread: float,
        queue_size: int,
    ) -> None:
        try:
            self._package = importlib.import_module("message_filters")
        except ImportError:
            raise ConfigError(
                "the parameter 'synchronizer' is message_filters, which is not installed (it comes with a ROS "
                "distribution); set it to 'anchor'"
            ) from None
        self.cameras = tuple(cameras)
        self._anchor = self.cameras.index(anchor)
        self._spread = max_spread
        self._queue_size = queue_size
        self._index = {name: i for i, name in enumerate(self.cameras)}
        self._arrivals: dict[int, int] = {}
        self._last_arrival: list[int | None] = [None] * len(self.cameras)
        self._last_stamp: list[int | None] = [None] * len(self.cameras)
        self._matched: list[tuple[Any, ...]] = []
        self._open: list[int] = []  # stamps of anchor images that are not matched yet
        self._reset_reason = ""
        self.frame_drops = DropCounter()
        self.image_drops = DropCounter()
        self.seen = 0
        self.emitted = 0
        self._make()

    def _make(self) -> None:
        self._filters = [self._package.SimpleFilter() for _ in self.cameras]
        self._synchronizer = self._package.ApproximateTimeSynchronizer(
            self._filters, self._queue_size, self._spread
        )
        self._synchronizer.registerCallback(lambda *messages: self._matched.append(messages))
        self._arrivals.clear()

    def add(
        self, camera: str, stamp_ns: int, payload: Any, now_ns: int, arrival_ns: int | None = None
    ) -> list[AssembledFrame]:
        """Take one image message; returns the frames that it completed."""
        index = self._index[camera]
        is_anchor = index == self._anchor
        self.seen += is_anchor
        self._last_arrival[index] = now_ns
        last = self._last_stamp[index]
        if stamp_ns <= 0 or stamp_ns == last:
            return self._refuse(is_anchor, "duplicate" if stamp_ns > 0 else "zero_stamp")
        self._last_stamp[index] = stamp_ns
        if is_anchor:
            self._open.append(stamp_ns)
            while len(self._open) > self._queue_size:
                self._open.pop(0)
                self.frame_drops.add("not_matched")
        self._arrivals[id(payload)] = now_ns if arrival_ns is None else arrival_ns
        while len(self._arrivals) > 4 * self._queue_size * len(self.cameras):
            self._arrivals.pop(next(iter(self._arrivals)))
        self._filters[index].signalMessage(payload)
        frames = [frame for messages in self._matched if (frame := self._frame(messages, now_ns)) is not None]
        self._matched.clear()
        return frames

    def refuse(self, camera: str, cause: str, now_ns: int) -> list[AssembledFrame]:
        """Count an image that is not to be used."""
        index = self._index[camera]
        self.seen += index == self._anchor
        self._last_arrival[index] = now_ns
        return self._refuse(index == self._anchor, cause)

    def _refuse(self, is_anchor: bool, cause: str) -> list[AssembledFrame]:
        self.image_drops.add(cause)
        if is_anchor:
            self.frame_drops.add(cause)
        return []

    def forget(self, camera: str, reason: str) -> None:
        """A camera's time went back. With the anchor's the synchroniser is made anew: it keeps no camera apart."""
        if self._index[camera] == self._anchor:
            self.clear(reason)

    def _frame(self, messages: tuple[Any, ...], now_ns: int) -> AssembledFrame | None:
        images = []
        for message in messages:
            stamp = int(message.header.stamp.sec) * SECOND + int(message.header.stamp.nanosec)
            images.append(StampedImage(stamp, message, self._arrivals.pop(id(message), now_ns)))
        stamp_ns = images[self._anchor].stamp_ns
        if stamp_ns not in self._open:
            return None  # its place in the bounded list was lost: counted already
        self._open.remove(stamp_ns)
        for older in [stamp for stamp in self._open if stamp < stamp_ns]:
            self._open.remove(older)
            self.frame_drops.add("not_matched")
        self.emitted += 1
        reason, self._reset_reason = self._reset_reason, ""
        return AssembledFrame(stamp_ns, tuple(images), self._anchor, now_ns, reason)

    def poll(self, now_ns: int) -> list[AssembledFrame]:
        """The synchroniser has no deadlines: time alone completes nothing."""
        return []

    def flush(self, now_ns: int) -> list[AssembledFrame]:
        """The end of the stream."""
        self.frame_drops.add("not_matched", len(self._open))
        self._open.clear()
        return []

    def clear(self, reason: str, cause: str = "time_jump") -> None:
        """Start anew; what waits is dropped under ``cause``, the next frame carries ``reason``."""
        self.frame_drops.add(cause, len(self._open))
        self._open.clear()
        self._last_stamp = [None] * len(self.cameras)
        self._reset_reason = reason
        self._make()

    @property
    def waiting(self) -> int:
        """Anchor images that are not matched yet."""
        return len(self._open)

    def ages(self, now_ns: int) -> dict[str, float | None]:
        """Seconds since each camera was heard last; ``None`` for never."""
        return {
            name: None if last is None else (now_ns - last) / SECOND
            for name, last in zip(self.cameras, self._last_arrival, strict=True)
        }
