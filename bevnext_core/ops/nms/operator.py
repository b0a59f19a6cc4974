# SPDX-License-Identifier: Apache-2.0
"""Rotated suppression by ``rotated_nms.cpp``, or in numpy where there is no compiler: the same boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bevnext_core.ops.compiled import DOUBLE, INT64, POINTER, Forms, HostCode
from bevnext_core.ops.nms.plain import rotated_nms

# Without fused multiply-adds: no decision may differ.
HOST = HostCode(
    Path(__file__).with_name("rotated_nms.cpp"),
    {"rotated_nms": [POINTER, INT64, DOUBLE, INT64, POINTER, POINTER]},
    tuned=False,
    flags=("-ffp-contract=off",),
)
FORMS = Forms("rotated suppression", "BEVNEXT_NMS", [HOST], plain="numpy")


def fast_rotated_nms(rectangles: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """Indices kept, best first; arguments and result as :func:`~bevnext_core.ops.nms.plain.rotated_nms`."""
    if FORMS.on("cpu") == "plain":
        return rotated_nms(rectangles, threshold, limit)
    boxes = np.asarray(rectangles, np.float64).reshape(-1, 5)
    table = np.ascontiguousarray(np.c_[boxes[:, :4], np.cos(boxes[:, 4]), np.sin(boxes[:, 4])])
    kept, found = np.empty(max(0, min(len(table), limit)), np.int64), np.zeros(1, np.int64)
    HOST("rotated_nms", table, len(table), float(threshold), int(limit), kept, found)
    return kept[: found[0]]
