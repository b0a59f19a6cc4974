"""Pictures: boxes seen from above."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bevnext_core.boxes import box_corners
from bevnext_core.draw.colors import BACKGROUND, DIM, GRID, TEXT, TRUTH_COLOR, Color, class_color
from bevnext_core.draw.text import Labels, draw_text

ARROW_SECONDS = 1.0
"""A velocity arrow shows the way of this time."""
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


def draw_line(
    image: np.ndarray, start: np.ndarray, end: np.ndarray, color: Color, thickness: int = 1
) -> None:
    """Draw an anti-aliased line between pixel coordinates ; one that misses the image costs nothing."""
    ends = np.array([start, end], np.float64)
    height, width = image.shape[:2]
    if not np.isfinite(ends).all() or np.abs(ends).max() > 1e5:
        return
    if (ends.max(0) < 0).any() or ends[:, 0].min() > width or ends[:, 1].min() > height:
        return
    fixed = np.round(ends * (1 << _SHIFT)).astype(int)
    first, second = (int(fixed[0, 0]), int(fixed[0, 1])), (int(fixed[1, 0]), int(fixed[1, 1]))
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
    layers: list[BoxLayer], view: BevView = BevView(), points: np.ndarray | None = None
) -> np.ndarray:
    """Boxes from above -> ``[size, size, 3]`` uint8 RGB.

    Args:
        layers: drawn in order. A filled box is a detection, an outline in one colour is ground truth; the
            line from the centre through the front face is the heading, the arrow the way of one second. Labels
            stand where there is room, those of the first boxes first.
        points: ``[P, >=2]`` points in the ego frame (lidar), drawn below the boxes.
    """
    image = np.empty((view.size, view.size, 3), np.uint8)
    image[:] = BACKGROUND
    _draw_rings(image, view)
    if points is not None and len(points):
        place = np.floor(view.pixels(points)).astype(np.int64)
        inside = ((place >= 0) & (place < view.size)).all(1)
        image[place[inside, 1], place[inside, 0]] = (110, 116, 128)
    _draw_ego(image, view)
    for layer in layers:
        for box, color in zip(layer.boxes, layer.colors):
            _draw_box(image, view, box, color, layer.truth)
    labels = Labels(image)
    for layer in layers:
        for box, color, text in zip(layer.boxes, layer.colors, layer.labels):
            if text and not layer.truth:
                ground = view.pixels(box_corners(box[None])[0][[0, 3, 7, 4], :2])
                labels.put(text, ground[:, 0].min(), ground[:, 1].min() - 2, ground[:, 1].max() + 2, color)
    return image


def _draw_rings(image: np.ndarray, view: BevView) -> None:
    center = (view.size // 2, view.size // 2)
    for radius in range(10, int(view.extent * 1.5), 10):
        cv2.circle(image, center, round(radius * view.scale), GRID, 1, cv2.LINE_AA)
        if radius % 20 == 0 and radius < view.extent:
            x, y = view.pixels(np.array([radius, 0.0]))
            draw_text(image, f"{radius} m", x + 3, y - 3, DIM, 12)
    for ends in (((view.extent, 0), (-view.extent, 0)), ((0, view.extent), (0, -view.extent))):
        start, end = view.pixels(np.array(ends, np.float64))
        draw_line(image, start, end, GRID)


def _draw_ego(image: np.ndarray, view: BevView) -> None:
    """The ego vehicle about its rear axle (a Renault Zoe's outline), its nose pointing up."""
    outline = view.pixels(np.array([(3.3, 0.0), (2.6, 0.9), (-0.8, 0.9), (-0.8, -0.9), (2.6, -0.9)]))
    cv2.fillPoly(image, [np.round(outline).astype(np.int32)], (225, 228, 235), cv2.LINE_AA)


def _draw_box(image: np.ndarray, view: BevView, box: np.ndarray, color: Color, truth: bool) -> None:
    ground = view.pixels(box_corners(box[None])[0][[0, 3, 7, 4], :2])
    if not np.isfinite(ground).all() or np.abs(ground).max() > 1e5:
        return
    if not truth:
        rows, columns = slice(*_span(ground[:, 1], view.size)), slice(*_span(ground[:, 0], view.size))
        patch = image[rows, columns]
        if patch.size:
            overlay = patch.copy()
            corners = np.round(ground - (columns.start, rows.start)).astype(np.int32)
            cv2.fillPoly(overlay, [corners], color, cv2.LINE_AA)
            image[rows, columns] = cv2.addWeighted(overlay, 0.35, patch, 0.65, 0)
    thickness = 1 if truth else 2
    for index in range(4):
        draw_line(image, ground[index], ground[(index + 1) % 4], color, thickness)
    center = view.pixels(box[:2])
    draw_line(image, center, (ground[0] + ground[1]) / 2, color, thickness)
    velocity = np.asarray(box[7:9], np.float64)
    if np.isfinite(velocity).all() and np.hypot(*velocity) > 0.5:
        tip = view.pixels(box[:2] + velocity * ARROW_SECONDS)
        if np.abs(tip).max() < 1e4:
            start, end = tuple(int(v) for v in np.round(center)), tuple(int(v) for v in np.round(tip))
            cv2.arrowedLine(image, start, end, color, 1, cv2.LINE_AA, tipLength=0.2)


def _span(values: np.ndarray, size: int) -> tuple[int, int]:
    """First pixel and the one after the last, inside the picture."""
    return int(np.clip(np.floor(values.min()), 0, size)), int(np.clip(np.ceil(values.max()) + 1, 0, size))


def draw_legend(image: np.ndarray, names: list[str], truth: bool) -> None:
    """Class names in their colours at the lower left, in place; ``truth`` adds the style of ground truth."""
    entries = [(name, class_color(name)) for name in names] + (
        [("ground truth", TRUTH_COLOR)] if truth else []
    )
    y = image.shape[0] - 17 * len(entries) - 6
    for name, color in entries:
        y += 17
        cv2.rectangle(image, (8, y - 9), (18, y), color, 1 if color == TRUTH_COLOR else cv2.FILLED)
        draw_text(image, name.replace("_", " "), 24, y, TEXT, 13)
