# SPDX-License-Identifier: Apache-2.0
"""Which boxes the demo draws. Submissions and scores hold all of them."""

from __future__ import annotations

import numpy as np

from bevnext_core.detections import Detections
from bevnext_tools.draw.choice import without_doubles

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


def drawn(detections: Detections, threshold: float | None = None) -> Detections:
    """The boxes to draw, best first: each with the score of its class (or ``threshold``), and nothing twice."""
    lowest = [THRESHOLDS.get(name, 0.3) if threshold is None else threshold for name in detections.names]
    return without_doubles(detections.select(detections.scores >= np.array(lowest)))
