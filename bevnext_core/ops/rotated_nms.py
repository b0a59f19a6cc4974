"""Non-maximum suppression of boxes in the BEV plane: by rotated IoU, and by centre distance.

The suppression itself is greedy and runs on the host over at most a few hundred boxes; the IoU matrix is
computed for all pairs at once, in float64, by clipping one rectangle against the other's four edges.
"""

from __future__ import annotations

import numpy as np


def rectangle_corners(rectangles: np.ndarray) -> np.ndarray:
    """``[M, 5]`` (x, y, length, width, yaw) -> ``[M, 4, 2]``, counter-clockwise."""
    x, y, length, width, yaw = np.asarray(rectangles, np.float64).T
    cos, sin = np.cos(yaw), np.sin(yaw)
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    dx = signs[None, :, 0] * length[:, None]
    dy = signs[None, :, 1] * width[:, None]
    return np.stack(
        [
            x[:, None] + dx * cos[:, None] - dy * sin[:, None],
            y[:, None] + dx * sin[:, None] + dy * cos[:, None],
        ],
        -1,
    )


def intersection_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas ``[P]`` of the intersection of convex quadrilaterals ``a[i]`` and ``b[i]``, ``[P, 4, 2]`` each.

    Sutherland-Hodgman clipping of all pairs together: each of the four cuts turns an edge of the polygon into
    at most one kept start vertex and one crossing; vertices that are cut away collapse onto a neighbour and
    add no area.
    """
    polygon = np.array(a, np.float64)
    pairs = len(polygon)
    for edge in range(4):
        start, end = b[:, edge], b[:, (edge + 1) % 4]
        direction = end - start
        relative = polygon - start[:, None]
        # Positive on the inner (left) side of a counter-clockwise edge.
        side = direction[:, None, 0] * relative[..., 1] - direction[:, None, 1] * relative[..., 0]
        following, next_side = np.roll(polygon, -1, 1), np.roll(side, -1, 1)
        crosses = (side >= 0) != (next_side >= 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = np.where(crosses, side / (side - next_side), 0.0)
        crossing = polygon + fraction[..., None] * (following - polygon)
        vertices = np.stack([polygon, crossing], 2).reshape(pairs, 2 * polygon.shape[1], 2)
        kept = np.stack([side >= 0, crosses], 2).reshape(pairs, vertices.shape[1])
        # A dropped vertex takes the place of the last kept one before it (cyclically): a degenerate edge.
        count = vertices.shape[1]
        position = np.where(np.concatenate([kept, kept], 1), np.arange(2 * count), -1)
        source = np.maximum.accumulate(position, 1)[:, count:]
        empty = ~kept.any(1)
        source = np.where(source < 0, 0, source % count)
        polygon = np.take_along_axis(vertices, source[..., None], 1)
        polygon[empty] = 0.0
    x, y = polygon[..., 0], polygon[..., 1]
    center = polygon.mean(1, keepdims=True)
    x, y = x - center[..., 0], y - center[..., 1]
    return np.abs((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)) / 2


def rotated_iou(rectangles: np.ndarray) -> np.ndarray:
    """IoU of every pair of ``[M, 5]`` rectangles (x, y, length, width, yaw): ``[M, M]`` float64."""
    rectangles = np.asarray(rectangles, np.float64)
    count = len(rectangles)
    iou = np.zeros((count, count))
    if count == 0:
        return iou
    area = rectangles[:, 2] * rectangles[:, 3]
    np.fill_diagonal(iou, 1.0)
    # Only pairs whose circumscribed circles meet can overlap.
    radius = np.hypot(rectangles[:, 2], rectangles[:, 3]) / 2
    first, second = np.triu_indices(count, 1)
    distance = np.hypot(*(rectangles[first, :2] - rectangles[second, :2]).T)
    near = distance < radius[first] + radius[second]
    first, second = first[near], second[near]
    corners = rectangle_corners(rectangles)
    # Coordinates relative to the first rectangle keep the products small.
    origin = rectangles[first, None, :2]
    overlap = intersection_areas(corners[first] - origin, corners[second] - origin)
    union = area[first] + area[second] - overlap
    iou[first, second] = iou[second, first] = overlap / np.maximum(union, 1e-12)
    return iou


def _greedy(suppresses: np.ndarray, limit: int) -> np.ndarray:
    alive = np.ones(len(suppresses), bool)
    kept = []
    for index in range(len(suppresses)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == limit:
            break
        alive &= ~suppresses[index]
    return np.array(kept, np.int64)


def rotated_nms(rectangles: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """Indices kept, best first, of ``[M, 5]`` rectangles in falling order of score: suppress where IoU > threshold."""
    return _greedy(rotated_iou(rectangles) > threshold, limit)


def circle_nms(centers: np.ndarray, squared_distance: float, limit: int) -> np.ndarray:
    """Indices kept of ``[M, 2]`` centres in falling order of score: suppress where the squared distance is small."""
    centers = np.asarray(centers, np.float64)
    distance = ((centers[:, None] - centers[None]) ** 2).sum(-1)
    return _greedy(distance <= squared_distance, limit)
