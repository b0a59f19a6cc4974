"""Annotated boxes of one frame."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GroundTruth:
    """Annotated boxes of the ten detection classes in one key frame.

    Attributes:
        boxes: ``[M, 9]`` float64 in the ego frame at the anchor camera's stamp, layout of
            :mod:`bevnext_core.boxes`; the velocity is NaN where the data set has none.
        labels: ``[M]`` int64, index into ``class_names``.
        attributes: M attribute names, empty where there is none.
        num_lidar_points, num_radar_points: ``[M]`` int64.
        annotation_tokens: M tokens.
    """

    boxes: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    attributes: tuple[str, ...]
    num_lidar_points: np.ndarray
    num_radar_points: np.ndarray
    annotation_tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """Class name of each box."""
        return [self.class_names[int(label)] for label in self.labels]

    @property
    def num_points(self) -> np.ndarray:
        """``[M]``: lidar and radar points inside each box."""
        return self.num_lidar_points + self.num_radar_points

    def select(self, mask: np.ndarray) -> GroundTruth:
        """Those where ``mask`` (``[M]`` bool) is true."""
        keep = np.flatnonzero(np.asarray(mask, bool))
        names = ("boxes", "labels", "num_lidar_points", "num_radar_points")
        tuples = {name: tuple(getattr(self, name)[i] for i in keep) for name in ("attributes", "annotation_tokens")}
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in names}, **tuples)
