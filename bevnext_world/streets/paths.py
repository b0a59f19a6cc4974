# SPDX-License-Identifier: Apache-2.0
"""Smooth curves in the ground plane: centre lines, and the paths that traffic follows."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

STEP = 0.5
"""Metres between a path's points."""


class Path:
    """A smooth curve, stored as points :data:`STEP` apart.

    Attributes:
        points: ``[K, 2]``; s: ``[K]`` distance from the start; heading: ``[K]``, without jumps; length.
    """

    def __init__(self, points: np.ndarray) -> None:
        steps = np.hypot(*np.diff(points, axis=0).T)
        s = np.concatenate([[0.0], np.cumsum(steps)])
        self.length = float(s[-1])
        self.s = np.linspace(0.0, self.length, max(int(self.length / STEP), 2) + 1)
        self.points = np.stack([np.interp(self.s, s, points[:, axis]) for axis in (0, 1)], -1)
        direction = np.gradient(self.points, self.s, axis=0)
        self.heading = np.unwrap(np.arctan2(direction[:, 1], direction[:, 0]))
        self._derived: dict[Hashable, Any] = {}

    def cached(self, name: Hashable, compute: Callable[[], Any]) -> Any:
        """Something that follows from the path, computed once."""
        if name not in self._derived:
            self._derived[name] = compute()
        return self._derived[name]

    def at(self, s: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Points ``[..., 2]`` and headings ``[...]`` at distances ``s``; straight on beyond both ends."""
        s = np.asarray(s, np.float64)
        inside = np.clip(s, 0.0, self.length)
        heading = np.interp(inside, self.s, self.heading)
        points = np.stack([np.interp(inside, self.s, self.points[:, axis]) for axis in (0, 1)], -1)
        ahead = np.stack([np.cos(heading), np.sin(heading)], -1)
        return points + (s - inside)[..., None] * ahead, heading

    def offset(self, d: float, start: float = 0.0, end: float | None = None) -> Path:
        """The curve ``d`` to the left of this one, between two distances along this one."""
        stop = self.length if end is None else end
        s = np.linspace(start, stop, max(int(abs(stop - start) / STEP), 2) + 1)
        points, heading = self.at(s)
        return Path(points + d * np.stack([-np.sin(heading), np.cos(heading)], -1))

    def reversed(self) -> Path:
        """The same curve, from its end to its start."""
        return Path(self.points[::-1])

    def project(self, point: np.ndarray) -> float:
        """Distance along the path of its point nearest to ``point`` ``[2]``."""
        return float(self.s[np.argmin(((self.points - point) ** 2).sum(1))])

    def cut(self, start: float, end: float) -> Path:
        """The part between two distances."""
        return self.offset(0.0, max(start, 0.0), min(end, self.length))

    def curvature(self) -> np.ndarray:
        """``[K]`` 1/m, smoothed over 4 m."""
        raw = np.gradient(self.heading, self.s)
        kernel = np.ones(9) / 9
        return np.convolve(np.pad(raw, 4, "edge"), kernel, "valid")


def joined(first: Path, second: Path) -> Path:
    """``first``, a smooth turn, then ``second``."""
    start, end = first.points[-1], second.points[0]
    reach = 0.56 * float(np.hypot(*(end - start)))
    a = start + reach * np.array([np.cos(first.heading[-1]), np.sin(first.heading[-1])])
    b = end - reach * np.array([np.cos(second.heading[0]), np.sin(second.heading[0])])
    u = np.linspace(0, 1, 60)[:, None]
    bezier = (1 - u) ** 3 * start + 3 * u * (1 - u) ** 2 * a + 3 * u**2 * (1 - u) * b + u**3 * end
    return Path(np.concatenate([first.points[:-1], bezier, second.points[1:]]))
