# SPDX-License-Identifier: Apache-2.0
"""3D boxes: the project's layout, and every conversion to another one.

A box is ``(x, y, z, length, width, height, yaw, vx, vy)``: geometric centre in metres, size in
metres with the length along the heading, yaw in radians counter-clockwise about +z from +x,
velocity in m/s. Arrays of boxes are ``[M, 9]``. Everything else - the published code's bottom
centre, nuScenes' width-length-height and global frame - is converted here and nowhere else.
"""

from __future__ import annotations

import numpy as np
from pyquaternion import Quaternion

BOX_FIELDS = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy")


def wrap_angle(angle: np.ndarray | float) -> np.ndarray:
    """Wrap radians to [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners ``[M, 8, 3]`` of boxes ``[M, >=7]``.

    Order: front face first (left-top, left-bottom, right-bottom, right-top), then the rear face alike.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, np.shape(boxes)[-1])
    face = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    signs = np.array([(x, *yz) for x in (1, -1) for yz in face])
    local = signs[None] * boxes[:, None, 3:6] / 2
    cos, sin = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y, local[..., 2]], -1) + boxes[:, None, :3]


def nuscenes_from_boxes(boxes: np.ndarray, global_from_ego: np.ndarray) -> list[dict[str, list[float]]]:
    """Boxes ``[M, 9]`` in the ego frame -> nuScenes geometry in the global frame.

    Returns one dict per box with ``translation`` (geometric centre), ``size`` (width, length,
    height), ``rotation`` (w, x, y, z) and ``velocity`` (vx, vy), as in a nuScenes submission. The
    velocity is rotated as the 3-vector (vx, vy, 0) and its first two components are kept, as published.
    """
    rotation = np.asarray(global_from_ego, np.float64)[:3, :3]
    translation = np.asarray(global_from_ego, np.float64)[:3, 3]
    ego = Quaternion(matrix=rotation, rtol=1e-4, atol=1e-4)
    return [
        {
            "translation": (rotation @ (x, y, z) + translation).tolist(),
            "size": [width, length, height],
            "rotation": (ego * Quaternion(axis=[0, 0, 1], radians=yaw)).elements.tolist(),
            "velocity": (rotation @ (vx, vy, 0.0))[:2].tolist(),
        }
        for x, y, z, length, width, height, yaw, vx, vy in np.asarray(boxes, np.float64).reshape(-1, 9)
    ]


def boxes_from_nuscenes(
    translations: np.ndarray,
    sizes: np.ndarray,
    rotations: np.ndarray,
    velocities: np.ndarray,
    ego_from_global: np.ndarray,
) -> np.ndarray:
    """nuScenes geometry in the global frame -> boxes ``[M, 9]`` in the ego frame.

    A box has one angle and a planar velocity, so a tilted ego loses something: as published, the heading and
    the velocity ``(vx, vy, 0)`` are rotated in space and their first two components kept (at 2 degrees the way
    back differs by up to 6e-4 of a radian or of the speed).

    Args:
        translations: ``[M, 3]`` metres; ``sizes``: ``[M, 3]`` width, length, height;
        rotations: ``[M, 4]`` quaternions (w, x, y, z); velocities: ``[M, 2]`` or ``[M, 3]`` m/s, NaN allowed.
        ego_from_global: ``[4, 4]``.
    """
    ego_from_global = np.asarray(ego_from_global, np.float64)
    rotation = ego_from_global[:3, :3]
    translations = np.asarray(translations, np.float64).reshape(-1, 3)
    boxes = np.zeros((len(translations), 9))
    boxes[:, :3] = translations @ rotation.T + ego_from_global[:3, 3]
    boxes[:, 3:6] = np.asarray(sizes, np.float64).reshape(-1, 3)[:, [1, 0, 2]]
    for i, q in enumerate(np.asarray(rotations, np.float64).reshape(-1, 4)):
        heading = rotation @ Quaternion(q).rotation_matrix[:, 0]
        boxes[i, 6] = np.arctan2(heading[1], heading[0])
    if len(translations):
        velocities = np.asarray(velocities, np.float64).reshape(len(translations), -1)
        boxes[:, 7:9] = velocities[:, :2] @ rotation[:2, :2].T
    return boxes
