# SPDX-License-Identifier: Apache-2.0
"""What a calibration says, drawn into the images: ground with distances, horizon, the vehicle's axes, other cameras.

Where a line of the grid lies on the road and the horizon where the road ends, intrinsics and extrinsics are right; a
wrong axis turns them away at once.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid, project
from bevnext_tools.draw.bev import BevView, BoxLayer, draw_bev, draw_line
from bevnext_tools.draw.cameras import camera_mosaic, image_from_camera, write_picture
from bevnext_tools.draw.colors import CLASS_COLORS, Color
from bevnext_tools.draw.text import draw_text
from bevnext_tools.rig.doubts import describe, doubts, stance

GROUND: Color = (120, 200, 140)
HORIZON: Color = (255, 120, 255)
AXES: tuple[tuple[str, Color], ...] = (
    ("x forward", (255, 80, 80)), ("y left", (90, 230, 90)), ("z up", (110, 150, 255))
)  # fmt: skip
REACH = 40
"""Metres from the origin to the end of the grid; DISTANCES: of its labels; STEP: between its lines."""
DISTANCES = (5, 10, 20, 40)
STEP = 5
FRUSTUM = 6.0
"""Metres along the optical axis up to which another camera's view is drawn."""
PICTURES = ("_images.png", "_bev.png")
"""How the names of the pictures end."""


def color_of(index: int) -> Color:
    """Of a camera, in all pictures."""
    return list(CLASS_COLORS.values())[index % len(CLASS_COLORS)]


def check_pictures(
    frame: CameraFrame, layers: list[BoxLayer], points: np.ndarray | None = None, width: int = 960
) -> tuple[np.ndarray, np.ndarray]:
    """The images with what the calibration says, and the rig from above; uint8 RGB.

    Args:
        layers, points: boxes and lidar points in the ego frame, where there are any.
    """
    images = camera_mosaic(
        frame, layers, points=points, width=width, before=lambda image, index: draw_rig(image, frame, index)
    )
    view = BevView(extent=54.0 if layers or points is not None else 24.0)
    above = draw_bev(layers, view, points)
    for index, camera in enumerate(frame.cameras):
        if frame.valid[index]:
            corners = _corners(frame, index, 3 * FRUSTUM) @ frame.ego_from_camera[index][:3, :3].T
            centre = frame.ego_from_camera[index][:3, 3]
            # the sides of the image at half its height
            sides = view.pixels(centre + np.stack([corners[[0, 3]].mean(0), corners[[1, 2]].mean(0)]))
            for side in sides:
                draw_line(above, view.pixels(centre), side, color_of(index), 2)
            x, y = sides.mean(0)
            draw_text(above, camera, x - 30, y, color_of(index), 13)
    return images, above


