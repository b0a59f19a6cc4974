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
