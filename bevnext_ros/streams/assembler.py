# SPDX-License-Identifier: Apache-2.0
"""Frames from the images of several cameras: the image nearest in time to each of the anchor camera's.

The anchor camera's stamp fixes a frame's instant. Every other camera gives the image whose stamp is
nearest, before or after, at most ``max_spread`` away. A frame is complete when no nearer image can come: a
camera has an image at or after the instant, or its known period says that its next one will be
farther. What is still missing at the deadline is handled by the policy:

``wait``  keeps the frame until the camera is heard again; it is dropped only when the camera has moved on
          past it, or when the bounded queue is full.
``skip``  drops the frame.
``mask``  gives the frame without that camera (its image is ``None``).

Time is given by the caller as nanoseconds of any steady clock, so that the same code runs live, from bags
and in tests. Images are opaque here. Every image and every frame ends as used or in a counter.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bevnext_core.errors import ConfigError
from bevnext_ros.streams.drops import DropCounter
from bevnext_ros.streams.faults import Faults

SECOND = 1_000_000_000
MissingPolicy = Literal["wait", "skip", "mask"]
_INTERVALS = 8
_PERIOD_SHARE = 0.8
"""A camera's next image comes no earlier than this share of the shortest of its last intervals (jitter)."""


@dataclass(frozen=True)
class StampedImage:
    """One camera's image (any object) with its own stamp and the steady time of its arrival, nanoseconds."""

    stamp_ns: int
    payload: Any
    arrival_ns: int


@dataclass(frozen=True)
class AssembledFrame:
    """Images that belong together, in the order of the cameras.

    Attributes:
        stamp_ns: the anchor's stamp. images: one per camera, ``None`` where the camera is masked.
        anchor: index of the anchor camera. assembled_ns: steady time of completion.
        reset_reason: not empty when time went back before this frame: no history may be carried over.
    """

    stamp_ns: int
    images: tuple[StampedImage | None, ...]
    anchor: int
    assembled_ns: int
    reset_reason: str = ""

    @property
    def newest_arrival_ns(self) -> int:
        """Steady time at which the last of its images arrived."""
        return max(image.arrival_ns for image in self.images if image is not None)


@dataclass
class _Camera:
    images: list[StampedImage]  # by stamp
    used: set[int]
    intervals: deque[int]
    last_stamp_ns: int | None = None
    last_arrival_ns: int | None = None


@dataclass
class _Pending:
    image: StampedImage
    deadline_ns: int
    previous_ns: int
    """When the anchor camera was heard before this image (this image's own time for the first)."""


