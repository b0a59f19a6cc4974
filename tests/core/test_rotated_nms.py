# SPDX-License-Identifier: Apache-2.0
"""Rotated IoU against shapely and torchvision, and the suppression rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon
from torchvision.ops import box_iou

from bevnext_core.ops.nms.operator import fast_rotated_nms
from bevnext_core.ops.nms.plain import circle_nms, rectangle_corners, rotated_iou, rotated_nms


def by_shapely(rectangles: np.ndarray) -> np.ndarray:
    shapes = [Polygon(corners) for corners in rectangle_corners(rectangles)]
    return np.array([[a.intersection(b).area / a.union(b).area for b in shapes] for a in shapes])


def iou_matrix(rectangles: np.ndarray) -> np.ndarray:
    return np.array([rotated_iou(one, rectangles) for one in rectangles])


def test_random_rectangles() -> None:
    rng = np.random.default_rng(0)
    rectangles = np.concatenate(
        [rng.uniform(-6, 6, (60, 2)), rng.uniform(0.3, 9, (60, 2)), rng.uniform(-4, 4, (60, 1))], 1
    )
    rectangles += [600.0, 1600.0, 0, 0, 0]
    iou = iou_matrix(rectangles)
    assert ((iou > 0.05) & (iou < 0.9)).sum() > 200
    np.testing.assert_allclose(iou, by_shapely(rectangles), atol=1e-9)


SIDE = st.floats(0.1, 12)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-3, 3),
    st.floats(-3, 3),
    SIDE,
    SIDE,
    SIDE,
    SIDE,
    st.sampled_from([0.0, 0.3, 0.785398, 1.570796, 3.1]),
)
def test_pairs(x: float, y: float, l1: float, w1: float, l2: float, w2: float, yaw: float) -> None:
    pair = np.array([[0, 0, l1, w1, 0.0], [x, y, l2, w2, yaw]])
    np.testing.assert_allclose(iou_matrix(pair), by_shapely(pair), atol=1e-7)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 4, 2, 0), 1.0),  # the same
        ((0, 0, 4, 2, np.pi), 1.0),  # turned about
        ((0, 0, 2, 4, np.pi / 2), 1.0),  # the same rectangle, described the other way
        ((4, 0, 4, 2, 0), 0.0),  # touching edges
        ((4, 2, 4, 2, 0), 0.0),  # touching corners
        ((0, 0, 2, 1, 0.3), 0.25),  # inside
        ((2, 0, 4, 2, 0), 1 / 3),  # half overlapping
        ((100, 0, 4, 2, 0), 0.0),
    ],
)
def test_special_positions(other: tuple[float, ...], expected: float) -> None:
    iou = iou_matrix(np.array([(0, 0, 4, 2, 0), other], float))
    assert iou[0, 1] == pytest.approx(expected, abs=1e-9)
    assert iou[0, 1] == pytest.approx(iou[1, 0], abs=1e-12)


def by_torchvision(rectangles: np.ndarray) -> np.ndarray:
    """IoU of all pairs; in its frame y points down, so its angles (degrees) have the other sign."""
    boxes = torch.from_numpy(rectangles * [1, 1, 1, 1, -180 / np.pi])
    return box_iou(boxes, boxes, fmt="cxcywhr").numpy()


@pytest.mark.parametrize("extent", [4, 8, 12])
def test_against_torchvision(extent: float) -> None:
    """IoU of all pairs, and what either form keeps by it."""
    rng = np.random.default_rng(int(extent))
    sides = [
        rng.uniform(-extent, extent, (60, 2)),
        rng.uniform(0.3, 9, (60, 2)),
        rng.uniform(-4, 4, (60, 1)),
    ]
    rectangles = np.concatenate(sides, 1)
    iou = by_torchvision(rectangles)
    np.testing.assert_allclose(iou_matrix(rectangles), iou, atol=1e-5)
    counts: list[int] = []
    for threshold in (0.02, 0.2, 0.5):
        assert np.abs(iou - threshold).min() > 1e-5, "too close to call in single precision"
        kept: list[int] = []
        for index in range(len(rectangles)):
            if not (iou[kept, index] > threshold).any():
                kept.append(index)
        counts.append(len(kept))
        assert rotated_nms(rectangles, threshold, 500).tolist() == kept
        assert fast_rotated_nms(rectangles, threshold, 500).tolist() == kept
    assert 3 < counts[0] < counts[1] < counts[2]


def test_nothing_in_nothing_out() -> None:
    assert rotated_nms(np.zeros((0, 5)), 0.2, 83).size == 0
    assert circle_nms(np.zeros((0, 2)), 1.0, 83).size == 0


def test_suppression_is_greedy_and_strict() -> None:
    # 0 suppresses 1 (IoU 1/3 > 0.3); 2 overlaps only 1, which is gone, so 2 stays.
    row = np.array([[0, 0, 4, 2, 0], [2, 0, 4, 2, 0], [4, 0, 4, 2, 0]], float)
    assert rotated_nms(row, 0.3, 83).tolist() == [0, 2]
    # Exactly at the threshold stays: suppression asks for IoU > threshold.
    assert rotated_nms(row, rotated_iou(row[0], row)[1], 83).tolist() == [0, 1, 2]
    assert rotated_nms(row, 0.3, 1).tolist() == [0]


def test_circle_compares_squared_distance() -> None:
    # The published barrier radius of 1 is compared with the squared distance: 1.0 suppresses, 1.01 does not.
    assert circle_nms(np.array([[0, 0], [1.0, 0], [0, 1.01]]), 1.0, 83).tolist() == [0, 2]
    assert circle_nms(np.array([[0, 0], [1.9, 0]]), 4.0, 83).tolist() == [0]
