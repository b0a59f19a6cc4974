# SPDX-License-Identifier: Apache-2.0
"""A tree of coordinate frames over time: add transforms, look them up at a stamp, without ever waiting.

Between two samples a transform is interpolated along the geodesic of SE(3) (the screw motion that a
constant twist makes), so that a vehicle that turns steadily stays on its arc between two poses.
Nothing is extrapolated: a look-up answers at once, with the transform or with the reason why there is none.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from bevnext_core.geometry import interpolate_rigid, invert_rigid, rigid
from bevnext_ros.streams.drops import DropCounter

SECOND = 1_000_000_000


class Answer(Enum):
    """How a look-up ended."""

    OK = "ok"
    NOT_YET = "not yet"
    """The stamp is newer than the newest sample on the way: later messages may bring it."""
    TOO_OLD = "too old"
    """The stamp is older than the oldest sample kept: it will never come."""
    NOT_CONNECTED = "not connected"
    """No chain of transforms joins the two frames (so far)."""


@dataclass(frozen=True)
class Lookup:
    """Answer of a look-up. ``transform`` (``[4, 4]`` float64) is there exactly when ``answer`` is ``OK``."""

    answer: Answer
    transform: np.ndarray | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.answer is Answer.OK


@dataclass
class _Edge:
    """Samples of ``parent_from_child``, by stamp; a static edge holds one, valid always."""

    parent: str
    static: bool
    stamps: list[int] = field(default_factory=list)
    samples: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


class TransformBuffer:
    """Transforms of an arbitrary tree of frames, static and dynamic; memory is bounded.

    Not thread-safe: one thread adds and looks up.

    Args:
        keep: seconds of dynamic transforms kept per edge, counted back from its newest sample.
        max_samples: most samples per edge; the oldest go first.
        max_frames: most child frames; transforms of further ones are dropped.
    """

    def __init__(
        self,
        keep: float = 10.0,
        max_samples: int = 10_000,
        max_frames: int = 2_000,
    ) -> None:
        self._keep_ns = int(keep * SECOND)
        self._max_samples = max_samples
        self._max_frames = max_frames
        self._edges: dict[str, _Edge] = {}
        self._remarks: dict[str, str] = {}
        self._parents: dict[str, list[str]] = {}
        self.drops = DropCounter()
        self.version = 0
        """Grows whenever the tree takes another shape."""

    def add(
        self,
        parent: str,
        child: str,
        rotation_wxyz: np.ndarray,
        translation: np.ndarray,
        stamp_ns: int,
        static: bool = False,
    ) -> bool:
        """Add one sample of ``parent_from_child``; ``False`` when it was dropped (counted in ``drops``).

        Dropped are: NaN or infinity and quaternions far from unit length (``invalid``), dynamic transforms
        without a stamp (``zero_stamp``), a frame that is its own parent (``self_transform``), samples older
        than what is kept (``too_old``), a second sample of one stamp (``duplicate``) and frames above the
        bound (``too_many_frames``). Another parent replaces the samples under the one before
        (``other_parent_replaced``). Whether a stamp is of the present time is for
        :class:`bevnext_ros.streams.timeline.Timeline` to say.
        """
        parent, child = frame_name(parent), frame_name(child)
        quaternion = np.asarray(rotation_wxyz, np.float64)
        offset = np.asarray(translation, np.float64)
        norm = np.linalg.norm(quaternion)
        if not (np.isfinite(offset).all() and np.isfinite(norm) and abs(norm - 1.0) < 0.01):
            self.drops.add("invalid")
            return False
        if parent == child or not parent or not child:
            self.drops.add("self_transform")
            return False
        if stamp_ns <= 0 and not static:
            self.drops.add("zero_stamp")
            return False
        sample = (quaternion / norm, offset)
        edge = self._edges.get(child)
        if edge is None or edge.parent != parent or edge.static != static:
            if child not in self._edges and len(self._edges) >= self._max_frames:
                self.drops.add("too_many_frames")
                return False
            if edge is not None and edge.parent != parent:
                self.drops.add("other_parent_replaced", len(edge.stamps))
                self._parents[child] = sorted((edge.parent, parent))
            edge = self._edges[child] = _Edge(parent, static)
            self.version += 1
        if static:
            edge.stamps, edge.samples = [0], [sample]
            return True
        return self._insert(edge, stamp_ns, sample)

    def _insert(self, edge: _Edge, stamp_ns: int, sample: tuple[np.ndarray, np.ndarray]) -> bool:
        index = bisect.bisect_left(edge.stamps, stamp_ns)
        if index < len(edge.stamps) and edge.stamps[index] == stamp_ns:
            self.drops.add("duplicate")
            return False
        if edge.stamps and stamp_ns < edge.stamps[-1] - self._keep_ns:
            self.drops.add("too_old")
            return False
        edge.stamps.insert(index, stamp_ns)
        edge.samples.insert(index, sample)
        first = max(
            bisect.bisect_left(edge.stamps, edge.stamps[-1] - self._keep_ns),
            len(edge.stamps) - self._max_samples,
        )
        if first > 0:
            del edge.stamps[:first], edge.samples[:first]
        return True

    def refuse(self, parent: str, child: str, cause: str, by: float) -> None:
        """Count a sample that is not of the present time: ``late`` or ``early`` by so many seconds."""
        self.drops.add(cause)
        child = frame_name(child)
        if child in self._remarks or len(self._remarks) < self._max_frames:
            name = f"'{frame_name(parent)}' -> '{child}'"
            self._remarks[child] = f"of {name} a sample was refused that came {by:.1f} s too {cause}"

    def forget(self, child: str) -> None:
        """Forget the samples of one frame, unless they are static."""
        edge = self._edges.get(frame_name(child))
        if edge is not None and not edge.static:
            del self._edges[frame_name(child)]
            self.version += 1

    def clear_dynamic(self) -> None:
        """Forget all transforms that are not static."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.static}
        self.version += 1

    def dynamic_edges(self, target: str, source: str) -> set[tuple[str, str]]:
        """The edges (parent, child) between two frames that are not static; none if nothing joins them."""
        up_source, up_target = self._ancestors(frame_name(source)), self._ancestors(frame_name(target))
        if up_source[-1] != up_target[-1]:
            return set()
        children = {frame for frame in {*up_source} ^ {*up_target} if frame in self._edges}
        edges = {(self._edges[child].parent, child) for child in children}
        return {edge for edge in edges if not self._edges[edge[1]].static}

    def lookup(self, target: str, source: str, stamp_ns: int) -> Lookup:
        """``target_from_source`` at ``stamp_ns``."""
        target, source = frame_name(target), frame_name(source)
        if target == source:
            return Lookup(Answer.OK, np.eye(4))
        up_source = self._ancestors(source)
        up_target = self._ancestors(target)
        shared = set(up_target)
        common = next((frame for frame in up_source if frame in shared), None)
        if common is None:
            detail = f"no transforms join '{target}' and '{source}': {self._roots(target, source)}"
            return Lookup(
                Answer.NOT_CONNECTED, detail=self._with_remarks(detail, [*up_source, *up_target])
            )
        parts = []
        for frames in (up_source, up_target):
            transform = np.eye(4)
            for child in frames[: frames.index(common)]:
                step = self._at(child, stamp_ns)
                if step.transform is None:
                    return Lookup(step.answer, detail=self._with_remarks(step.detail, frames))
                transform = step.transform @ transform
            parts.append(transform)
        return Lookup(Answer.OK, invert_rigid(parts[1]) @ parts[0])

    def _ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, ... up to its root; a cycle ends the list."""
        chain: dict[str, None] = {frame: None}
        while (edge := self._edges.get(frame)) is not None and edge.parent not in chain:
            frame = edge.parent
            chain[frame] = None
        return list(chain)

    def _roots(self, *frames: str) -> str:
        """Where the way between two frames is broken."""
        roots = {frame: self._ancestors(frame)[-1] for frame in frames}
        unknown = [frame for frame in frames if not self._is_known(frame)]
        if unknown:
            return ", ".join(f"no transform names '{frame}'" for frame in unknown)
        hang = ", ".join(f"'{f}' hangs under '{r}'" for f, r in roots.items() if f != r)
        missing = " and ".join(f"'{root}'" for root in dict.fromkeys(roots.values()))
        return f"no transform comes between {missing}" + (f" ({hang})" if hang else "")

    def _with_remarks(self, detail: str, frames: list[str]) -> str:
        """A failed look-up's detail with what is known to be wrong on its way."""
        remarks = []
        for frame in dict.fromkeys(frames):
            if frame in self._parents:
                one, other = self._parents[frame]
                remarks.append(f"'{frame}' has two parents, '{one}' and '{other}'")
            if frame in self._remarks:
                remarks.append(self._remarks[frame])
        return "; ".join([detail, *remarks])

    def _is_known(self, frame: str) -> bool:
        return frame in self._edges or any(edge.parent == frame for edge in self._edges.values())

    def _at(self, child: str, stamp_ns: int) -> Lookup:
        edge = self._edges[child]
        if edge.static:
            return Lookup(Answer.OK, rigid(*edge.samples[0]))
        stamps = edge.stamps
        index = bisect.bisect_left(stamps, stamp_ns)
        name = f"'{edge.parent}' -> '{child}'"
        if index == len(stamps):
            late = (stamp_ns - stamps[-1]) / SECOND
            return Lookup(Answer.NOT_YET, detail=f"the newest {name} is {late:.3f} s older than the stamp")
        if stamps[index] == stamp_ns:
            return Lookup(Answer.OK, rigid(*edge.samples[index]))
        if index == 0:
            early = (stamps[0] - stamp_ns) / SECOND
            return Lookup(Answer.TOO_OLD, detail=f"the oldest {name} is {early:.3f} s newer than the stamp")
        fraction = (stamp_ns - stamps[index - 1]) / (stamps[index] - stamps[index - 1])
        return Lookup(Answer.OK, interpolate_rigid(*edge.samples[index - 1], *edge.samples[index], fraction))

    @property
    def sample_count(self) -> int:
        """Samples held, static ones included."""
        return sum(len(edge.stamps) for edge in self._edges.values())


def frame_name(name: str) -> str:
    """tf1's leading slash means nothing in ROS 2."""
    return name.lstrip("/")
