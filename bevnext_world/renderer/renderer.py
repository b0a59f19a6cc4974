# SPDX-License-Identifier: Apache-2.0
"""Software renderer and ray caster of the synthetic world: numpy arrays in and out, the loops in C++.

A frame is drawn in two passes. The first rasterises triangles into a buffer of inverse depth and triangle
numbers, and the shadows that they throw onto the ground into a stencil. The second shades every pixel once:
pattern, sun and sky light, reflection, haze, noise of the sensor. Its cost does not depend on how many
surfaces lie behind one another. Pixel centres are at whole coordinates, as everywhere in this package. The
library is built without instructions of one processor, so that equal inputs give equal bytes.

One thread per call; a :class:`Renderer` may be used by one thread at a time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bevnext_core.ops.native import load
from bevnext_world.renderer.scene import Ground, Image, Instance, Light, RenderError

MAX_SIDE = 8192
"""Longest side of an image, pixels."""
RIGID_TOLERANCE = 1e-3


class _Batch(ctypes.Structure):
    """Same layout as ``Batch`` in the C++."""

    _fields_ = [
        ("instances", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("vertex_start", "face_start", "vertices", "faces", "colors")),
        *((name, ctypes.c_void_p) for name in ("gloss", "pattern", "transforms", "ids")),
    ]


class Renderer:
    """Renders and ray casts one scene: what stands still is given once, what moves with each call.

    Args:
        static: everything that does not move during the scene (may be empty).
        ground: the ground's picture.
        light: sun, sky, haze, exposure.
        supersample: samples per pixel along each axis, 1 or 2: 2 smooths edges.

    Raises:
        RenderError: NaN, wrong shapes, transforms that are not rigid, a sun below the horizon.
    """

    def __init__(
        self, static: Sequence[Instance], ground: Ground, light: Light, *, supersample: int = 2
    ) -> None:
        if supersample not in (1, 2):
            raise RenderError(f"supersample must be 1 or 2, not {supersample}")
        self.light = light
        self._supersample = supersample
        self._library = library()
        albedo = np.ascontiguousarray(ground.albedo)
        if albedo.dtype != np.uint8 or albedo.ndim != 3 or albedo.shape[2] != 3 or not albedo.size:
            raise RenderError(
                f"the ground's albedo must be [Y, X, 3] uint8, not {albedo.dtype} {albedo.shape}"
            )
        _finite("the ground's origin", ground.origin, (2,))
        if not (np.isfinite(ground.resolution) and ground.resolution > 0):
            raise RenderError(f"the ground's resolution must be above 0, not {ground.resolution}")
        batch, keep = _batch(static, unique=False)
        lighting = _light_values(light)
        place = np.array(
            [*ground.origin, ground.resolution, *(value / 255.0 for value in ground.outside)], np.float64
        )
        self._scene = self._library.bevnext_scene_create(
            ctypes.byref(batch),
            albedo.ctypes.data,
            albedo.shape[0],
            albedo.shape[1],
            place.ctypes.data,
            lighting.ctypes.data,
            int(light.cloud_seed) & 0xFFFFFFFF,
        )
        if not self._scene:
            raise RenderError("out of memory while the scene was built")
        del keep

    def __del__(self) -> None:
        scene = getattr(self, "_scene", None)
        if scene:
            self._library.bevnext_scene_destroy(scene)
            self._scene = None

    def render(
        self,
        dynamic: Sequence[Instance],
        intrinsics: np.ndarray,
        camera_from_world: np.ndarray,
        width: int,
        height: int,
        noise_rng: np.random.Generator | None = None,
    ) -> Image:
        """One camera image.

        Args:
            dynamic: what moves; drawn in addition to the static part.
            intrinsics: [3, 3] pinhole matrix, pixels, without skew.
            camera_from_world: [4, 4] rigid; optical frame (x right, y down, z forward).
            width, height: pixels.
            noise_rng: seeds the sensor's noise; None draws none.

        Raises:
            RenderError: a value is not finite, not rigid or out of range; an id is used twice.
        """
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise RenderError(f"an image of {width} x {height} pixels: sides must be 1..{MAX_SIDE}")
        matrix = _finite("intrinsics", intrinsics, (3, 3))
        if not (matrix[0, 0] > 0 and matrix[1, 1] > 0) or matrix[0, 1] != 0:
            raise RenderError(f"intrinsics need positive focal lengths and no skew: {matrix.tolist()}")
        pinhole = matrix[[0, 1, 0, 1], [0, 1, 2, 2]].copy()
        pose = _rigid("camera_from_world", camera_from_world)
        batch, keep = _batch(dynamic, unique=True)
        rgb = np.empty((height, width, 3), np.uint8)
        depth = np.empty((height, width), np.float32)
        ids = np.empty((height, width), np.int32)
        counts = np.zeros((max(len(dynamic), 1), 2), np.int64)
        seed = 0 if noise_rng is None else int(noise_rng.integers(1, 2**32))
        status = self._library.bevnext_render(
            self._scene,
            ctypes.byref(batch),
            pinhole.ctypes.data,
            pose.ctypes.data,
            width,
            height,
            self._supersample,
            seed,
            rgb.ctypes.data,
            depth.ctypes.data,
            ids.ctypes.data,
            counts.ctypes.data,
        )
        if status:
            raise RenderError("out of memory while an image was rendered")
        del keep
        # Samples to pixels, upwards: what is seen at all counts as seen.
        counts = -(-counts // self._supersample**2)
        pixels = {
            item.id: (int(seen), int(alone)) for item, (seen, alone) in zip(dynamic, counts) if item.id > 0
        }
        return Image(rgb, depth, ids, pixels)

    def raycast(
        self,
        dynamic: Sequence[Instance],
        origins: np.ndarray,
        directions: np.ndarray,
        max_range: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First hits of rays with the triangles and the ground.

        Args:
            dynamic: what moves.
            origins: [N, 3] (or [3] for all), world frame.
            directions: [N, 3], world frame, any length but 0.
            max_range: metres.

        Returns:
            distances [N] float32, metres, inf where nothing is hit; ids [N] int32 as in :class:`Image`, -1
            where nothing is hit; intensity [N] float32 in 0..255, from the surface's brightness and angle.

        Raises:
            RenderError: a value is not finite, a direction has no length, shapes do not fit.
        """
        rays = np.ascontiguousarray(directions, np.float64)
        if rays.ndim != 2 or rays.shape[1] != 3:
            raise RenderError(f"directions must be [N, 3], not {rays.shape}")
        starts = np.asarray(origins, np.float64)
        if starts.shape not in ((3,), rays.shape):
            raise RenderError(f"origins must be [3] or {rays.shape}, not {starts.shape}")
        starts = np.ascontiguousarray(np.broadcast_to(starts, rays.shape))
        lengths = np.sqrt((rays * rays).sum(1))
        if not (np.isfinite(starts).all() and np.isfinite(lengths).all() and (lengths > 0).all()):
            raise RenderError("rays need finite origins and directions of a length above 0")
        if not (np.isfinite(max_range) and max_range > 0):
            raise RenderError(f"max_range must be above 0 and finite, not {max_range}")
        rays = rays / lengths[:, None]
        batch, keep = _batch(dynamic, unique=True)
        distances = np.empty(len(rays), np.float32)
        ids = np.empty(len(rays), np.int32)
        intensity = np.empty(len(rays), np.float32)
        status = self._library.bevnext_raycast(
            self._scene,
            ctypes.byref(batch),
            len(rays),
            starts.ctypes.data,
            rays.ctypes.data,
            float(max_range),
            distances.ctypes.data,
            ids.ctypes.data,
            intensity.ctypes.data,
        )
        if status:
            raise RenderError("out of memory while rays were cast")
        del keep
        return distances, ids, intensity


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled part. Raises :class:`~bevnext_core.ops.native.NativeBuildError`."""
    library = load(
        Path(__file__).with_name("renderer.cpp"),
        tuned=False,
        flags=("-fno-math-errno", "-fno-trapping-math"),  # neither changes a value
    )
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    library.bevnext_scene_create.argtypes = [
        *(pointer, pointer, integer, integer, pointer, pointer, ctypes.c_uint32)
    ]
    library.bevnext_scene_create.restype = pointer
    library.bevnext_scene_destroy.argtypes = [pointer]
    library.bevnext_scene_destroy.restype = None
    library.bevnext_render.argtypes = [
        *(pointer, pointer, pointer, pointer, integer, integer, integer, ctypes.c_uint32),
        *(pointer, pointer, pointer, pointer),
    ]
    library.bevnext_render.restype = ctypes.c_int
    library.bevnext_raycast.argtypes = [
        *(pointer, pointer, integer, pointer, pointer, real, pointer, pointer, pointer)
    ]
    library.bevnext_raycast.restype = ctypes.c_int
    return library


def _batch(instances: Sequence[Instance], *, unique: bool) -> tuple[_Batch, list[np.ndarray]]:
    """The instances as flat arrays, and the arrays themselves (they must live as long as the structure)."""
    count = len(instances)
    meshes = [item.mesh for item in instances]
    poses = np.empty((count, 4, 4), np.float64)
    for k, item in enumerate(instances):
        matrix = np.asarray(item.world_from_object, np.float64)
        if matrix.shape != (4, 4):
            raise RenderError(
                f"instance {k} (id {item.id}): world_from_object must be [4, 4], not {matrix.shape}"
            )
        poses[k] = matrix
    _check_rigid("world_from_object of instance", poses)
    ids = np.array([item.id for item in instances], np.int32)
    if count and ids.min() < 0:
        raise RenderError(f"instance ids must be 0 or above, not {ids.min()}")
    if unique and len(np.unique(ids[ids > 0])) != int((ids > 0).sum()):
        raise RenderError("two instances have the same id: ids above 0 must differ within one call")

    def joined(name: str, dtype: type, columns: int) -> np.ndarray:
        parts = [getattr(mesh, name).reshape(-1, columns) for mesh in meshes]
        return np.ascontiguousarray(np.concatenate(parts) if parts else np.zeros((0, columns)), dtype)

    arrays = [
        np.cumsum([0] + [len(mesh.vertices) for mesh in meshes], dtype=np.int64),
        np.cumsum([0] + [len(mesh.faces) for mesh in meshes], dtype=np.int64),
        joined("vertices", np.float32, 3),
        joined("faces", np.int32, 3),
        joined("colors", np.float32, 3),
        joined("gloss", np.float32, 1),
        joined("pattern", np.uint8, 1),
        np.ascontiguousarray(poses[:, :3]),
        ids,
    ]
    return _Batch(count, *(array.ctypes.data for array in arrays)), arrays


def _light_values(light: Light) -> np.ndarray:
    direction = _finite("sun_direction", light.sun_direction, (3,))
    length = float(np.sqrt((direction**2).sum()))
    if length == 0 or direction[2] / length < 0.05:
        raise RenderError(f"the sun must stand above the horizon: sun_direction {light.sun_direction}")
    colors = [
        _finite(name, getattr(light, name), (3,)) for name in ("sun", "ambient", "zenith", "horizon", "haze")
    ]
    scalars = _finite(
        "clouds, haze_distance, exposure, noise, vignette",
        (light.clouds, light.haze_distance, light.exposure, light.noise, light.vignette),
        (5,),
    )
    if light.haze_distance <= 0 or light.exposure <= 0 or light.noise < 0:
        raise RenderError("a light needs haze_distance and exposure above 0 and noise of at least 0")
    return np.concatenate([direction / length, *colors, scalars])


def _finite(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    array = np.array(value, np.float64)
    if array.shape != shape:
        raise RenderError(f"{name} must have the shape {list(shape)}, not {list(array.shape)}")
    if not np.isfinite(array).all():
        raise RenderError(f"{name} must be finite: {array.tolist()}")
    return array


def _rigid(name: str, value: object) -> np.ndarray:
    matrix = _finite(name, value, (4, 4))
    _check_rigid(name, matrix[None])
    return np.ascontiguousarray(matrix[:3])


def _check_rigid(name: str, poses: np.ndarray) -> None:
    rotation = poses[:, :3, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2), initial=0.0)
    bottom = np.abs(poses[:, 3] - np.array([0.0, 0.0, 0.0, 1.0]))
    # Written so that NaN is wrong too.
    good = (error <= RIGID_TOLERANCE) & (bottom <= 1e-9).all(1) & np.isfinite(poses).all((1, 2))
    good &= np.linalg.det(np.where(np.isfinite(rotation), rotation, 0.0)) > 0
    if not good.all():
        index = int(np.argmin(good))
        raise RenderError(f"{name} {index} is not a rigid transform: {poses[index].tolist()}")
