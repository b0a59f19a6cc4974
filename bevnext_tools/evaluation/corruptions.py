# SPDX-License-Identifier: Apache-2.0
"""Spoilt images: RoboBEV's eight kinds in three severities.

The kinds are RoboBEV's (Xie et al.), the pictures this project's own: scores say what a network loses by them, and are
no figures of that benchmark. What is random follows from the kind, the frame and the camera, and a stronger severity
draws the same: more cameras on top of those already lost, thicker fog of the same shape.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.errors import BevnextError, FrameError
from bevnext_core.frame import CameraFrame

LOST = (2 / 6, 4 / 6, 5 / 6)
"""Share of the cameras that crash, and of the images that are lost."""


def motion_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Smeared along a line of 1, 2 or 4 % of the width."""
    length = max(3, round(image.shape[1] * (0.01, 0.02, 0.04)[severity - 1]))
    angle = rng.uniform(-30, 30)
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D(((length - 1) / 2, (length - 1) / 2), angle, 1)
    kernel = cv2.warpAffine(kernel, turn, (length, length))
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def brightness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """An exposure that is 1.5, 2 or 3 times too long."""
    return _pixels(image * (1.5, 2.0, 3.0)[severity - 1])


def darkness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A half, a quarter or a tenth of the light, with the noise of few photons."""
    light = (0.5, 0.25, 0.1)[severity - 1]
    return _pixels(image * light + rng.standard_normal(image.shape, np.float32) * 8 * np.sqrt(1 - light))


def fog(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blended with grey, in clouds; more above the middle, which is farther away."""
    height, width = image.shape[:2]
    clouds = cv2.resize(rng.random((4, 6), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    far = np.interp(np.arange(height), [0, height / 2, height], [1, 1, 0.5])[:, None]
    share = (0.35, 0.6, 0.85)[severity - 1] * far * (0.8 + 0.2 * clouds.clip(0, 1))
    return _pixels(image * (1 - share[..., None]) + 200 * share[..., None])


def snow(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Paler, and with streaks of flakes in front."""
    height, width = image.shape[:2]
    flakes = rng.random((max(height // 3, 1), max(width // 3, 1)), np.float32)
    flakes = (flakes < (0.01, 0.025, 0.05)[severity - 1]).astype(np.float32)
    flakes = cv2.resize(flakes, (width, height), interpolation=cv2.INTER_LINEAR)
    flakes = motion_blur(flakes, 1, rng)[..., None].clip(0, 1)
    pale = (0.15, 0.25, 0.35)[severity - 1]
    return _pixels((image * (1 - pale) + 235 * pale) * (1 - flakes) + 250 * flakes)


def colour_quantisation(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """16, 8 or 4 levels of each colour."""
    step = (16, 32, 64)[severity - 1]
    return (image // step * step + step // 2).astype(np.uint8)


IMAGES: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "motion-blur": motion_blur,
    "brightness": brightness,
    "darkness": darkness,
    "fog": fog,
    "snow": snow,
    "colour-quantisation": colour_quantisation,
}
NAMES = ("camera-crash", "frame-lost", *IMAGES)


@dataclass(frozen=True)
class Corruption:
    """``name`` of :data:`NAMES`, ``severity`` of 1 to 3; ``missing``: a frame that lacks images keeps the others
    (mask), or is not used (skip)."""

    name: str
    severity: int
    missing: Literal["mask", "skip"] = "mask"

    @classmethod
    def parse(cls, text: str, missing: Literal["mask", "skip"] = "mask") -> Corruption:
        """Of ``fog:2``. Raises BevnextError: there is no such kind or severity."""
        name, _, severity = text.partition(":")
        if name not in NAMES or severity not in ("1", "2", "3"):
            raise BevnextError(f"--corrupt {text}: expected NAME:SEVERITY with a severity of 1 to 3 and a name of "
                               + ", ".join(NAMES))
        return cls(name, int(severity), missing)

    def __str__(self) -> str:
        lost = f", {self.missing}" if self.name not in IMAGES else ""
        return f"{self.name}:{self.severity}{lost}"

    def apply(self, frame: CameraFrame, scene: str) -> CameraFrame:
        """The spoilt frame of a scene. Raises FrameError: images are lost, and the frame is to be skipped."""
        rngs = [self._rng(frame.token or str(frame.stamp_ns), camera) for camera in frame.cameras]
        if self.name in IMAGES:
            spoil = IMAGES[self.name]
            images = [image if image is None else spoil(image, self.severity, rng)
                      for image, rng in zip(frame.images, rngs, strict=True)]
            return dataclasses.replace(frame, images=tuple(images))
        count, share = len(frame.cameras), LOST[self.severity - 1]
        if self.name == "camera-crash":  # for the whole scene
            lost = np.isin(np.arange(count), self._rng(scene).permutation(count)[: round(share * count)])
        else:
            lost = np.array([rng.random() < share for rng in rngs])
        if lost.any() and self.missing == "skip":
            raise FrameError(f"{', '.join(np.array(frame.cameras)[lost])}: the image is lost ({self})")
        images = [None if gone else image for image, gone in zip(frame.images, lost, strict=True)]
        return dataclasses.replace(frame, images=tuple(images), valid=frame.valid & ~lost)

    def _rng(self, *names: str) -> np.random.Generator:
        return np.random.default_rng([zlib.crc32(name.encode()) for name in (self.name, *names)])


class CorruptedImages(NuScenesReader):
    """A reader whose frames are spoilt by its ``corruption``."""

    corruption: Corruption

    def load(self, ref: FrameRef) -> CameraFrame:
        return self.corruption.apply(super().load(ref), ref.scene)


def _pixels(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)
