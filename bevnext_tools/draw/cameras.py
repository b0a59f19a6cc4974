# SPDX-License-Identifier: Apache-2.0
"""Pictures: boxes and points projected into the camera images, and the whole picture of a frame.

Everything is ``uint8 [H, W, 3]`` RGB. Boxes lie in the ego frame at the anchor camera's stamp; each camera
saw the world at its own stamp, so the way goes through the global frame and that camera's own pose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bevnext_core.boxes import box_corners
from bevnext_core.detections import Detections
from bevnext_core.files import atomic_path
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid, project
from bevnext_tools.draw.bev import BevView, BoxLayer, draw_bev, draw_legend, draw_line
from bevnext_tools.draw.colors import BACKGROUND, DOUBT_COLOR, TRUTH_COLOR, Color, class_color
from bevnext_tools.draw.text import Labels, draw_text, wrapped

NEAR = 0.1
"""Metres in front of a camera at which box edges are cut."""
LITTLE = 0.02
"""Share of the view from above below which the gaps between cameras are hatched and not explained."""
SMALL = 24
"""Pixels of height below which a box is drawn with thin lines and has no label: they would hide what is in it."""

_EDGES = [edge for i in range(4) for edge in ((i, (i + 1) % 4), (4 + i, 4 + (i + 1) % 4), (i, i + 4))]
_FRONT_CROSS = [(0, 2), (1, 3)]
"""Diagonals of the front face: they show the heading."""


def camera_from_ego(frame: CameraFrame) -> np.ndarray:
    """``[N, 4, 4]``: from the ego frame at the anchor's stamp to each camera at its own stamp."""
    return invert_rigid(frame.global_from_camera) @ frame.global_from_ego


def image_from_camera(frame: CameraFrame, index: int, image: np.ndarray) -> np.ndarray:
    """``[3, 3]``: camera ``index``'s coordinates to homogeneous pixels of ``image``, its picture at any size."""
    original = frame.images[index]
    assert original is not None
    x, y = image.shape[1] / original.shape[1], image.shape[0] / original.shape[0]
    # pixel centres are at whole coordinates: the picture's corner is at -0.5
    resize = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    return resize @ frame.intrinsics[index]


def draw_box_edges(
    image: np.ndarray, corners: np.ndarray, matrix: np.ndarray, color: Color, thickness: int = 1
) -> np.ndarray:
    """Draw a box's edges and the cross on its front, in place; what lies behind the camera is cut off.

    Args:
        corners: ``[8, 3]`` in the camera frame, in the order of :func:`bevnext_core.boxes.box_corners`.
        matrix: ``[3, 3]`` from camera coordinates to homogeneous pixels of ``image``.

    Returns:
        ``[P, 2]`` pixels of the drawn edges' ends, also outside the image; none where the box is behind.
    """
    drawn: list[np.ndarray] = []
    for a, b in _EDGES + _FRONT_CROSS:
        ends = _clip_near(corners[a], corners[b])
        if ends is not None:
            start, end = project(ends, matrix)[0]
            draw_line(image, start, end, color, 1 if (a, b) in _FRONT_CROSS else thickness)
            drawn += [start, end]
    return np.array(drawn).reshape(-1, 2)


def draw_boxes_in_camera(image: np.ndarray, frame: CameraFrame, index: int, layer: BoxLayer) -> None:
    """Draw boxes into ``image`` in place, camera ``index``'s picture at any size; the nearest get labels first."""
    matrix, transform = image_from_camera(frame, index, image), camera_from_ego(frame)[index]
    with np.errstate(invalid="ignore"):  # a box that is not finite is simply not drawn
        corners = box_corners(layer.boxes) @ transform[:3, :3].T + transform[:3, 3]
    inside = _may_be_seen(corners, matrix, (image.shape[1], image.shape[0]))
    # far boxes first, so that near ones lie on top
    order = [box for box in np.argsort(-corners[..., 2].mean(1)) if inside[box]]
    spans = {}
    for box in order:
        distance = max(float(corners[box, :, 2].mean()), NEAR)
        plain = layer.truth or matrix[1, 1] * layer.boxes[box, 5] / distance < SMALL
        seen = draw_box_edges(image, corners[box], matrix, layer.colors[box], 1 if plain else 2)
        if len(seen) and not plain:
            spans[box] = np.concatenate([seen.min(0), seen.max(0)])
    labels = Labels(image)
    for box in reversed(order):
        if box in spans and layer.labels[box]:
            left, top, right, bottom = spans[box]
            if 0 <= left + right < 2 * image.shape[1] and 0 <= top + bottom < 2 * image.shape[0]:
                labels.put(layer.labels[box], max(left, 0), top - 2, bottom + 2, layer.colors[box])


