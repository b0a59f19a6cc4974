"""The project's one image decoder: files, bags and topics all go through :func:`decode_image`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from bevnext_core.errors import FrameError, one_line


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode a compressed image (JPEG, PNG, ...).

    Args:
        data: the file's bytes.
        name: what to call the image in an error, for example ``CAM_FRONT (path/to/file.jpg)``.

    Returns:
        ``[H, W, 3]`` uint8 RGB, contiguous and writable.

    Raises:
        FrameError: the data is empty, truncated or no image; names ``name``.
    """
    if not data:
        raise FrameError(f"{name}: the image is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise FrameError(f"{name}: the image is too large to be a camera's: {one_line(error)}") from None
    # PIL's plugins report damaged data in all these ways.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        # PIL names the in-memory buffer; the caller's name says more.
        reason = (
            "no known image format" if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
        )
        raise FrameError(f"{name}: the image cannot be decoded ({len(data)} bytes): {reason}") from None


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
