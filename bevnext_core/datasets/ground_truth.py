"""Annotated boxes of one key frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevnext_core.boxes import boxes_from_nuscenes
from bevnext_core.datasets.nuscenes_tables import numbers, row_of, stamp_ns
from bevnext_core.errors import DatasetError


@dataclass(frozen=True)
class GroundTruth:
    """Annotated boxes of the ten detection classes in one key frame.

    Attributes:
        boxes: ``[M, 9]`` float64 in the ego frame at the anchor camera's stamp, layout of
            :mod:`bevnext_core.boxes`; the velocity is NaN where the data set has none.
        labels: ``[M]`` int64, index into ``class_names``.
        attributes: M attribute names, empty where there is none.
        num_lidar_points, num_radar_points: ``[M]`` int64, -1 where the data set does not say.
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
        """``[M]``: lidar and radar points inside each box; -1 where the lidar's are not known."""
        return np.where(
            self.num_lidar_points < 0, -1, self.num_lidar_points + np.maximum(self.num_radar_points, 0)
        )

    def select(self, mask: np.ndarray) -> GroundTruth:
        """Those where ``mask`` (``[M]`` bool) is true."""
        keep = np.flatnonzero(np.asarray(mask, bool))
        names = ("boxes", "labels", "num_lidar_points", "num_radar_points")
        tuples = {name: tuple(getattr(self, name)[i] for i in keep) for name in ("attributes", "annotation_tokens")}
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in names}, **tuples)


def annotated_boxes(
    tables: Any, sample_token: str, class_names: Sequence[str], ego_from_global: np.ndarray
) -> GroundTruth:
    """The boxes of one key frame. Velocities, attributes and points that the tables lack are NaN, empty and -1.

    Raises:
        DatasetError: the annotations cannot be used; names table, field and row.
    """
    if getattr(tables, "truth_fault", ""):
        raise DatasetError(tables.truth_fault)
    from nuscenes.eval.detection.utils import category_to_detection_name

    attribute_names = {row["token"]: row["name"] for row in tables.attribute}
    rows, labels = [], []
    for token in row_of(tables, "sample", sample_token)["anns"]:
        row = row_of(tables, "sample_annotation", token)
        name = category_to_detection_name(row["category_name"])
        if name in class_names:
            rows.append(row)
            labels.append(class_names.index(name))

    def column(field: str, size: int) -> np.ndarray:
        return np.array([numbers("sample_annotation", row, field, size) for row in rows]).reshape(-1, size)

    def counts(field: str) -> np.ndarray:
        given = [row if row.get(field) is not None else {**row, field: -1} for row in rows]
        return np.array([numbers("sample_annotation", row, field) for row in given], np.int64)

    first_attributes = [next(iter(row.get("attribute_tokens") or ()), "") for row in rows]
    return GroundTruth(
        boxes=boxes_from_nuscenes(
            column("translation", 3),
            column("size", 3),
            column("rotation", 4),
            np.array([_velocity(tables, row) for row in rows], np.float64).reshape(-1, 3),
            ego_from_global,
        ),
        labels=np.array(labels, np.int64),
        class_names=tuple(class_names),
        attributes=tuple(attribute_names.get(token, "") for token in first_attributes),
        num_lidar_points=counts("num_lidar_pts"),
        num_radar_points=counts("num_radar_pts"),
        annotation_tokens=tuple(row["token"] for row in rows),
    )


def _velocity(tables: Any, row: dict[str, Any]) -> np.ndarray:
    """The devkit's velocity ``[3]`` in m/s, after a look at what it takes of the tables."""
    if row.get("prev") is None or row.get("next") is None:
        return np.full(3, np.nan)
    for token in filter(None, (row["prev"], row["next"], row["token"])):
        other = row_of(tables, "sample_annotation", token)
        numbers("sample_annotation", other, "translation", 3)
        stamp_ns("sample", row_of(tables, "sample", other["sample_token"]))
    return tables.box_velocity(row["token"])
