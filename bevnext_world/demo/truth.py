# SPDX-License-Identifier: Apache-2.0
"""Annotated boxes at any frame of a drive; nuScenes has them at key frames only. For pictures, not for scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevnext_core.boxes import boxes_from_nuscenes
from bevnext_core.datasets.ground_truth import class_of
from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.geometry import invert_rigid


@dataclass(frozen=True)
class TrueBoxes:
    """``boxes [M, 9]`` in the ego frame, and the class of each."""

    boxes: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


def true_boxes(reader: NuScenesReader, ref: FrameRef) -> TrueBoxes:
    """The objects that a lidar or radar point lies on: annotated, or between two key frames the devkit's interpolation.

    One that is annotated in the later of the two only is not shown yet: nobody says where it was.
    """
    tables, shown, names = reader.tables, [], []
    for box in tables.get_boxes(ref.records[reader.anchor_camera]["token"]):
        row = tables.get("sample_annotation", box.token)
        name = class_of(row["category_name"], reader.class_names)
        hit = row["num_lidar_pts"] + row["num_radar_pts"] > 0
        if name is not None and hit and (ref.is_key or row["prev"]):
            shown.append(box)
            names.append(name)
    boxes = boxes_from_nuscenes(
        np.array([box.center for box in shown]),
        np.array([box.wlh for box in shown]),
        np.array([box.orientation.elements for box in shown]),
        np.array([tables.box_velocity(box.token) for box in shown]),
        invert_rigid(reader.global_from_ego(ref)),
    )
    return TrueBoxes(boxes, tuple(names))
