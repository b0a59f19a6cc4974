# SPDX-License-Identifier: Apache-2.0
"""Which boxes pictures show: no thing twice. Files and scores hold all of them."""

from __future__ import annotations

import numpy as np

from bevnext_core.detections import Detections
from bevnext_core.ops.nms.operator import fast_rotated_nms

OVERLAP, LEAST_SIDE = 0.02, 1.5
"""IoU from above, of boxes of whatever classes: of those that overlap more, the best is drawn. A side counts as
1.5 m at least, for a person or a cone seen twice stands a step beside itself."""


def without_doubles(detections: Detections, score: float = 0.0) -> Detections:
    """Those with at least ``score`` of which none overlaps a better one, best first."""
    found = detections.above(score)
    x, y, _, length, width, _, yaw = np.asarray(found.boxes, np.float64)[:, :7].T
    sides = np.maximum(length, LEAST_SIDE), np.maximum(width, LEAST_SIDE)
    return found.select(fast_rotated_nms(np.stack([x, y, *sides, yaw], 1), OVERLAP, len(found)))
