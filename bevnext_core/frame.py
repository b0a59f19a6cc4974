# SPDX-License-Identifier: Apache-2.0
"""What one instant of the camera rig looks like, checked once at the edge of the program."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from bevnext_core.errors import FrameError
from bevnext_core.geometry import rigid_fault


@dataclass(frozen=True)
class CameraFrame:
    """Images, calibration and poses of one instant.

    The ego frame of a camera moves between the cameras' stamps; ``global_from_camera_ego`` holds
    the pose at each camera's own stamp, ``global_from_ego`` the pose at the anchor camera's stamp,
    which defines the frame in which boxes are given. "global" is any frame that is fixed over the
    history (map or odom).

    Attributes:
        cameras: N camera names.
        images: N arrays ``[H, W, 3]`` uint8 RGB; ``None`` only for a camera that is not ``valid``.
        intrinsics: ``[N, 3, 3]`` pinhole matrices, pixels of the given images.
        ego_from_camera: ``[N, 4, 4]`` calibration (optical frame: x right, y down, z forward).
        global_from_camera_ego: ``[N, 4, 4]`` ego pose at each camera's stamp.
        global_from_ego: ``[4, 4]`` ego pose at ``stamp_ns``.
        stamp_ns: the anchor camera's stamp, nanoseconds.
        camera_stamps_ns: ``[N]`` int64, each camera's own stamp.
        valid: ``[N]`` bool; a camera that is not valid contributes nothing, now and as history.
        image_sizes: ``[N, 2]`` (width, height) for which the intrinsics hold; checked when given, else those of the
            images (a camera without an image takes another one's).
        token: the data set's name of the frame, if any.

    Raises:
        FrameError: naming the camera and what is wrong with it.
    """

    cameras: tuple[str, ...]
    images: tuple[np.ndarray | None, ...]
    intrinsics: np.ndarray
    ego_from_camera: np.ndarray
    global_from_camera_ego: np.ndarray
    global_from_ego: np.ndarray
    stamp_ns: int
    camera_stamps_ns: np.ndarray = None  # type: ignore[assignment]
    valid: np.ndarray = None  # type: ignore[assignment]
    image_sizes: np.ndarray = None  # type: ignore[assignment]
    token: str = field(default="")

    def __post_init__(self) -> None:
        count = len(self.cameras)
        _set(self, "cameras", tuple(self.cameras))
        _set(self, "images", tuple(self.images))
        if self.valid is None:
            _set(self, "valid", np.ones(count, bool))
        if self.camera_stamps_ns is None:
            _set(self, "camera_stamps_ns", np.full(count, self.stamp_ns, np.int64))
        for name, shape in (
            ("intrinsics", (count, 3, 3)),
            ("ego_from_camera", (count, 4, 4)),
            ("global_from_camera_ego", (count, 4, 4)),
            ("global_from_ego", (4, 4)),
        ):
            value = np.asarray(getattr(self, name), np.float64)
            if value.shape != shape:
                raise FrameError(f"{name} has shape {value.shape}, expected {shape} for {count} cameras")
            _set(self, name, value)
        if self.image_sizes is None:
            sizes = [None if image is None or image.ndim != 3 else image.shape[1::-1] for image in self.images]
            other = next(filter(None, sizes), (1, 1))
            _set(self, "image_sizes", [size or other for size in sizes])
        for name in ("valid", "camera_stamps_ns", "images", "image_sizes"):
            if len(getattr(self, name)) != count:
                raise FrameError(f"{name} has {len(getattr(self, name))} entries for {count} cameras")
        _set(self, "valid", np.asarray(self.valid, bool))
        for name in ("camera_stamps_ns", "image_sizes"):
            _set(self, name, np.asarray(getattr(self, name), np.int64))
        if fault := rigid_fault(self.global_from_ego):
            raise FrameError(f"the ego pose at {self.stamp_ns} ns cannot be used: {fault}")
        for index, camera in enumerate(self.cameras):
            if self.valid[index]:
                self._check_camera(index, camera)

    def _check_camera(self, index: int, camera: str) -> None:
        image = self.images[index]
        if image is None:
            raise FrameError(f"{camera}: the image is missing")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise FrameError(
                f"{camera}: the image is {image.dtype}{list(image.shape)}, expected uint8[H, W, 3]"
            )
        width, height = self.image_sizes[index]
        if image.shape[:2] != (height, width):
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise FrameError(f"{camera}: the image is {size}, but its calibration is for {width}x{height}")
        intrinsics = self.intrinsics[index]
        if not np.isfinite(intrinsics).all():
            raise FrameError(f"{camera}: the intrinsics hold NaN or infinity")
        if min(intrinsics[0, 0], intrinsics[1, 1]) <= 1e-6 or abs(np.linalg.det(intrinsics)) < 1e-9:
            fx, fy = intrinsics[0, 0], intrinsics[1, 1]
            raise FrameError(f"{camera}: the intrinsics are singular (fx {fx:g}, fy {fy:g})")
        for name, transform in (
            ("calibration (ego_from_camera)", self.ego_from_camera[index]),
            ("ego pose at its stamp", self.global_from_camera_ego[index]),
        ):
            if fault := rigid_fault(transform):
                raise FrameError(f"{camera}: the {name} cannot be used: {fault}")

    @property
    def global_from_camera(self) -> np.ndarray:
        """``[N, 4, 4]``: where each camera was at its own stamp."""
        return self.global_from_camera_ego @ self.ego_from_camera

    def with_cameras(self, cameras: tuple[str, ...]) -> CameraFrame:
        """The same instant of these cameras, in this order.

        Raises:
            FrameError: one of them is not in the frame.
        """
        if self.cameras == cameras:
            return self
        if missing := ", ".join(camera for camera in cameras if camera not in self.cameras):
            raise FrameError(
                f"the frame at {self.stamp_ns} ns lacks {missing}; it has {', '.join(self.cameras)}"
            )
        index = [self.cameras.index(camera) for camera in cameras]
        chosen = {name: getattr(self, name)[index] for name in _BY_CAMERA}
        images = tuple(self.images[i] for i in index)
        return dataclasses.replace(self, cameras=cameras, images=images, **chosen)


_BY_CAMERA = (
    "intrinsics", "ego_from_camera", "global_from_camera_ego", "camera_stamps_ns", "valid", "image_sizes"
)  # fmt: skip
"""Arrays with an entry per camera."""


def _set(frame: CameraFrame, name: str, value: object) -> None:
    object.__setattr__(frame, name, value)
