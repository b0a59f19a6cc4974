# SPDX-License-Identifier: Apache-2.0
"""The demo's picture of a frame: six cameras, the scene from above far and near, and a panel with numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from bevnext_core.detections import Detections
from bevnext_core.frame import CameraFrame
from bevnext_tools.draw.bev import BevView, BoxLayer, draw_bev
from bevnext_tools.draw.cameras import camera_mosaic, detection_layer, truth_layer
from bevnext_tools.draw.colors import BACKGROUND, DIM, TEXT, TRUTH_COLOR, Color, class_color
from bevnext_tools.draw.text import draw_text, font
from bevnext_world.demo.truth import TrueBoxes

FAR, NEAR = 54.0, 22.0
"""Metres from the ego to the edge of the two views from above."""
ACCENT: Color = (255, 200, 90)


@dataclass(frozen=True)
class Status:
    """What the panel says about a frame.

    Attributes:
        name: of the drive. index, count: number of the frame and of all. seconds: since the first.
        is_key: whether it is a key frame, which is annotated and scored.
        speed: of the ego, m/s. step_seconds: what the detector took. history: past frames that it used.
    """

    name: str
    index: int
    count: int
    seconds: float
    is_key: bool
    speed: float
    step_seconds: float
    history: int


def draw_demo(
    frame: CameraFrame, detections: Detections, truth: TrueBoxes, status: Status, camera_width: int = 560
) -> np.ndarray:
    """The picture ``[H, W, 3]`` uint8 RGB, ``3 * camera_width`` wide, of a frame with six cameras.

    The images show detections only; from above, detections are filled and ground truth is an outline.
    Front cameras are above, rear cameras below, so that the directions agree with the views from above.
    """
    found, names = detection_layer(detections), detections.names
    labels = [name.replace("_", " ") for name in names]
    mosaic = camera_mosaic(frame, [BoxLayer(found.boxes, found.colors, labels)], width=camera_width)
    half = mosaic.shape[0] // 2
    size = round(mosaic.shape[1] * 0.393)
    annotated = truth_layer(truth.boxes)
    scores = [f"{score:.2f}" for score in detections.scores]
    views = []
    for extent, texts in ((FAR, [""] * len(scores)), (NEAR, scores)):
        view = draw_bev([annotated, BoxLayer(found.boxes, found.colors, texts)], BevView(size, extent))
        draw_text(view, f"from above, {extent:.0f} m to each side", 10, 20)
        views.append(view)
    panel = _panel(mosaic.shape[1] - 2 * size, size, status, Counter(names), Counter(truth.names))
    picture = np.concatenate([mosaic[:half], np.concatenate([views[0], panel, views[1]], 1), mosaic[half:]])
    for row in (half, half + size):
        picture[row - 1 : row + 1] = DIM
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


def contact_sheet(pictures: list[np.ndarray], columns: int = 2) -> np.ndarray:
    """Pictures of one size in rows of ``columns``, shrunk so that a row is as wide as one of them."""
    height, width = (side // columns for side in pictures[0].shape[:2])
    rows = -(-len(pictures) // columns)
    sheet = np.empty((rows * height, columns * width, 3), np.uint8)
    sheet[:] = BACKGROUND
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        tile = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    for line in range(1, rows):
        sheet[line * height - 2 : line * height + 2] = 255
    for line in range(1, columns):
        sheet[:, line * width - 2 : line * width + 2] = 255
    return sheet


def _panel(
    width: int, height: int, status: Status, found: Counter[str], annotated: Counter[str]
) -> np.ndarray:
    """Numbers, and the legend with the counts of each class. Laid out for 360 x 660 pixels, then scaled."""
    from bevnext_core.classes import CLASSES

    image = Image.new("RGB", (360, 660), BACKGROUND)
    draw = ImageDraw.Draw(image)

    def text(x: float, y: float, words: str, size: int = 17, color: Color = TEXT, anchor: str = "ls") -> None:
        draw.text((x, y), words, color, font(size), anchor)

    text(180, 38, "BEVNeXt", 26, (255, 255, 255), "ms")
    text(180, 62, "six cameras in, 3D boxes out", 15, DIM, "ms")
    text(20, 98, status.name)
    text(340, 98, "key frame" if status.is_key else "sweep", 17, ACCENT if status.is_key else DIM, "rs")
    rows = (
        ("frame", f"{status.index + 1} of {status.count}"),
        ("time", f"{status.seconds:.2f} s"),
        ("own speed", f"{status.speed:.1f} m/s"),
        ("detector", f"{status.step_seconds * 1e3:.0f} ms,  {1 / max(status.step_seconds, 1e-6):.1f} per s"),
        ("past frames used", str(status.history)),
    )
    for number, (name, value) in enumerate(rows):
        text(20, 124 + 23 * number, name, 16, DIM)
        text(340, 124 + 23 * number, value, 16, TEXT, "rs")
    top = 262
    text(262, top, "detected", 14, DIM, "rs")
    text(340, top, "annotated", 14, DIM, "rs")
    for number, name in enumerate(CLASSES):
        y = top + 25 * (number + 1)
        draw.rectangle((20, y - 12, 34, y + 1), class_color(name))
        text(44, y, name.replace("_", " "), 16)
        for x, count in ((262, found[name]), (340, annotated[name])):
            text(x, y, str(count) if count else "-", 16, TEXT if count else DIM, "rs")
    y = top + 25 * 11 + 10
    _sample_box(draw, 20, y, (200, 205, 215), True)
    text(56, y, "detected", 15)
    _sample_box(draw, 20, y + 24, TRUTH_COLOR, False)
    text(56, y + 24, "ground truth", 15)
    draw.line((18, y + 43, 46, y + 43), TEXT, 2)
    draw.line((39, y + 38, 46, y + 43, 39, y + 48), TEXT, 2)
    text(56, y + 48, "velocity: the way of one second", 15)
    draw.rectangle((20, 634, 340, 640), (62, 66, 74))
    share = (status.index + 1) / max(status.count, 1)
    draw.rectangle((20, 634, 20 + round(320 * share), 640), ACCENT)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _sample_box(draw: ImageDraw.ImageDraw, x: int, y: int, color: Color, filled: bool) -> None:
    faint = (color[0] // 3 + 16, color[1] // 3 + 16, color[2] // 3 + 16)
    draw.rectangle((x, y - 12, x + 24, y + 1), faint if filled else None, color, 2 if filled else 1)
