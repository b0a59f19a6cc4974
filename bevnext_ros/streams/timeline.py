# SPDX-License-Identifier: Apache-2.0
"""Which time it is: tells a rig whose time went back (a bag that loops) from messages that are late, stale or foreign.

A *source* is what gives stamps of its own: a camera, or an edge of the tree of transforms. A message within ``jump``
of its source's newest stamp passes. One further behind or ahead is held, and no single one decides:

- The source goes on in its time: what was held of it is refused, ``late`` or ``early``.
- The rig went back, by agreement: every camera that is alive gave its last message in one new time, and so did an
  edge that the rig needs (where any is alive). Or ``/clock`` went back: then the first message bears it out.
- The rig went ahead: most cameras that are alive did; or another source is there already.
- One source alone has another clock now: its messages span ``jump`` in the new time, none came in the one before,
  and the rest of the rig is nearer to the new one. Nothing else is touched; the anchor takes the cameras with it.
- A source that is more than ``keep`` ahead of all the others was never in their time: it may join them at once.

What was held then passes, in the order of its arrival. Stamps and arrivals are nanoseconds. No ROS here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000_000
Source = Hashable
_ALIVE_NS = 3 * SECOND
"""A source that was silent for so long before the newest image has no vote."""

_MAX_SAMPLES, _MAX_SOURCES = 1_000, 2_000
"""Most transforms held per edge; most sources: further ones pass unseen."""


@dataclass(frozen=True)
class Timed:
    """One message: who gave it, its stamp, and whatever it carries; ``order`` counts arrivals."""

    source: Source
    stamp_ns: int
    item: Any
    order: int


@dataclass(frozen=True)
class Refused:
    """A message that is not of the rig's time: ``late`` or ``early``, by so many nanoseconds."""

    message: Timed
    cause: str
    by_ns: int


@dataclass
class Verdict:
    """What to do, in this order: forget what the ``rewound`` sources gave before, refuse, and take what passed.

    Attributes:
        rewound: nanoseconds by which each source went back. everything: the whole rig did, poses included.
    """

    rewound: dict[Source, int] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    passed: list[Timed] = field(default_factory=list)
    everything: bool = False


@dataclass
class _State:
    newest_ns: int | None = None
    heard_ns: int = 0
    held: list[Timed] = field(default_factory=list)
    held_from_ns: int = 0
    """Stamp of the first message that was held, kept or not."""

    @property
    def last_ns(self) -> int | None:
        return self.held[-1].stamp_ns if self.held else self.newest_ns

    @property
    def is_behind(self) -> bool:
        return bool(self.held) and self.newest_ns is not None and self.held[-1].stamp_ns < self.newest_ns


