# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms as 4x4 float64 matrices. Names read right to left: ``ego_from_camera``."""

from __future__ import annotations

import numpy as np
from pyquaternion import Quaternion


def rigid(rotation_wxyz: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """``[4, 4]`` transform from a quaternion (w, x, y, z; normalised here) and a translation in metres."""
    q = np.asarray(rotation_wxyz, np.float64)
    norm = np.linalg.norm(q)
    transform = np.eye(4)
    if q.shape != (4,) or not np.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"a rotation quaternion must be 4 finite numbers of non-zero norm, got {q.tolist()}")
    transform[:3, :3] = Quaternion(q / norm).rotation_matrix
    transform[:3, 3] = translation
    return transform


def invert_rigid(transform: np.ndarray) -> np.ndarray:
    """Inverse of rigid transforms ``[..., 4, 4]``, by transposition."""
    transform = np.asarray(transform, np.float64)
    inverse = np.zeros_like(transform)
    rotation_t = np.swapaxes(transform[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -(rotation_t @ transform[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1.0
    return inverse


def rigid_fault(transform: np.ndarray, tolerance: float = 1e-3) -> str | None:
    """Why ``transform`` is no rigid transform (``None`` when it is one). ``tolerance`` is on R^T R - I."""
    transform = np.asarray(transform)
    if transform.shape != (4, 4):
        return f"its shape is {transform.shape}, not (4, 4)"
    if not np.isfinite(transform).all():
        return "it holds NaN or infinity"
    rotation = transform[:3, :3].astype(np.float64)
    if np.abs(transform[3] - (0, 0, 0, 1)).max() > 1e-6:
        return f"its last row is {transform[3].tolist()}, not 0 0 0 1"
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > tolerance or np.linalg.det(rotation) < 0:
        return "its upper left 3x3 block is no rotation"
    return None


def rotation_angle(rotation: np.ndarray) -> float:
    """Angle of a rotation matrix ``[3, 3]`` in radians."""
    return float(np.arccos(np.clip((np.trace(rotation[:3, :3]) - 1) / 2, -1.0, 1.0)))


def interpolate_rigid(
    rotation_a: np.ndarray,
    translation_a: np.ndarray,
    rotation_b: np.ndarray,
    translation_b: np.ndarray,
    fraction: float,
) -> np.ndarray:
    """``[4, 4]`` on the SE(3) geodesic from pose a (``fraction`` 0) to pose b (1).

    Rotations are unit quaternions (w, x, y, z), translations metres. With ``a^-1 b = exp(xi)`` the
    result is ``a exp(fraction * xi)`` (Lynch and Park, Modern Robotics, 3.3.3).
    """
    a = rigid(rotation_a, translation_a)
    delta = invert_rigid(a) @ rigid(rotation_b, translation_b)
    vector = _rotation_vector(rotation_a, rotation_b)
    angle = float(np.linalg.norm(vector))
    step = np.eye(4)
    if angle < 1e-9:
        step[:3, 3] = fraction * delta[:3, 3]
        return a @ step
    axis = _skew(vector / angle)
    half = angle / 2
    # log: the translation of the twist per radian, then exp of its fraction
    inverse = np.eye(3) / angle - axis / 2 + (1 / angle - 1 / (2 * np.tan(half))) * axis @ axis
    linear = inverse @ delta[:3, 3]
    theta = fraction * angle
    step[:3, :3] = np.eye(3) + np.sin(theta) * axis + (1 - np.cos(theta)) * axis @ axis
    left = np.eye(3) * theta + (1 - np.cos(theta)) * axis + (theta - np.sin(theta)) * axis @ axis
    step[:3, 3] = left @ linear
    return a @ step


def _rotation_vector(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rotation vector of ``a^-1 b`` (unit quaternions), the short way round, ``|.| <= pi``."""
    aw, av, bw, bv = a[0], a[1:], b[0], b[1:]
    w = aw * bw + av @ bv
    v = aw * bv - bw * av - np.cross(av, bv)
    if w < 0:
        w, v = -w, -v
    norm = np.linalg.norm(v)
    return v * 2.0 if norm < 1e-12 else v / norm * 2.0 * np.arctan2(norm, w)


def _skew(v: np.ndarray) -> np.ndarray:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


def project(points: np.ndarray, image_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project camera-frame points ``[..., 3]`` with intrinsics ``[3, 3]``.

    Returns pixel coordinates ``[..., 2]`` and depths ``[...]`` (metres along the optical axis). Points
    that are not in front of the camera get NaN pixels.
    """
    points = np.asarray(points, np.float64)
    depth = points[..., 2]
    homogeneous = points @ np.asarray(image_from_camera, np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = homogeneous[..., :2] / homogeneous[..., 2:]
    return np.where((depth > 1e-6)[..., None], pixels, np.nan), depth
