"""Videos of pictures: MP4 where the installed OpenCV can write it, else an animated GIF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bevnext_core.errors import BevnextError
from bevnext_core.files import atomic_path

GIF_WIDTH = 1280
"""Pixels; GIF files of full-size pictures are too large to look at."""


def write_video(stem: str | Path, pictures: Callable[[], Iterator[np.ndarray]], fps: float) -> Path:
    """Write ``stem.mp4``, or ``stem.gif`` where no MP4 encoder is installed.

    Args:
        stem: path without suffix.
        pictures: gives a new iterator over ``[H, W, 3]`` uint8 RGB pictures of one size at each call.
        fps: pictures per second.

    Returns:
        The file that was written.

    Raises:
        BevnextError: no pictures, or pictures of different sizes.
    """
    stem = Path(stem)
    first = next(pictures(), None)
    if first is None:
        raise BevnextError(f"{stem}: a video needs at least one picture")
    height, width = first.shape[:2]

    def checked() -> Iterator[np.ndarray]:
        for picture in pictures():
            if picture.shape != first.shape:
                raise BevnextError(
                    f"{stem}: the pictures of a video must have one size, "
                    f"got {picture.shape[1]}x{picture.shape[0]} after {width}x{height}"
                )
            yield picture

    mp4 = stem.with_name(stem.name + ".mp4")
    if _write_mp4(mp4, checked, fps, (width, height)):
        return mp4
    gif = stem.with_name(stem.name + ".gif")
    _write_gif(gif, checked, fps)
    return gif


def _write_mp4(
    path: Path, pictures: Callable[[], Iterator[np.ndarray]], fps: float, size: tuple[int, int]
) -> bool:
    """Whether the encoder was there; without one nothing is left behind."""
    try:
        with atomic_path(path) as temporary:
            writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
            try:
                if not writer.isOpened():
                    raise _NoEncoder
                for picture in pictures():
                    writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            finally:
                writer.release()
            # Some builds open the file and write nothing.
            if temporary.stat().st_size == 0:
                raise _NoEncoder
    except _NoEncoder:
        return False
    return True


class _NoEncoder(Exception):
    pass


def _write_gif(path: Path, pictures: Callable[[], Iterator[np.ndarray]], fps: float) -> None:
    def small() -> Iterator[Image.Image]:
        for picture in pictures():
            image = Image.fromarray(picture)
            if image.width > GIF_WIDTH:
                image = image.resize((GIF_WIDTH, round(image.height * GIF_WIDTH / image.width)))
            yield image.quantize(128)

    images = small()
    with atomic_path(path) as temporary:
        next(images).save(
            temporary, "GIF", save_all=True, append_images=images, duration=round(1000 / fps), loop=0
        )
