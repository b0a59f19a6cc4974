# SPDX-License-Identifier: Apache-2.0
"""A camera's calibration with its distortion, as streams and files carry it, and the rectification of its images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import cv2
import numpy as np

from bevnext_core.errors import ConfigError, FrameError

DistortionPolicy = Literal["rectify", "refuse", "rectified"]
COEFFICIENTS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
    "fisheye": (4,),
}
"""How many a distortion model may have. ``fisheye`` is an older name of ``equidistant``."""

_TOLERANCE = 1e-3
"""Pixels by which two calibrations of one camera may differ: what the detector allows too."""


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
        region: how the size comes from the sensor's, in words; empty for the whole.
        region_fault: why region of interest and binning make no image; empty when they do.
    """

    intrinsics: np.ndarray
    distortion: tuple[float, ...] = ()
    model: str = ""
    size: tuple[int, int] = (0, 0)
    rectified: np.ndarray | None = None
    frame: str = ""
    region: str = ""
    region_fault: str = ""

    def fault(self, policy: DistortionPolicy) -> str | None:
        """Why it cannot be used; ``None`` when it can. With ``rectified`` P decides; K only where there is none."""
        if self.region_fault:
            return self.region_fault
        if self.size[0] < 0 or self.size[1] < 0:
            return f"its size is {self.size[0]}x{self.size[1]}"
        if policy == "rectified" and self.rectified is not None:
            return _matrix_fault("P", self.rectified)
        if fault := _matrix_fault("K", self.intrinsics):
            return fault if policy != "rectified" else f"its matrix P is zero, and {fault[4:]}"
        if policy != "rectified" and not np.isfinite(self.distortion).all():
            return "its distortion holds NaN or infinity"
        return None

    @property
    def is_distorted(self) -> bool:
        return any(abs(c) > 1e-12 for c in self.distortion)


def _matrix_fault(name: str, matrix: np.ndarray) -> str | None:
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        return f"its matrix {name} holds NaN or infinity"
    fx, fy = matrix[0, 0], matrix[1, 1]
    if min(fx, fy) <= 1e-6 or abs(np.linalg.det(matrix)) < 1e-9:
        return f"its matrix {name} is singular (fx {fx:g}, fy {fy:g}): the camera is not calibrated"
    return None


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
        self._distortion: tuple[float, ...] = ()  # what is taken out
        if policy == "rectified":
            if calibration.rectified is not None:
                self.intrinsics = calibration.rectified
            return
        if not calibration.is_distorted:
            return
        if policy == "refuse":
            raise ConfigError(
                f"its images are distorted ({calibration.model} {list(calibration.distortion)}); set the "
                "parameter distortion to 'rectify', or to 'rectified' if its topic is of rectified images"
            )
        known = COEFFICIENTS.get(calibration.model)
        if known is None or len(calibration.distortion) not in known:
            raise ConfigError(
                f"distortion model '{calibration.model}' with {len(calibration.distortion)} coefficients is not "
                f"known; known are {', '.join(COEFFICIENTS)}"
            )
        self._distortion = calibration.distortion

    def same_as(self, other: Rectifier | None) -> bool:
        """Whether both make the same of an image, to within rounding: a thousandth of a pixel."""
        if other is None or self._calibration.size != other._calibration.size:
            return False
        if np.abs(self.intrinsics - other.intrinsics).max() > _TOLERANCE:
            return False
        pairs = list(zip_longest(self._distortion, other._distortion, fillvalue=0.0))
        # a coefficient moves a point one focal length off the axis by itself times the focal length
        focal = max(self.intrinsics[0, 0], self.intrinsics[1, 1])
        models = {r._calibration.model.replace("fisheye", "equidistant") for r in (self, other) if r._distortion}
        return len(models) <= 1 and all(abs(a - b) * focal <= _TOLERANCE for a, b in pairs)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The image without distortion, ``[H, W, 3]`` uint8; the same array when there is none.

        Raises:
            FrameError: when the image's size is not that of the calibration.
        """
        size = (image.shape[1], image.shape[0])
        if self._calibration.size not in ((0, 0), size):
            width, height = self._calibration.size
            raise FrameError(
                f"{self.camera}: the image is {size[0]}x{size[1]}, but its calibration is for {width}x{height}"
                + (f" ({self._calibration.region})" if self._calibration.region else "")
            )
        if not self._distortion:
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