class FrameAssembler:
    """Joins images into frames; see the module's text.

    Args:
        cameras: names, in the order in which frames shall hold them. anchor: one of them.
        max_spread: seconds that an image may lie from the anchor's stamp.
        deadline: seconds after the anchor image's arrival at which a frame no longer waits for images.
        missing: policy for a camera without an image at the deadline.
        silent_after: seconds in which the anchor camera goes on without a camera, after which ``skip`` and
            ``mask`` do not wait for it.
        queue_size: most frames that wait, and most images kept per camera.
        faults: is told which cameras a dropped frame lacked. topics: names a camera's topic in it.

    Raises:
        ConfigError: for an anchor that is no camera, or values out of range.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        anchor: str,
        *,
        max_spread: float = 0.06,
        deadline: float = 0.2,
        missing: MissingPolicy = "skip",
        silent_after: float = 1.0,
        queue_size: int = 10,
        faults: Faults | None = None,
        topics: Mapping[str, str] | None = None,
    ) -> None:
        self.cameras = tuple(cameras)
        if anchor not in self.cameras:
            raise ConfigError(f"the anchor camera '{anchor}' is not one of {', '.join(self.cameras)}")
        if len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"a camera is named twice: {', '.join(self.cameras)}")
        if missing not in ("wait", "skip", "mask"):
            raise ConfigError(f"the policy for missing cameras must be wait, skip or mask, got '{missing}'")
        if min(max_spread, deadline, silent_after) < 0 or queue_size < 1:
            raise ConfigError("spread and deadline must not be negative, the queue not below 1")
        self._anchor = self.cameras.index(anchor)
        self._spread_ns = int(max_spread * SECOND)
        self._deadline_ns = int(deadline * SECOND)
        self._missing = missing
        self._silent_ns = int(silent_after * SECOND)
        self._queue_size = queue_size
        self._faults = faults or Faults()
        self._topics = topics or {}
        self._states = [_Camera([], set(), deque(maxlen=_INTERVALS)) for _ in self.cameras]
        self._index = {name: i for i, name in enumerate(self.cameras)}
        self._pending: list[_Pending] = []
        self._last_emitted_ns: int | None = None
        self._started_ns: int | None = None
        self._reset_reason = ""
        self.frame_drops = DropCounter()
        """Frames (anchor images) that were not given out, by cause."""
        self.image_drops = DropCounter()
        """Images that were never part of a frame, by cause (``unused`` is the normal one at high rates)."""
        self.seen = 0
        """Anchor images received: frames that could be."""
        self.emitted = 0

    def add(
        self, camera: str, stamp_ns: int, payload: Any, now_ns: int, arrival_ns: int | None = None
    ) -> list[AssembledFrame]:
        """Take one image; returns the frames that it completed, in the order of their stamps.

        ``arrival_ns`` is when it came in, if that was before ``now_ns``: noted in the frame. Deadlines count from
        ``now_ns``, so that images that only waited for their turn are not given up.
        """
        index = self._index[camera]
        state = self._states[index]
        if self._started_ns is None:
            self._started_ns = now_ns
        heard_ns, state.last_arrival_ns = state.last_arrival_ns, now_ns
        is_anchor = index == self._anchor
        self.seen += is_anchor
        if stamp_ns <= 0:
            return self._refuse(index, "zero_stamp", now_ns)
        position = bisect.bisect_left([image.stamp_ns for image in state.images], stamp_ns)
        if position < len(state.images) and state.images[position].stamp_ns == stamp_ns:
            return self._refuse(index, "duplicate", now_ns)
        last = self._last_emitted_ns
        if last is not None and stamp_ns < (last + 1 if is_anchor else last - self._spread_ns):
            # a repeated stamp of a frame that went out already is a duplicate, anything older is late
            return self._refuse(index, "duplicate" if stamp_ns == last else "late", now_ns)
        if state.last_stamp_ns is None or stamp_ns > state.last_stamp_ns:
            if state.last_stamp_ns is not None:
                state.intervals.append(stamp_ns - state.last_stamp_ns)
            state.last_stamp_ns = stamp_ns
        image = StampedImage(stamp_ns, payload, now_ns if arrival_ns is None else arrival_ns)
        state.images.insert(position, image)
        if is_anchor:
            bisect.insort(
                self._pending,
                _Pending(image, now_ns + self._deadline_ns, now_ns if heard_ns is None else heard_ns),
                key=lambda p: p.image.stamp_ns,
            )
            while len(self._pending) > self._queue_size:
                self._drop_frame(self._pending.pop(0), "queue_full")
        frames = self.poll(now_ns)
        while len(state.images) > self._queue_size:
            self._forget_image(state, 0, "queue_full")
        return frames

    def refuse(self, camera: str, cause: str, now_ns: int) -> list[AssembledFrame]:
        """Count an image that is not to be used."""
        index = self._index[camera]
        self.seen += index == self._anchor
        self._states[index].last_arrival_ns = now_ns
        return self._refuse(index, cause, now_ns)

    def _refuse(self, index: int, cause: str, now_ns: int) -> list[AssembledFrame]:
        self.image_drops.add(cause)
        if index == self._anchor:
            self.frame_drops.add(cause)
        return self.poll(now_ns)

    def poll(self, now_ns: int) -> list[AssembledFrame]:
        """Frames that are complete, or whose deadline has passed, at ``now_ns``."""
        frames = []
        while self._pending:
            pending = self._pending[0]
            decision = self._decide(pending, now_ns)
            if decision is None:
                break  # frames leave in the order of their stamps
            self._pending.pop(0)
            if isinstance(decision, str):
                self._drop_frame(pending, decision)
            else:
                frames.append(self._emit(pending, decision, now_ns))
        self._prune()
        return frames

    def flush(self, now_ns: int) -> list[AssembledFrame]:
        """The end of the stream: every waiting frame's deadline has come, and none can wait longer."""
        frames = []
        for pending in self._pending:
            pending.deadline_ns = now_ns
        while self._pending:
            frames += self.poll(now_ns)
            if self._pending:
                self._drop_frame(self._pending.pop(0), "missing_camera")
        return frames

    @property
    def waiting(self) -> int:
        """Frames that wait for images."""
        return len(self._pending)

    def ages(self, now_ns: int) -> dict[str, float | None]:
        """Seconds since each camera was heard last; ``None`` for never."""
        return {
            name: None if s.last_arrival_ns is None else (now_ns - s.last_arrival_ns) / SECOND
            for name, s in zip(self.cameras, self._states, strict=True)
        }

    def clear(self, reason: str, cause: str = "time_jump") -> None:
        """Drop everything that waits, counted under ``cause``; the next frame carries ``reason``."""
        for index in range(len(self._states)):
            self._clear_camera(index, cause)
        self._reset_reason = reason

    def _decide(self, pending: _Pending, now_ns: int) -> list[StampedImage | None] | str | None:
        """The frame's images; or a cause to drop it; or ``None``: it waits on."""
        due = now_ns >= pending.deadline_ns
        stamp_ns = pending.image.stamp_ns
        chosen: list[StampedImage | None] = []
        for index, state in enumerate(self._states):
            nearest = pending.image if index == self._anchor else self._nearest(state, stamp_ns)
            settled = index == self._anchor or self._is_settled(state, stamp_ns, nearest)
            silent = self._missing != "wait" and self._is_silent(state, pending)
            if not (settled or due or silent):
                return None
            if nearest is None and self._missing == "wait":
                last = state.last_stamp_ns
                if not due or last is None or last <= stamp_ns + self._spread_ns:
                    return None
            chosen.append(nearest)
        # decided only now: while another camera is waited for, this one may come back
        return "missing_camera" if None in chosen and self._missing != "mask" else chosen

    def _lack(self, stamp_ns: int) -> str:
        """Which cameras have no image for a frame, in words."""
        lacking = []
        for name, state in zip(self.cameras, self._states, strict=True):
            last = state.last_stamp_ns
            if self._nearest(state, stamp_ns) is None:
                distance = "it has given none"
                if last is not None:
                    way = "older" if last < stamp_ns else "newer"
                    distance = f"its newest is {abs(last - stamp_ns) / SECOND:.3f} s {way}"
                lacking.append(f"{name} ({self._topics.get(name, 'no topic')}) has no image near it, {distance}")
        return "; ".join(lacking)

    def _nearest(self, state: _Camera, stamp_ns: int) -> StampedImage | None:
        if not state.images:
            return None
        best = min(state.images, key=lambda image: abs(image.stamp_ns - stamp_ns))
        return best if abs(best.stamp_ns - stamp_ns) <= self._spread_ns else None

    def _is_settled(self, state: _Camera, stamp_ns: int, nearest: StampedImage | None) -> bool:
        """Whether no nearer image than ``nearest`` can come, given that a camera's stamps grow."""
        if state.last_stamp_ns is None:
            return False
        if state.last_stamp_ns >= stamp_ns:
            # with nothing within the spread, an image that is only out of order may still come: wait for it
            return nearest is not None
        if nearest is None or len(state.intervals) < 2:
            return False
        next_ns = state.last_stamp_ns + int(_PERIOD_SHARE * min(state.intervals))
        return next_ns - stamp_ns > stamp_ns - nearest.stamp_ns

    def _is_silent(self, state: _Camera, pending: _Pending) -> bool:
        """Whether the anchor went on for long without this camera. A pause of the whole rig is no silence."""
        since = self._started_ns if state.last_arrival_ns is None else state.last_arrival_ns
        return since is not None and pending.previous_ns - since > self._silent_ns

    def _emit(self, pending: _Pending, images: list[StampedImage | None], now_ns: int) -> AssembledFrame:
        for state, image in zip(self._states, images, strict=True):
            if image is not None:
                state.used.add(image.stamp_ns)
        reason, self._reset_reason = self._reset_reason, ""
        self._last_emitted_ns = pending.image.stamp_ns
        self.emitted += 1
        return AssembledFrame(pending.image.stamp_ns, tuple(images), self._anchor, now_ns, reason)

    def _drop_frame(self, pending: _Pending, cause: str) -> None:
        self.frame_drops.add(cause)
        if lack := self._lack(pending.image.stamp_ns):
            self._faults.note(f"frame {cause}", f"a frame was dropped ({cause}): {lack}")
        last = self._last_emitted_ns
        self._last_emitted_ns = pending.image.stamp_ns if last is None else max(last, pending.image.stamp_ns)

    def _prune(self) -> None:
        """Forget images that no frame to come can use."""
        if self._last_emitted_ns is None:
            return
        oldest = self._pending[0].image.stamp_ns if self._pending else self._last_emitted_ns + 1
        for index, state in enumerate(self._states):
            limit = oldest if index == self._anchor else oldest - self._spread_ns
            while state.images and state.images[0].stamp_ns < limit:
                self._forget_image(state, 0, "unused")

    def _forget_image(self, state: _Camera, position: int, cause: str) -> None:
        stamp_ns = state.images.pop(position).stamp_ns
        if stamp_ns in state.used:
            state.used.discard(stamp_ns)
        else:
            self.image_drops.add(cause)

    def forget(self, camera: str, reason: str) -> None:
        """A camera's time went back: what it gave before is dropped. The anchor's next frame carries ``reason``."""
        self._clear_camera(self._index[camera], "time_jump")
        if self._index[camera] == self._anchor:
            self._reset_reason = reason

    def _clear_camera(self, index: int, cause: str) -> None:
        state = self._states[index]
        while state.images:
            self._forget_image(state, 0, cause)
        state.last_stamp_ns = None
        state.intervals.clear()
        if index == self._anchor:
            self.frame_drops.add(cause, len(self._pending))
            self._pending.clear()
            self._last_emitted_ns = None
