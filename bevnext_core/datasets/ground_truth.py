# SPDX-License-Identifier: Apache-2.0
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
    """Annotated boxes of the network's classes in one key frame.

    Attributes:
        boxes: ``[M, 9]`` float64 in the ego frame at the anchor camera's stamp, layout of
            :mod:`bevnext_core.boxes`; the velocity is NaN where the data set has none.
        labels: ``[M]`` int64, index into ``class_names``.
        attributes: ``[M]`` attribute names, empty where there is none; annotation_tokens: ``[M]``.
        num_points: ``[M]`` int64, lidar and radar points inside; -1 where the data set does not say the lidar's.
    """

    boxes: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    attributes: np.ndarray
    annotation_tokens: np.ndarray
    num_points: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """Class name of each box."""
        return [self.class_names[int(label)] for label in self.labels]

    def select(self, rows: np.ndarray) -> GroundTruth:
        """Those that ``rows``, indices or a mask, choose."""
        fields = ("boxes", "labels", "attributes", "annotation_tokens", "num_points")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in fields})


def class_of(category: str, class_names: Sequence[str]) -> str | None:
    """The class that an annotation's category belongs to: the one of that name, or nuScenes' detection class of it.

    ``None``: it is none of ``class_names``.
    """
    from nuscenes.eval.detection.utils import category_to_detection_name

    name = category if category in class_names else category_to_detection_name(category)
    return name if name in class_names else None


def annotated_boxes(
    tables: Any, sample_token: str, class_names: Sequence[str], ego_from_global: np.ndarray
) -> GroundTruth:
    """The boxes of one key frame. Velocities, attributes and points that the tables lack are NaN, empty and -1.

    Raises:
        DatasetError: the annotations cannot be used; names table, field and row.
    """
    if getattr(tables, "truth_fault", ""):
        raise DatasetError(tables.truth_fault)
    attribute_names = {row["token"]: row["name"] for row in tables.attribute}
    rows, labels = [], []
    for token in row_of(tables, "sample", sample_token)["anns"]:
        row = row_of(tables, "sample_annotation", token)
        name = class_of(row["category_name"], class_names)
        if name is not None:
            rows.append(row)
            labels.append(class_names.index(name))

    def column(field: str, size: int) -> np.ndarray:
        return np.array([numbers("sample_annotation", row, field, size) for row in rows]).reshape(-1, size)

    def counts(field: str) -> np.ndarray:
        given = [row if row.get(field) is not None else {**row, field: -1} for row in rows]
        return np.array([numbers("sample_annotation", row, field) for row in given], np.int64)

    first_attributes = [next(iter(row.get("attribute_tokens") or ()), "") for row in rows]
    velocities = np.array([_velocity(tables, row) for row in rows], np.float64).reshape(-1, 3)
    geometry = (column("translation", 3), column("size", 3), column("rotation", 4), velocities)
    lidar, radar = counts("num_lidar_pts"), counts("num_radar_pts")
    return GroundTruth(
        boxes=boxes_from_nuscenes(*geometry, ego_from_global),
        labels=np.array(labels, np.int64),
        class_names=tuple(class_names),
        attributes=np.array([attribute_names.get(token, "") for token in first_attributes], object),
        annotation_tokens=np.array([row["token"] for row in rows], object),
        num_points=np.where(lidar < 0, -1, lidar + np.maximum(radar, 0)),
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
