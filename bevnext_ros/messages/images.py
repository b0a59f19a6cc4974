"""sensor_msgs/Image and CompressedImage -> RGB arrays, by duck typing: rclpy's messages and rosbags' alike.

The common encodings are decoded here, with any row length (``step``) and byte order; any other one by a ROS
distribution's ``cv_bridge`` where there is one. JPEG and PNG go through the project's one decoder.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import cv2
import numpy as np

from bevnext_core.errors import FrameError, one_line
from bevnext_core.images import decode_image

# encoding -> (channels, bytes per channel, conversion to RGB or None)
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "rgb8": (3, 1, None),
    "bgr8": (3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": (4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": (3, 2, None),
    "bgr16": (3, 2, cv2.COLOR_BGR2RGB),
    "rgba16": (4, 2, cv2.COLOR_RGBA2RGB),
    "bgra16": (4, 2, cv2.COLOR_BGRA2RGB),
    "mono16": (1, 2, cv2.COLOR_GRAY2RGB),
    "yuv422": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, 1, cv2.COLOR_YUV2RGB_YUY2),
    # The name says the colours of the first two rows' first two pixels; OpenCV's older names are those of the
    # second row and column.
    "bayer_rggb8": (1, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, 1, cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": (1, 2, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr16": (1, 2, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg16": (1, 2, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg16": (1, 2, cv2.COLOR_BayerGB2RGB),
}
KNOWN_ENCODINGS = tuple(_ENCODINGS)


def image_to_rgb(message: Any, name: str) -> np.ndarray:
    """A raw or compressed image message -> ``[H, W, 3]`` uint8 RGB.

    16-bit values are scaled to 8 bits. ``name`` stands for the camera in errors.

    Raises:
        FrameError: truncated data, an impossible size or step, or an encoding that is not known.
    """
    if hasattr(message, "encoding"):
        return _decode_raw(message, name)
    if "compressedDepth" in message.format:
        raise FrameError(f"{name}: the topic carries depth images ('{message.format}'), not colour images")
    return decode_image(bytes(message.data), name)


def _decode_raw(message: Any, name: str) -> np.ndarray:
    height, width, step = int(message.height), int(message.width), int(message.step)
    known = _ENCODINGS.get(message.encoding.lower())
    if known is None:
        return _decode_with_cv_bridge(message, name)
    channels, depth, conversion = known
    row = width * channels * depth
    data = np.frombuffer(message.data, np.uint8)
    if height <= 0 or width <= 0 or step < row:
        raise FrameError(
            f"{name}: an image of {width}x{height} {message.encoding} cannot have rows of {step} bytes"
        )
    # the last row may lack its padding
    if len(data) < step * (height - 1) + row:
        raise FrameError(f"{name}: the image is truncated: {len(data)} bytes, {step * height} expected")
    if len(data) < step * height:
        data = np.concatenate([data, np.zeros(step * height - len(data), np.uint8)])
    pixels: np.ndarray = data[: step * height].reshape(height, step)[:, :row]
    if depth == 2:
        words = np.ascontiguousarray(pixels).view(
            np.dtype(np.uint16).newbyteorder(">" if message.is_bigendian else "<")
        )
        pixels = ((words.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    pixels = np.ascontiguousarray(pixels).reshape(
        (height, width) if channels == 1 else (height, width, channels)
    )
    if conversion is None:
        return pixels.copy() if pixels.base is not None else pixels
    if message.encoding.lower().startswith(("yuv", "uyvy")) and width % 2:
        raise FrameError(f"{name}: an image in {message.encoding} must have an even width, got {width}")
    if message.encoding.lower().startswith("bayer") and (width % 2 or height % 2):
        raise FrameError(f"{name}: a Bayer image must have even sides, got {width}x{height}")
    return cv2.cvtColor(pixels, conversion)


def _decode_with_cv_bridge(message: Any, name: str) -> np.ndarray:
    """Exotic encodings. Only a distribution's package is asked; the Python index has another of that name."""
    known = f"known are {', '.join(KNOWN_ENCODINGS)}"
    if not os.environ.get("ROS_DISTRO"):
        raise FrameError(f"{name}: the encoding '{message.encoding}' is not known; {known}")
    try:
        bridge = importlib.import_module("cv_bridge").CvBridge()
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))
    except ImportError:
        raise FrameError(
            f"{name}: the encoding '{message.encoding}' needs cv_bridge, which is not installed; {known}"
        ) from None
    except Exception as error:  # cv_bridge raises its own and OpenCV's errors, which share no base class
        raise FrameError(
            f"{name}: cv_bridge cannot convert the encoding '{message.encoding}' ({one_line(error)}); {known}"
        ) from None


def rgb_to_image_fields(image: np.ndarray, encoding: str = "rgb8") -> dict[str, Any]:
    """Fields of a sensor_msgs/Image (all but the header) from ``[H, W, 3]`` uint8 RGB.

    Args:
        encoding: ``rgb8``, ``bgr8`` or ``mono8``.

    Raises:
        ValueError: another encoding, or an array of another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8[H, W, 3], got {image.dtype}{list(image.shape)}")
    conversions = {"rgb8": None, "bgr8": cv2.COLOR_RGB2BGR, "mono8": cv2.COLOR_RGB2GRAY}
    if encoding not in conversions:
        raise ValueError(f"encoding must be one of {', '.join(conversions)}, got '{encoding}'")
    conversion = conversions[encoding]
    pixels = np.ascontiguousarray(image) if conversion is None else cv2.cvtColor(image, conversion)
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "encoding": encoding,
        "is_bigendian": 0,
        "step": pixels.strides[0],
        "data": pixels.tobytes(),
    }
