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


def from_bottom_center(boxes: np.ndarray) -> np.ndarray:
    """Boxes whose z is the bottom face (the published code's layout) -> geometric centre. ``[M, 9]``."""
    boxes = np.array(boxes, copy=True)
    boxes[..., 2] += boxes[..., 5] / 2
    return boxes


def to_bottom_center(boxes: np.ndarray) -> np.ndarray:
    """Inverse of :func:`from_bottom_center`. ``[M, 9]``."""
    boxes = np.array(boxes, copy=True)
    boxes[..., 2] -= boxes[..., 5] / 2
    return boxes


def wrap_angle(angle: np.ndarray | float) -> np.ndarray:
    """Wrap radians to [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners ``[M, 8, 3]`` of boxes ``[M, >=7]``.

    Order: front face first (left-top, left-bottom, right-bottom, right-top), then the rear face alike.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, np.shape(boxes)[-1])
    signs = np.array(
        [[1, 1, 1], [1, 1, -1], [1, -1, -1], [1, -1, 1], [-1, 1, 1], [-1, 1, -1], [-1, -1, -1], [-1, -1, 1]]
    )
    local = signs[None] * boxes[:, None, 3:6] / 2
    cos, sin = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y, local[..., 2]], -1) + boxes[:, None, :3]


def nuscenes_from_boxes(boxes: np.ndarray, global_from_ego: np.ndarray) -> list[dict]:
    """Boxes ``[M, 9]`` in the ego frame -> nuScenes geometry in the global frame.

    Returns one dict per box with ``translation`` (geometric centre), ``size`` (width, length,
    height), ``rotation`` (w, x, y, z) and ``velocity`` (vx, vy), as in a nuScenes submission. The
    velocity is rotated as the 3-vector (vx, vy, 0) and its first two components are kept, as published.
    """
    rotation = np.asarray(global_from_ego, np.float64)[:3, :3]
    translation = np.asarray(global_from_ego, np.float64)[:3, 3]
    ego = Quaternion(matrix=rotation, rtol=1e-4, atol=1e-4)
    records = []
    for x, y, z, length, width, height, yaw, vx, vy in np.asarray(boxes, np.float64).reshape(-1, 9):
        quaternion = ego * Quaternion(axis=[0, 0, 1], radians=yaw)
        velocity = rotation @ (vx, vy, 0.0)
        records.append(
            {
                "translation": (rotation @ (x, y, z) + translation).tolist(),
                "size": [width, length, height],
                "rotation": quaternion.elements.tolist(),
                "velocity": velocity[:2].tolist(),
            }
        )
    return records


def boxes_from_nuscenes(
    translations: np.ndarray,
    sizes: np.ndarray,
    rotations: np.ndarray,
    velocities: np.ndarray,
    ego_from_global: np.ndarray,
    *,
    undo_submission: bool = False,
) -> np.ndarray:
    """nuScenes geometry in the global frame -> boxes ``[M, 9]`` in the ego frame.

    A box has one angle and a planar velocity, so a tilted ego loses something: as published, the heading and
    the velocity ``(vx, vy, 0)`` are rotated in space and their first two components kept.

    Args:
        translations: ``[M, 3]`` metres; ``sizes``: ``[M, 3]`` width, length, height;
        rotations: ``[M, 4]`` quaternions (w, x, y, z); velocities: ``[M, 2]`` or ``[M, 3]`` m/s, NaN allowed.
        ego_from_global: ``[4, 4]``.
        undo_submission: the boxes that :func:`nuscenes_from_boxes` turns into exactly these headings and
            planar velocities, under a tilted ego too (at 2 degrees they differ by up to 6e-4 of a radian or
            of the speed).
    """
    ego_from_global = np.asarray(ego_from_global, np.float64)
    rotation = ego_from_global[:3, :3]
    planar = np.linalg.inv(rotation.T[:2, :2]) if undo_submission else rotation[:2, :2]
    translations = np.asarray(translations, np.float64).reshape(-1, 3)
    boxes = np.zeros((len(translations), 9))
    boxes[:, :3] = translations @ rotation.T + ego_from_global[:3, 3]
    boxes[:, 3:6] = np.asarray(sizes, np.float64).reshape(-1, 3)[:, [1, 0, 2]]
    for i, q in enumerate(np.asarray(rotations, np.float64).reshape(-1, 4)):
        heading = Quaternion(q).rotation_matrix[:, 0]
        x, y = planar @ heading[:2] if undo_submission else (rotation @ heading)[:2]
        boxes[i, 6] = np.arctan2(y, x)
    if len(translations):
        velocities = np.asarray(velocities, np.float64).reshape(len(translations), -1)
        boxes[:, 7:9] = velocities[:, :2] @ planar.T
    return boxes


def transform_boxes(boxes: np.ndarray, target_from_source: np.ndarray) -> np.ndarray:
    """Move boxes ``[M, 9]`` to another frame by a rigid transform ``[4, 4]``; yaw and velocity follow."""
    boxes = np.array(boxes, np.float64, copy=True).reshape(-1, 9)
    transform = np.asarray(target_from_source, np.float64)
    rotation = transform[:3, :3]
    boxes[:, :3] = boxes[:, :3] @ rotation.T + transform[:3, 3]
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], 1) @ rotation.T
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    velocity = np.concatenate([boxes[:, 7:9], np.zeros((len(boxes), 1))], 1) @ rotation.T
    boxes[:, 7:9] = velocity[:, :2]
    return boxes
