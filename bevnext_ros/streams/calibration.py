"""A camera's calibration as a stream carries it, and the rectification of its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from bevnext_core.errors import ConfigError, FrameError

DistortionPolicy = Literal["rectify", "refuse", "rectified"]
_COEFFICIENTS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
    "fisheye": (4,),
}


@dataclass(frozen=True)
class Calibration:
    """Pinhole matrix with distortion, for images of one size.

    Attributes:
        intrinsics: ``[3, 3]``, pixels of the image as published (region of interest and binning applied).
        distortion: coefficients of ``model``; empty or zero for none.
        model: ``plumb_bob``, ``rational_polynomial``, ``equidistant`` or ``fisheye``; empty for none.
        size: (width, height) in pixels; (0, 0) when the source does not say.
        rectified: ``[3, 3]`` matrix of the rectified image (the left part of P), if the source gives one.
        frame: the camera's coordinate frame.
    """

    intrinsics: np.ndarray
    distortion: tuple[float, ...] = ()
    model: str = ""
    size: tuple[int, int] = (0, 0)
    rectified: np.ndarray | None = None
    frame: str = ""

    def fault(self) -> str | None:
        """Why it cannot be used; ``None`` when it can."""
        k = self.intrinsics
        if k.shape != (3, 3) or not np.isfinite(k).all():
            return "its matrix K holds NaN or infinity"
        if min(k[0, 0], k[1, 1]) <= 1e-6 or abs(np.linalg.det(k)) < 1e-9:
            return f"its matrix K is singular (fx {k[0, 0]:g}, fy {k[1, 1]:g}): the camera is not calibrated"
        if not np.isfinite(self.distortion).all():
            return "its distortion holds NaN or infinity"
        if self.size[0] < 0 or self.size[1] < 0:
            return f"its size is {self.size[0]}x{self.size[1]}"
        return None

    @property
    def is_distorted(self) -> bool:
        return any(abs(c) > 1e-12 for c in self.distortion)

    def same_as(self, other: Calibration | None) -> bool:
        """Whether both describe the same camera (the frame's name aside)."""
        if other is None:
            return False
        rectified = (self.rectified is None) == (other.rectified is None) and (
            self.rectified is None
            or other.rectified is None
            or np.array_equal(self.rectified, other.rectified)
        )
        return (
            np.array_equal(self.intrinsics, other.intrinsics)
            and self.distortion == other.distortion
            and self.model == other.model
            and self.size == other.size
            and rectified
        )


class Rectifier:
    """Takes the distortion out of one camera's images; the pinhole matrix stays that of the raw image.

    Args:
        policy: ``rectify`` undistorts; ``refuse`` raises for a distorted camera; ``rectified`` says that the
            images are rectified already, so that the matrix of the rectified image (P) holds.

    Raises:
        ConfigError: for a distorted camera under ``refuse``, or a distortion model that is not known.
    """

    def __init__(self, camera: str, calibration: Calibration, policy: DistortionPolicy) -> None:
        self.camera = camera
        self._calibration = calibration
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._maps_size = (0, 0)
        self.intrinsics = calibration.intrinsics
        self._active = False
        if policy == "rectified":
            if calibration.rectified is not None and calibration.rectified[0, 0] > 1e-6:
                self.intrinsics = calibration.rectified
            return
        if not calibration.is_distorted:
            return
        if policy == "refuse":
            raise ConfigError(
                f"{camera}: its images are distorted ({calibration.model} {list(calibration.distortion)}); "
                "set the parameter distortion to 'rectify', or to 'rectified' if its topic is of rectified images"
            )
        known = _COEFFICIENTS.get(calibration.model)
        if known is None or len(calibration.distortion) not in known:
            raise ConfigError(
                f"{camera}: distortion model '{calibration.model}' with {len(calibration.distortion)} "
                f"coefficients is not known; known are {', '.join(_COEFFICIENTS)}"
            )
        self._active = True

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The image without distortion, ``[H, W, 3]`` uint8; the same array when there is none.

        Raises:
            FrameError: when the image's size is not that of the calibration.
        """
        size = (image.shape[1], image.shape[0])
        if self._calibration.size not in ((0, 0), size):
            width, height = self._calibration.size
            raise FrameError(
                f"{self.camera}: the image is {size[0]}x{size[1]}, "
                f"but its calibration is for {width}x{height}"
            )
        if not self._active:
            return image
        if self._maps is None or self._maps_size != size:
            self._maps, self._maps_size = self._make_maps(size), size
        return cv2.remap(image, *self._maps, interpolation=cv2.INTER_LINEAR)

    def _make_maps(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        k = self._calibration.intrinsics
        d = np.array(self._calibration.distortion)
        if self._calibration.model in ("equidistant", "fisheye"):
            return cv2.fisheye.initUndistortRectifyMap(k, d, np.eye(3), k, size, cv2.CV_16SC2)
        return cv2.initUndistortRectifyMap(k, d, np.eye(3), k, size, cv2.CV_16SC2)