def draw_rig(image: np.ndarray, frame: CameraFrame, index: int) -> None:
    """Draw what camera ``index``'s calibration says into ``image``, its picture at any size, in place."""
    matrix, transform = image_from_camera(frame, index, image), invert_rigid(frame.ego_from_camera[index])

    def pixels(points: np.ndarray) -> np.ndarray:
        """Ego points ``[P, 3]`` -> pixels ``[P, 2]``; NaN behind the camera."""
        return project(points @ transform[:3, :3].T + transform[:3, 3], matrix)[0]

    def polyline(points: np.ndarray, color: Color, thickness: int = 1) -> None:
        found = pixels(points)
        for start, end in pairwise(found):
            draw_line(image, start, end, color, thickness)

    along = np.arange(-REACH, REACH + 1e-6, 1.0)
    for across in range(-REACH, REACH + 1, STEP):
        for columns in ((0, 1), (1, 0)):
            line = np.zeros((len(along), 3))
            line[:, columns[0]], line[:, columns[1]] = along, across
            polyline(line, GROUND, 2 if across == 0 else 1)
    _draw_horizon(image, transform, matrix)
    for other, camera in enumerate(frame.cameras):
        if other != index and frame.valid[other]:
            pose = frame.ego_from_camera[other]
            corners = pose[:3, 3] + _corners(frame, other, FRUSTUM) @ pose[:3, :3].T
            share = np.linspace(0, 1, 25)[:, None]
            for corner, following in zip(corners, np.roll(corners, -1, 0)):
                polyline(pose[:3, 3] + share * (corner - pose[:3, 3]), color_of(other))
                polyline(corner + share * (following - corner), color_of(other))
            x, y = pixels(corners[:1])[0]
            draw_text(image, camera, x, y + 12, color_of(other), 13)
    view = frame.ego_from_camera[index][:2, 2]
    if (level := np.linalg.norm(view)) > 0.2:  # it does not look straight down or up
        ahead, centre = view / level, frame.ego_from_camera[index][:3, 3]
        for distance in DISTANCES:
            x, y = pixels(np.append(ahead * distance, 0.0)[None])[0]
            draw_text(image, f"{distance} m", x + 3, y, GROUND, 14)
        # beside the labels
        origin = np.append(centre[:2] + 6 * ahead + 1.5 * np.array([-ahead[1], ahead[0]]), 0.0)
        for axis, (name, color) in zip(np.eye(3), AXES):
            start, end = pixels(np.stack([origin, origin + axis]))
            draw_line(image, start, end, color, 3)
            draw_text(image, name, end[0], end[1], color, 14)


def _draw_horizon(image: np.ndarray, transform: np.ndarray, matrix: np.ndarray) -> None:
    azimuth = np.deg2rad(np.arange(0, 361, 2.0))
    level = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], -1) @ transform[:3, :3].T
    found = project(level, matrix)[0]
    for start, end in pairwise(found):
        draw_line(image, start, end, HORIZON, 2)
    inside = np.flatnonzero((found > 0).all(1) & (found < image.shape[1::-1]).all(1))
    if len(inside):
        x, y = found[inside[found[inside, 0].argmin()]]
        draw_text(image, "horizon", x + 4, y - 5, HORIZON, 14)


def _corners(frame: CameraFrame, index: int, depth: float) -> np.ndarray:
    """``[4, 3]``: the image's corners at a depth, camera coordinates; clockwise from the upper left one."""
    width, height = frame.image_sizes[index]
    pixels = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], np.float64)
    return depth * pixels @ np.linalg.inv(frame.intrinsics[index]).T


def write_check(
    frame: CameraFrame,
    slots: tuple[str, ...],
    stem: Path,
    layers: list[BoxLayer] | None = None,
    points: np.ndarray | None = None,
) -> tuple[tuple[Path, Path], list[str]]:
    """Write :func:`check_pictures` as ``STEM_images.png`` and ``STEM_bev.png``; tell of each camera on stdout.

    Cameras are drawn and told of in the order of :func:`round_the_vehicle`.

    Returns:
        The files, and the :func:`doubts`.
    """
    order = round_the_vehicle(frame)
    frame, slots = frame.with_cameras(tuple(frame.cameras[i] for i in order)), tuple(slots[i] for i in order)
    files = stem.with_name(f"{stem.name}{PICTURES[0]}"), stem.with_name(f"{stem.name}{PICTURES[1]}")
    for picture, path in zip(check_pictures(frame, layers or [], points), files):
        write_picture(picture, path)
    for index, (camera, slot) in enumerate(zip(frame.cameras, slots)):
        print(f"{camera}{f' ({slot})' if slot != camera else ''}: {describe(frame, index)}")
    return files, doubts(frame, slots)


def round_the_vehicle(frame: CameraFrame) -> list[int]:
    """The cameras' indices clockwise, as neighbours are from left to right; that which looks ahead is the second, in
    the middle of the first row."""
    left = [round(stance(frame, index).left) for index in range(len(frame.cameras))]
    order = sorted(range(len(left)), key=lambda index: (-left[index], -frame.ego_from_camera[index][1, 3]))
    start = min(range(len(left)), key=lambda place: abs(left[order[place]])) - 1 if len(left) > 2 else 0
    return order[start:] + order[:start]