def hidden_from_cameras(frame: CameraFrame, view: BevView) -> np.ndarray:
    """``[size, size]`` bool: pixels of ``view`` at which no camera looks whose image counts.

    Where neither the ground nor what is up to two metres above it, nor at the camera's own height, would be in an
    image; what stands in the way does not matter.
    """
    coarse = BevView(-(-view.size // 4), view.extent)
    center = coarse.size / 2
    across, down = np.meshgrid(np.arange(coarse.size) + 0.5, np.arange(coarse.size) + 0.5)
    x, y = (center - down) / coarse.scale, (center - across) / coarse.scale
    seen, transforms = np.zeros(x.shape, bool), camera_from_ego(frame)
    for index in np.flatnonzero(frame.valid):
        matrix, (width, height) = frame.intrinsics[index] @ transforms[index][:3], frame.image_sizes[index]
        for z in (0.0, 1.0, 2.0, invert_rigid(transforms[index])[2, 3]):
            u, v, depth = (row[0] * x + row[1] * y + (row[2] * z + row[3]) for row in matrix)
            inside = (u >= -0.5 * depth) & (u < (width - 0.5) * depth) & (v >= -0.5 * depth)
            seen |= inside & (v < (height - 0.5) * depth) & (depth > NEAR)
    hidden = cv2.resize((~seen).astype(np.uint8), (view.size, view.size), interpolation=cv2.INTER_NEAREST)
    return hidden.astype(bool)


def _may_be_seen(corners: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``[M]`` bool: not all of a box's camera-frame ``corners [M, 8, 3]`` are beyond one side of the view."""
    u, v, z = np.moveaxis(corners @ matrix.T, -1, 0)
    sides = (u < 0, u > size[0] * z, v < 0, v > size[1] * z, z < NEAR)
    return ~np.any([side.all(1) for side in sides], 0)


def _clip_near(start: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """The part ``[2, 3]`` of a camera-frame segment beyond the near plane, ``None`` when there is none."""
    if start[2] < NEAR and end[2] < NEAR:
        return None
    ends = np.stack([start, end])
    for index, other in ((0, 1), (1, 0)):
        if ends[index, 2] < NEAR:
            share = (NEAR - ends[index, 2]) / (ends[other, 2] - ends[index, 2])
            ends[index] = ends[index] + share * (ends[other] - ends[index])
    return ends


def draw_points_in_camera(
    image: np.ndarray, frame: CameraFrame, index: int, points: np.ndarray, max_depth: float = 60.0
) -> int:
    """Draw ego-frame points ``[P, 3]``, coloured by depth (near red, far blue), in place -> number drawn."""
    transform = camera_from_ego(frame)[index]
    in_camera = np.asarray(points, np.float64) @ transform[:3, :3].T + transform[:3, 3]
    pixels, depths = project(in_camera, image_from_camera(frame, index, image))
    with np.errstate(invalid="ignore"):
        inside = (depths > 1.0) & (pixels >= 0).all(1) & (pixels < (image.shape[1], image.shape[0])).all(1)
    order = np.flatnonzero(inside)
    order = order[np.argsort(-depths[order])]
    shade = np.clip(255 * (1 - depths[order] / max_depth), 0, 255).astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(shade[:, None], cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)[:, 0]
    for (x, y), color in zip(pixels[order].astype(int), colors):
        cv2.circle(image, (int(x), int(y)), 1, tuple(int(v) for v in color), cv2.FILLED)
    return len(order)


def camera_mosaic(
    frame: CameraFrame,
    layers: list[BoxLayer],
    *,
    points: np.ndarray | None = None,
    width: int = 640,
    before: Callable[[np.ndarray, int], None] = lambda picture, index: None,
    titles: Mapping[str, str] | None = None,
) -> np.ndarray:
    """All cameras in rows of three, each ``width`` pixels wide, with boxes and optionally points.

    A camera that is not valid is a dark tile that says so. ``before(picture, index)`` draws below all else.
    ``titles`` are written in place of the cameras' names.
    """
    sizes = [image.shape for image in frame.images if image is not None]
    height = round(width * max((h / w for h, w, _ in sizes), default=9 / 16))
    columns = 3
    rows = -(-len(frame.cameras) // columns)
    mosaic = np.full((rows * height, columns * width, 3), BACKGROUND, np.uint8)
    for index, camera in enumerate(frame.cameras):
        row, column = divmod(index, columns)
        image = frame.images[index]
        tile = mosaic[row * height : (row + 1) * height, column * width : (column + 1) * width]
        title = (titles or {}).get(camera, camera)
        assert frame.valid is not None
        if image is None or not frame.valid[index]:
            title += ": no image"
        else:
            own_height = round(width * image.shape[0] / image.shape[1])
            picture = cv2.resize(image, (width, own_height), interpolation=cv2.INTER_AREA)
            before(picture, index)
            if points is not None:
                title += f": {draw_points_in_camera(picture, frame, index, points)} points"
            for layer in layers:
                draw_boxes_in_camera(picture, frame, index, layer)
            tile[:own_height] = picture
        draw_text(tile, title, 8, 18, (255, 255, 255), 15)
    return mosaic


def detection_layer(detections: Detections) -> BoxLayer:
    """Detections in their class's colours, labelled with class and score."""
    names = detections.names
    return BoxLayer(
        boxes=np.asarray(detections.boxes, np.float64),
        colors=[class_color(name) for name in names],
        labels=[f"{name.replace('_', ' ')} {score:.2f}" for name, score in zip(names, detections.scores)],
    )


def truth_layer(boxes: np.ndarray) -> BoxLayer:
    """Ground-truth boxes ``[M, 9]`` in one thin colour."""
    return BoxLayer(np.asarray(boxes, np.float64), [TRUTH_COLOR] * len(boxes), [""] * len(boxes), truth=True)


def draw_frame(
    frame: CameraFrame,
    detections: Detections,
    truth_boxes: np.ndarray | None = None,
    *,
    title: str = "",
    camera_width: int = 640,
    extent: float = 54.0,
    of: int | None = None,
    titles: Mapping[str, str] | None = None,
    note: str = "",
) -> np.ndarray:
    """The picture of a frame: six images with the boxes, and the scene from above beside them.

    Args:
        detections: those to draw (choose before); ``of``: how many there are in all, to be written down.
        truth_boxes: ``[M, 9]`` ground truth in the ego frame; ``None`` where there is none.
        title: written above the bird's-eye view; ``camera_width``: pixels of each camera's tile;
        extent: metres from the ego to the edge of the bird's-eye view;
        titles: of cameras, in place of their names; note: written beside what the detections' doubts are.

    Returns:
        ``[H, W, 3]`` uint8 RGB with even height and width (video codecs want that).
    """
    layers = [] if truth_boxes is None else [truth_layer(truth_boxes)]
    layers.append(detection_layer(detections))
    mosaic = camera_mosaic(frame, layers, width=camera_width, titles=titles)
    view = BevView(size=mosaic.shape[0], extent=extent)
    # from above only the score: the colour says the class
    scores = replace(layers[-1], labels=[f"{score:.2f}" for score in detections.scores])
    hidden = hidden_from_cameras(frame, view)
    bev = draw_bev([*layers[:-1], scores], view, hidden=hidden)
    present = [name for name in detections.class_names if name in set(detections.names)]
    draw_legend(bev, present, truth_boxes is not None, bool(hidden.mean() > LITTLE))
    summary = f"{len(detections)} detections" if of is None else f"{len(detections)} of {of} detections drawn"
    if truth_boxes is not None:
        summary += f", {len(truth_boxes)} annotated"
    draw_text(bev, title, 8, 18, (255, 255, 255), 15)
    draw_text(bev, summary, 8, 36)
    said = [*detections.info.doubt.split("; "), note]
    doubts = [line for part in said if part for line in wrapped(part, view.size - 16)]
    for number, line in enumerate(doubts):
        draw_text(bev, line, 8, 54 + 18 * number, DOUBT_COLOR)
    picture = np.concatenate([mosaic, bev], 1)
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


def write_picture(image: np.ndarray, path: str | Path) -> None:
    """Write an RGB picture as PNG or JPEG, by the name's end; the file appears when it is complete."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, compress_level=3, quality=88)
