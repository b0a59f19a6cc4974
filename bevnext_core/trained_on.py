# SPDX-License-Identifier: Apache-2.0
"""What a network was trained on, as its checkpoint tells, and whether a rig is one of that kind."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bevnext_core import __version__
from bevnext_core.frame import CameraFrame

NUSCENES = (796.9, 1272.6)
"""The focal lengths of nuScenes' cameras; the one that looks back has the shortest."""

FAR = 1.25
"""A focal length this many times as long, or as short, as those of training is far from them."""


@dataclass(frozen=True)
class TrainedOn:
    """
    Attributes:
        data: name of the data set, and how much of it.
        focal_lengths: the shortest and the longest that the depth network was told, in pixels of the recorded images
            or of those that they were taken for: it has learned what things look like with these.
        revision: version of this project; date: of the end of training, ISO 8601. Empty: not known.
    """

    data: str
    focal_lengths: tuple[float, float]
    revision: str = ""
    date: str = ""

    @classmethod
    def today(cls, data: str, intrinsics: np.ndarray) -> TrainedOn:
        """``data`` with cameras of ``intrinsics`` ``[..., 3, 3]``, trained on today with this version."""
        focal = intrinsics[..., 0, 0]
        when = f"bevnext_ros {__version__}", datetime.date.today().isoformat()
        return cls(data, (float(focal.min()), float(focal.max())), *when)

    @classmethod
    def of(cls, told: Any) -> TrainedOn:
        """Inverse of :meth:`as_mapping`. Raises TypeError, ValueError, KeyError: ``told`` is something else."""
        shortest, longest = (float(value) for value in told["focal_lengths"])
        return cls(str(told["data"]), (shortest, longest), str(told.get("revision", "")), str(told.get("date", "")))

    def as_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        shortest, longest = self.focal_lengths
        when = "".join(f", {word}{value}" for word, value in (("by ", self.revision), ("", self.date)) if value)
        return f"{self.data}; focal lengths {shortest:.0f} to {longest:.0f} px{when}"

    def doubt(self, frame: CameraFrame) -> str:
        """One line when the rig is far from those of training; empty when it is not."""
        shortest, longest = self.focal_lengths
        usable = [(frame.intrinsics[i, 0, 0], name) for i, name in enumerate(frame.cameras) if frame.valid[i]]
        far = [(focal, name) for focal, name in usable if not shortest / FAR <= focal <= longest * FAR]
        if not far:
            return ""
        focal, name = max(far, key=lambda camera: max(camera[0] / longest, shortest / camera[0]))
        return (
            f"these weights were trained on {self.data}, with focal lengths of {shortest:.0f} to {longest:.0f} px; "
            f"{name} has {focal:.0f} px: expect few and misplaced boxes (docs/own_cameras.md)"
        )
