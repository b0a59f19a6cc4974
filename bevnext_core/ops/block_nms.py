"""Rotated non-maximum suppression by blocks: the same boxes as :func:`~bevnext_core.ops.rotated_nms.rotated_nms`.

There each kept box is compared with all that remain, one call per kept box. Here a block of boxes is, in one call;
what the calls cost beside the arithmetic is most of the time.
"""

from __future__ import annotations

import numpy as np

from bevnext_core.ops.rotated_nms import intersection_areas, rectangle_corners

BLOCK = 64
"""Boxes compared with the rest in one call: more, and many of them would turn out to be suppressed already."""


def rotated_nms_by_blocks(rectangles: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """Indices kept, best first; arguments and result as :func:`~bevnext_core.ops.rotated_nms.rotated_nms`."""
    rectangles = np.asarray(rectangles, np.float64)
    remaining = np.arange(len(rectangles))
    kept: list[int] = []
    while len(remaining):
        size = min(BLOCK, len(remaining))
        suppresses = _ious(rectangles[remaining], size) > threshold
        gone = np.zeros(len(remaining), bool)
        for index in range(size):
            if gone[index]:
                continue
            if len(kept) == limit:
                return np.array(kept, np.int64)
            kept.append(int(remaining[index]))
            gone |= suppresses[index]
        remaining = remaining[size:][~gone[size:]]
    return np.array(kept, np.int64)


def _ious(rectangles: np.ndarray, first: int) -> np.ndarray:
    """IoU ``[first, M]`` of the first rectangles with those after them in ``[M, 5]``; 0 elsewhere.

    Pair by pair the operations of :func:`~bevnext_core.ops.rotated_nms.rotated_iou`, so that no decision differs.
    """
    ious = np.zeros((first, len(rectangles)))
    reach = np.hypot(rectangles[:, 2], rectangles[:, 3]) / 2
    apart = rectangles[None, :, :2] - rectangles[:first, None, :2]
    near = np.hypot(apart[..., 0], apart[..., 1]) < reach[:first, None] + reach
    one, other = np.nonzero(np.triu(near, 1))
    if len(one) == 0:
        return ious
    a, b = rectangles[one].copy(), rectangles[other].copy()
    b[:, :2] -= a[:, :2]
    a[:, :2] = 0
    overlap = intersection_areas(rectangle_corners(b), rectangle_corners(a))
    union = a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - overlap
    ious[one, other] = overlap / np.maximum(union, 1e-12)
    return ious
