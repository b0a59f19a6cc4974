# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression of boxes in the BEV plane: by rotated IoU, and by centre distance.

Greedy, on the host, over at most a few hundred boxes per task: each kept box is compared with all that remain
at once, in float64, by clipping them against its four edges. ``operator.py`` does the same in C++.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def rectangle_corners(rectangles: np.ndarray) -> np.ndarray:
    """``[M, 5]`` (x, y, length, width, yaw) -> ``[M, 4, 2]``, counter-clockwise."""
    x, y, length, width, yaw = np.asarray(rectangles, np.float64).T
    cos, sin = np.cos(yaw), np.sin(yaw)
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    dx = signs[None, :, 0] * length[:, None]
    dy = signs[None, :, 1] * width[:, None]
    cos, sin = cos[:, None], sin[:, None]
    return np.stack([x[:, None] + dx * cos - dy * sin, y[:, None] + dx * sin + dy * cos], -1)


def intersection_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas ``[P]`` of the intersection of convex quadrilaterals ``a[i]`` and ``b[i]``, ``[P, 4, 2]`` each.

    Sutherland-Hodgman clipping of all pairs together, counter-clockwise. Each cut adds at most one vertex; a
    polygon with fewer repeats its last one, which adds no area.
    """
    polygon = np.array(a, np.float64)
    for edge in range(4):
        start, end = b[:, edge], b[:, (edge + 1) % 4]
        direction = end - start
        relative = polygon - start[:, None]
        # Positive on the inner (left) side of a counter-clockwise edge.
        side = direction[:, None, 0] * relative[..., 1] - direction[:, None, 1] * relative[..., 0]
        next_side = np.roll(side, -1, 1)
        inside = side >= 0
        crosses = inside != (next_side >= 0)
        fraction = side / np.where(crosses, side - next_side, 1.0)
        crossing = polygon + fraction[..., None] * (np.roll(polygon, -1, 1) - polygon)
        pairs, corners = side.shape
        vertices = np.stack([polygon, crossing], 2).reshape(pairs, 2 * corners, 2)
        kept = np.stack([inside, crosses], 2).reshape(pairs, 2 * corners)
        order = np.argsort(~kept, 1, kind="stable")[:, : corners + 1]
        last = np.maximum(kept.sum(1, keepdims=True) - 1, 0)
        order = np.take_along_axis(order, np.minimum(np.arange(order.shape[1]), last), 1)
        polygon = np.take_along_axis(vertices, order[..., None], 1)
        polygon[~kept.any(1)] = 0.0
    polygon = polygon - polygon[:, :1]
    x, y = polygon[..., 0], polygon[..., 1]
    return np.abs((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)) / 2


def rotated_iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU ``[M]`` of the rectangle ``one [5]`` (x, y, length, width, yaw) with each of ``others [M, 5]``."""
    one, others = np.asarray(one, np.float64), np.asarray(others, np.float64)
    iou = np.zeros(len(others))
    # Only rectangles whose circumscribed circles meet can overlap.
    reach = np.hypot(one[2], one[3]) / 2 + np.hypot(others[:, 2], others[:, 3]) / 2
    near = np.flatnonzero(np.hypot(*(others[:, :2] - one[:2]).T) < reach)
    if len(near) == 0:
        return iou
    # Coordinates relative to the first rectangle keep the products small.
    moved = others[near] - [one[0], one[1], 0, 0, 0]
    corners = rectangle_corners(np.array([[0, 0, *one[2:]]]))
    overlap = intersection_areas(rectangle_corners(moved), np.repeat(corners, len(near), 0))
    union = one[2] * one[3] + moved[:, 2] * moved[:, 3] - overlap
    iou[near] = overlap / np.maximum(union, 1e-12)
    return iou


def rotated_nms(rectangles: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """Indices kept, best first, of ``[M, 5]`` rectangles in falling order of score: suppress where IoU > threshold."""
    return _greedy(rectangles, limit, lambda best, others: rotated_iou(best, others) <= threshold)


def circle_nms(centers: np.ndarray, squared_distance: float, limit: int) -> np.ndarray:
    """Indices kept of ``[M, 2]`` centres in falling order of score: suppress where the squared distance is small."""
    return _greedy(centers, limit, lambda best, others: ((others - best) ** 2).sum(1) > squared_distance)


def _greedy(boxes: np.ndarray, limit: int, apart: Callable[..., np.ndarray]) -> np.ndarray:
    """The best of what remains is kept, again and again, and only those remain that are ``apart`` from it."""
    boxes = np.asarray(boxes, np.float64)
    remaining = np.arange(len(boxes))
    kept: list[int] = []
    while len(remaining) and len(kept) < limit:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        remaining = remaining[apart(boxes[best], boxes[remaining])]
    return np.array(kept, np.int64)
