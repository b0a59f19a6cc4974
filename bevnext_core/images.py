# SPDX-License-Identifier: Apache-2.0
"""The project's one image decoder: files, bags and topics all go through it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bevnext_core.errors import FrameError, one_line


@contextmanager
def opened_image(data: bytes, name: str) -> Iterator[Image.Image]:
    """A compressed image (JPEG, PNG, ...) for a block that reads its pixels.

    Raises:
        FrameError: the data is empty, truncated or no image, or the block finds a fault in it; names ``name``.
    """
    if not data:
        raise FrameError(f"{name}: the image is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise FrameError(f"{name}: the image is too large to be a camera's: {one_line(error)}") from None
    # PIL's plugins report damaged data in all these ways.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, cv2.error) as error:
        # PIL names the in-memory buffer; the caller's name says more.
        reason = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
        raise FrameError(f"{name}: the image cannot be decoded ({len(data)} bytes): {reason}") from None


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode a compressed image. Grey values of 16 bits are scaled to 8.

    Args:
        data: the file's bytes.
        name: what to call the image in an error, for example ``CAM_FRONT (path/to/file.jpg)``.

    Returns:
        ``[H, W, 3]`` uint8 RGB, contiguous and writable.

    Raises:
        FrameError: as :func:`opened_image`, or it holds values of 32 bits.
    """
    with opened_image(data, name) as image:
        # PIL's own conversion clips what is above 255
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            return np.repeat(eight_bits(np.array(image))[..., None], 3, 2)
        if image.mode in ("I", "F"):
            raise ValueError("it holds values of 32 bits, which are no colours")
        return np.array(image.convert("RGB"))


def eight_bits(values: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, the whole range scaled and rounded."""
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def read_image(path: str | Path, camera: str) -> np.ndarray:
    """Read an image file -> ``[H, W, 3]`` uint8 RGB.

    Raises:
        FrameError: the file is missing, unreadable or truncated; names ``camera`` and the file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FrameError(f"{camera}: the image file is missing: {path}") from None
    except OSError as error:
        raise FrameError(f"{camera}: the image file cannot be read: {path} ({error.strerror})") from None
    return decode_image(data, f"{camera} ({path})")


def read_images(paths: Sequence[str | Path], cameras: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Read one image per camera, in parallel (the decoder works outside the interpreter's lock).

    Raises:
        FrameError: that of the first camera, in the given order, whose image cannot be read.
    """
    if not paths:
        return ()
    with ThreadPoolExecutor(max_workers=len(paths)) as pool:
        return tuple(pool.map(read_image, paths, cameras))
