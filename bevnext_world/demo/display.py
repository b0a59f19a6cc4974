# SPDX-License-Identifier: Apache-2.0
"""Which boxes the demo draws. Submissions and scores hold all of them."""

from __future__ import annotations

import numpy as np

from bevnext_core.detections import Detections
from bevnext_core.ops.nms.operator import fast_rotated_nms

THRESHOLDS = {
    "car": 0.49,
    "truck": 0.47,
    "construction_vehicle": 0.41,
    "bus": 0.37,
    "trailer": 0.28,
    "barrier": 0.53,
    "motorcycle": 0.44,
    "bicycle": 0.35,
    "pedestrian": 0.40,
    "traffic_cone": 0.39,
}
"""Lowest score drawn, where F0.5 is best on the development split (``val``, seed 0, 8 scenes): what
``python -m scripts.choose_thresholds`` says of the demo's weights (the commands: docs/synthetic_world.md)."""
OVERLAP, LEAST_SIDE = 0.02, 1.5
"""IoU from above, of boxes of whatever classes: of those that overlap more, the best is drawn. A side counts as
1.5 m at least, for a person or a cone seen twice stands a step beside itself."""


def drawn(detections: Detections, threshold: float | None = None) -> Detections:
    """The boxes to draw, best first: each with the score of its class (or ``threshold``), and nothing twice."""
    lowest = [THRESHOLDS.get(name, 0.3) if threshold is None else threshold for name in detections.names]
    found = detections.select(detections.scores >= np.array(lowest)).above(0.0)
    x, y, _, length, width, _, yaw = np.asarray(found.boxes, np.float64)[:, :7].T
    sides = np.maximum(length, LEAST_SIDE), np.maximum(width, LEAST_SIDE)
    return found.select(fast_rotated_nms(np.stack([x, y, *sides, yaw], 1), OVERLAP, len(found)))
