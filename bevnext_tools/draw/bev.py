# SPDX-License-Identifier: Apache-2.0
"""Pictures: boxes seen from above."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bevnext_core.boxes import box_corners
from bevnext_tools.draw.colors import BACKGROUND, DIM, GRID, TEXT, TRUTH_COLOR, Color, class_color
from bevnext_tools.draw.text import Labels, draw_text

_SHIFT = 4
"""Fractional bits of drawn coordinates: without them lines jump by whole pixels."""


@dataclass(frozen=True)
class BoxLayer:
    """Boxes to draw: ``boxes [M, 9]`` in the ego frame, a colour and a label per box.

    ``truth`` layers are drawn thin and without labels, below the others.
    """

    boxes: np.ndarray
    colors: list[Color]
    labels: list[str]
    truth: bool = False


def draw_line(image: np.ndarray, start: np.ndarray, end: np.ndarray, color: Color, thickness: int = 1) -> None:
    """Draw an anti-aliased line between pixel coordinates; one that misses the image costs nothing."""
    ends = np.array([start, end], np.float64)
    height, width = image.shape[:2]
    if not np.isfinite(ends).all() or np.abs(ends).max() > 1e5:
        return
    if (ends.max(0) < 0).any() or ends[:, 0].min() > width or ends[:, 1].min() > height:
        return
    first, second = np.round(ends * (1 << _SHIFT)).astype(int).tolist()
    cv2.line(image, first, second, color, thickness, cv2.LINE_AA, _SHIFT)


@dataclass(frozen=True)
class BevView:
    """The map from the ego frame to a square picture: x forward is up, y left is left, the ego in the centre.

    ``size`` in pixels; ``extent`` in metres from the centre to each edge.
    """

    size: int = 720
    extent: float = 54.0

    @property
    def scale(self) -> float:
        """Pixels per metre."""
        return self.size / (2 * self.extent)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Ego coordinates ``[..., >=2]`` -> pixels ``[..., 2]`` (column, row)."""
        points = np.asarray(points, np.float64)
        center = self.size / 2
        return np.stack([center - points[..., 1] * self.scale, center - points[..., 0] * self.scale], -1)


def draw_bev(
    layers: list[BoxLayer],
    view: BevView = BevView(),
    points: np.ndarray | None = None,
    hidden: np.ndarray | None = None,
) -> np.ndarray:
    """Boxes from above -> ``[size, size, 3]`` uint8 RGB.

    Args:
        layers: drawn in order. A filled box is a detection, an outline in one colour is ground truth; the
            line from the centre through the front face is the heading, the arrow the way of one second. Labels
            stand where there is room, those of the first boxes first.
        points: ``[P, >=2]`` points in the ego frame (lidar), drawn below the boxes.
        hidden: ``[size, size]`` bool, pixels that are hatched: no camera looks there.
    """
    image = np.full((view.size, view.size, 3), BACKGROUND, np.uint8)
    if hidden is not None:
        image[hidden & _hatching(view.size, view.size)] = GRID
    _draw_ground(image, view)
    if points is not None and len(points):
        place = np.floor(view.pixels(points)).astype(np.int64)
        inside = ((place >= 0) & (place < view.size)).all(1)
        image[place[inside, 1], place[inside, 0]] = (110, 116, 128)
    for layer in layers:
        _draw_layer(image, view, layer)
    labels = Labels(image)
    for layer in layers:
        for outline, color, text in zip(view.pixels(_ground(layer.boxes)), layer.colors, layer.labels):
            if text and not layer.truth:
                (left, top), (_, bottom) = outline.min(0), outline.max(0)
                labels.put(text, left, top - 2, bottom + 2, color)
    return image


def _draw_ground(image: np.ndarray, view: BevView) -> None:
    """Rings every 10 m, axes, and the ego about its rear axle (a Renault Zoe's outline), its nose pointing up."""
    center = (view.size // 2, view.size // 2)
    for radius in range(10, int(view.extent * 1.5), 10):
        cv2.circle(image, center, round(radius * view.scale), GRID, 1, cv2.LINE_AA)
        if radius % 20 == 0 and radius < view.extent:
            x, y = view.pixels(np.array([radius, 0.0]))
            draw_text(image, f"{radius} m", x + 3, y - 3, DIM, 12)
    for axis in np.eye(2) * view.extent:
        start, end = view.pixels(np.stack([axis, -axis]))
        draw_line(image, start, end, GRID)
    outline = view.pixels(np.array([(3.3, 0.0), (2.6, 0.9), (-0.8, 0.9), (-0.8, -0.9), (2.6, -0.9)]))
    cv2.fillPoly(image, [np.round(outline).astype(np.int32)], (225, 228, 235), cv2.LINE_AA)


def _draw_layer(image: np.ndarray, view: BevView, layer: BoxLayer) -> None:
    outlines = view.pixels(_ground(layer.boxes))
    shown = np.flatnonzero((np.abs(outlines) <= 1e5).all((1, 2)))  # NaN compares as false
    if not layer.truth:
        filled = image.copy()
        for index in shown:
            cv2.fillPoly(filled, [np.round(outlines[index]).astype(np.int32)], layer.colors[index], cv2.LINE_AA)
        cv2.addWeighted(filled, 0.35, image, 0.65, 0, image)
    for index in shown:
        box, outline, color = layer.boxes[index], outlines[index], layer.colors[index]
        thickness = 1 if layer.truth else 2
        for start, end in zip(outline, np.roll(outline, -1, 0)):
            draw_line(image, start, end, color, thickness)
        center, tip = view.pixels(np.stack([box[:2], box[:2] + box[7:9]]))
        draw_line(image, center, outline[:2].mean(0), color, thickness)
        if np.hypot(*box[7:9]) > 0.5 and np.abs(tip).max() < 1e4:
            start, end = (tuple(map(int, np.round(point))) for point in (center, tip))
            cv2.arrowedLine(image, start, end, color, 1, cv2.LINE_AA, tipLength=0.2)


def _ground(boxes: np.ndarray) -> np.ndarray:
    """``[M, 4, 2]``: corners on the ground in the ego frame, the front ones first."""
    return box_corners(boxes)[:, [0, 3, 7, 4], :2]


def _hatching(height: int, width: int, step: int = 10) -> np.ndarray:
    """``[height, width]`` bool: diagonal lines."""
    return np.add.outer(np.arange(height), np.arange(width)) % step == 0


def draw_legend(image: np.ndarray, names: list[str], truth: bool, hidden: bool = False) -> None:
    """Class names in their colours at the lower left, in place.

    ``truth`` adds the style of ground truth, ``hidden`` that of places at which no camera looks.
    """
    entries = [(name, class_color(name)) for name in names] + [("ground truth", TRUTH_COLOR)] * truth
    entries += [("no camera looks here", GRID)] * hidden
    y = image.shape[0] - 17 * len(entries) - 6
    for name, color in entries:
        y += 17
        if color == GRID:
            image[y - 9 : y + 1, 8:19][_hatching(10, 11, 4)] = DIM
        else:
            cv2.rectangle(image, (8, y - 9), (18, y), color, 1 if color == TRUTH_COLOR else cv2.FILLED)
        draw_text(image, name.replace("_", " "), 24, y, TEXT, 13)