class Timeline:
    """Judges every stamped message of a rig; see the module's text.

    Args:
        cameras, anchor: the sources that are cameras. edges: gives those edges on which the rig's poses depend now.
        jump: seconds that a message may be from its source's newest without further ado. keep: seconds that
            sources may be apart at all. held_images: most images held per camera.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        anchor: str,
        edges: Callable[[], Collection[Source]],
        *,
        jump: float = 1.0,
        keep: float = 10.0,
        held_images: int = 10,
    ) -> None:
        self._cameras = tuple(cameras)
        self._anchor = anchor
        self._edges = edges
        self._jump_ns, self._keep_ns = int(jump * SECOND), int(keep * SECOND)
        self._held_images = held_images
        self._states: dict[Source, _State] = {}
        self._open: set[Source] = set()  # sources of which something is held
        self._images_ns: int | None = None  # arrival of the newest image that passed
        self._clock_ns: int | None = None
        self._order = itertools.count()

    def add(self, source: Source, stamp_ns: int, item: Any, now_ns: int) -> Verdict:
        """Judge one message that came at ``now_ns``."""
        verdict = self.poll(now_ns)
        message = Timed(source, stamp_ns, item, next(self._order))
        if source not in self._states and len(self._states) >= _MAX_SOURCES:
            verdict.passed.append(message)
            return verdict
        state = self._states.setdefault(source, _State())
        state.heard_ns = now_ns
        if self._fits(source, state, stamp_ns):
            self._refuse(source, verdict)
            self._pass([message], verdict)
        else:
            self._hold(state, message, verdict)
            self._decide(source, state, verdict)
        if self._open and verdict.passed:
            self._follow(verdict)
        verdict.passed.sort(key=lambda passed: passed.order)
        return verdict

    def clock_jumped(self, back_to_ns: int | None) -> Verdict:
        """``/clock`` went back: any needed source that is, or comes, there shows that the rig did. ``None``: ahead."""
        self._clock_ns = back_to_ns
        verdict = Verdict()
        for source in list(self._open):
            self._decide(source, self._states[source], verdict)
        verdict.passed.sort(key=lambda timed: timed.order)
        return verdict

    def poll(self, now_ns: int) -> Verdict:
        """Refuses what was held of sources that fell silent since."""
        verdict = Verdict()
        for source in list(self._open):
            if now_ns - self._states[source].heard_ns > _ALIVE_NS:
                self._refuse(source, verdict)
        return verdict

    def flush(self) -> Verdict:
        """The end of the stream: what is still held is refused."""
        verdict = Verdict()
        for source in list(self._open):
            self._refuse(source, verdict)
        return verdict

    def clear(self) -> Verdict:
        """Forget all sources; what was held is refused."""
        verdict = self.flush()
        self._states.clear()
        self._images_ns = self._clock_ns = None
        return verdict

    def has_left(self, source: Source) -> bool:
        """Whether a source spans ``jump`` in a time before its own by now, and only the rig has not followed."""
        state = self._states.get(source)
        return state is not None and state.is_behind and self._spans(state)

    def held(self, source: Source) -> int:
        """Messages of a source that wait for a decision."""
        return len(self._states[source].held) if source in self._states else 0

    # ------------------------------------------------------------------------------------- one source
    def _fits(self, source: Source, state: _State, stamp_ns: int) -> bool:
        newest = state.newest_ns
        if newest is not None and stamp_ns <= newest + self._jump_ns:
            last = state.held[-1].stamp_ns if state.is_behind else newest
            goes_on = last <= stamp_ns and stamp_ns - last <= newest - stamp_ns  # from what is held: a short lap
            return stamp_ns >= newest - self._jump_ns and not (state.is_behind and goes_on)
        others = self._others(source)
        if newest is None and not others:
            return True
        return any(other >= stamp_ns - self._jump_ns for other in others)

    def _others(self, source: Source) -> list[int]:
        """Newest stamps of the other sources that the rig needs."""
        needed = [state for key, state in self._needed() if key != source]
        return [state.newest_ns for state in needed if state.newest_ns is not None]

    def _needed(self) -> Iterator[tuple[Source, _State]]:
        for key in (*self._cameras, *self._edges()):
            if key in self._states:
                yield key, self._states[key]

    def _hold(self, state: _State, message: Timed, verdict: Verdict) -> None:
        behind = state.newest_ns is not None and message.stamp_ns < state.newest_ns
        if state.held and (
            state.is_behind != behind or abs(message.stamp_ns - state.held[-1].stamp_ns) > self._keep_ns
        ):
            self._refuse(message.source, verdict)  # yet another time: it begins anew
        if not state.held:
            state.held_from_ns = message.stamp_ns
        state.held.append(message)
        self._open.add(message.source)
        limit = self._held_images if message.source in self._cameras else _MAX_SAMPLES
        while len(state.held) > limit:
            verdict.refused.append(self._refusal(state, state.held.pop(0)))

    def _refusal(self, state: _State, message: Timed) -> Refused:
        others = self._others(message.source) if state.newest_ns is None else [state.newest_ns]
        by = message.stamp_ns - max(others, default=message.stamp_ns)
        return Refused(message, "late" if by < 0 else "early", abs(by))

    def _refuse(self, source: Source, verdict: Verdict) -> None:
        state = self._states[source]
        verdict.refused += [self._refusal(state, message) for message in state.held]
        state.held.clear()
        self._open.discard(source)

    def _pass(self, messages: list[Timed], verdict: Verdict) -> None:
        source = messages[0].source
        state = self._states[source]
        newest = max(message.stamp_ns for message in messages)
        state.newest_ns = newest if state.newest_ns is None else max(state.newest_ns, newest)
        if source in self._cameras:
            self._images_ns = max(state.heard_ns, self._images_ns or 0)
        verdict.passed += messages

    def _release(self, source: Source, verdict: Verdict) -> None:
        """What was held of a source passes; what it gave before goes, if it went back."""
        state = self._states[source]
        if state.is_behind:
            self._rewind(source, state.held_from_ns, verdict)
        messages, state.held = state.held, []
        self._open.discard(source)
        self._pass(messages, verdict)

    def _rewind(self, source: Source, to_ns: int, verdict: Verdict) -> None:
        state = self._states[source]
        if state.newest_ns is not None:
            verdict.rewound[source] = state.newest_ns - to_ns
            state.newest_ns = None

    # ------------------------------------------------------------------------------------- the rig
    def _decide(self, source: Source, state: _State, verdict: Verdict) -> None:
        """Whether what is held of ``source`` is now the time of the rig, or of this source."""
        if not state.held:
            return
        stamp_ns = state.held[-1].stamp_ns
        if state.is_behind:
            agreed = self._agreed_back(stamp_ns) if source in self._cameras or source in self._edges() else None
            if agreed is not None:
                self._go_back(agreed, verdict, everything=True)
                self._clock_ns = None
            elif self._is_stray(source, state, stamp_ns):
                self._release(source, verdict)
            elif self._is_another_clock(source, state):
                if source == self._anchor:
                    self._go_back(stamp_ns, verdict, everything=False)
                else:
                    self._release(source, verdict)
        elif source in self._cameras and self._most_are_near(stamp_ns):
            for camera in self._cameras:
                ahead = self._states.get(camera)
                if ahead and ahead.held and not ahead.is_behind and self._near(ahead, stamp_ns):
                    self._release(camera, verdict)
        elif self._is_another_clock(source, state):
            self._release(source, verdict)

    def _follow(self, verdict: Verdict) -> None:
        """Where one source went ahead, those that are there already may follow."""
        for source in list(self._open):
            state = self._states[source]
            if not state.is_behind and self._fits(source, state, state.held[-1].stamp_ns):
                self._release(source, verdict)

    def _near(self, state: _State, stamp_ns: int) -> bool:
        return state.last_ns is not None and abs(state.last_ns - stamp_ns) <= self._jump_ns

    def _alive(self, sources: Collection[Source]) -> list[_State]:
        states = [self._states[source] for source in sources if source in self._states]
        return [s for s in states if self._images_ns is None or self._images_ns - s.heard_ns <= _ALIVE_NS]

    def _agreed_back(self, stamp_ns: int) -> int | None:
        """The new time, if all cameras that are alive and an edge agree on one behind the present, or /clock does."""
        if self._clock_ns is not None and stamp_ns <= self._clock_ns + self._jump_ns:
            return stamp_ns
        cameras = [state for state in self._alive(self._cameras) if state.newest_ns is not None]
        present = _median([state.newest_ns or 0 for state in cameras] or [0])
        cameras = [state for state in cameras if abs((state.newest_ns or 0) - present) <= self._keep_ns]
        behind = [state for state in cameras if state.is_behind]
        edges = [state for state in self._alive(self._edges()) if state.newest_ns is not None]
        if not behind or (len(cameras) == 1 and not edges and len(behind[0].held) < 2):
            return None
        new = _median([state.last_ns for state in cameras if state.last_ns is not None])
        if not all(self._near(state, new) for state in cameras):
            return None
        reach = {id(state): self._keep_ns if state.is_behind else self._jump_ns for state in edges}
        there = any(abs((state.last_ns or 0) - new) <= reach[id(state)] for state in edges)
        return new if there or not edges else None

    def _most_are_near(self, stamp_ns: int) -> bool:
        """Whether most cameras gave their last message near ``stamp_ns``; two sources at least, if there are two."""
        voters: Sequence[_State | None] = self._alive(self._cameras)
        if self._images_ns is None:  # none has passed so far: those that are still to come may think otherwise
            voters = [self._states.get(camera) for camera in self._cameras]
        near = [state for state in voters if state is not None and self._near(state, stamp_ns)]
        edges = [state for state in self._alive(self._edges()) if self._near(state, stamp_ns)]
        alone = len(voters) == 1 and not self._alive(self._edges())
        return 2 * len(near) > len(voters) and (alone or len(near) + len(edges) >= 2)

    def _is_stray(self, source: Source, state: _State, stamp_ns: int) -> bool:
        others = self._others(source)
        near = any(other - self._keep_ns <= stamp_ns <= other + self._jump_ns for other in others)
        return near and (state.newest_ns or 0) > max(others) + self._keep_ns

    def _is_another_clock(self, source: Source, state: _State) -> bool:
        if not self._spans(state):
            return False
        if source in self._cameras and source != self._anchor:
            anchor = self._states.get(self._anchor)
            rest = [] if anchor is None or anchor.newest_ns is None else [anchor.newest_ns]
        else:
            rest = [s.last_ns for key, s in self._needed() if key != source and s.last_ns is not None]
        if not rest or state.newest_ns is None:
            return not rest
        middle = _median(rest)
        return abs(state.held[-1].stamp_ns - middle) < abs(state.newest_ns - middle)

    def _spans(self, state: _State) -> bool:
        return state.held[-1].stamp_ns - state.held_from_ns >= self._jump_ns

    def _go_back(self, new_ns: int, verdict: Verdict, everything: bool) -> None:
        """The rig's time is ``new_ns``: who is there passes, who is not begins anew. Poses too, with ``everything``."""
        verdict.everything = everything
        for source, state in self._states.items():
            if state.is_behind and abs(state.held[-1].stamp_ns - new_ns) <= self._keep_ns:
                self._release(source, verdict)
                continue
            self._refuse(source, verdict)
            is_old = state.newest_ns is not None and state.newest_ns > new_ns + self._jump_ns
            if is_old and (everything or source in self._cameras):
                self._rewind(source, new_ns, verdict)


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]
