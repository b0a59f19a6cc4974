# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs/Image and CompressedImage -> RGB arrays, by duck typing: rclpy's messages and rosbags' alike.

The common encodings are decoded here, with any row length (``step``) and byte order; any other one by a ROS
distribution's ``cv_bridge`` where there is one. JPEG, PNG and TIFF go through the project's one decoder; what they
hold is what the message's ``format`` says, by the rules of image_transport's ``compressed_image_transport``.
"""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

import cv2
import numpy as np

from bevnext_core.errors import FrameError, one_line
from bevnext_core.images import decode_image, eight_bits, opened_image

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
    # chroma at half the height below the luminance: rows are half as many again
    "nv12": (1, 1, cv2.COLOR_YUV2RGB_NV12),
    "nv21": (1, 1, cv2.COLOR_YUV2RGB_NV21),
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
        FrameError: truncated data, an impossible size or step, an encoding that is not known or says nothing about
            colours, or a compressed image whose colours are lost or that is not what its format says.
    """
    return _decode_raw(message, name) if hasattr(message, "encoding") else _decode_compressed(message, name)


def _decode_raw(message: Any, name: str) -> np.ndarray:
    height, width, step = int(message.height), int(message.width), int(message.step)
    encoding = message.encoding.lower()
    known = _ENCODINGS.get(encoding)
    if known is None:
        return _decode_with_cv_bridge(message, name)
    channels, depth, _ = known
    row = width * channels * depth
    data = np.frombuffer(message.data, np.uint8)
    if height <= 0 or width <= 0 or step < row:
        raise FrameError(
            f"{name}: an image of {width}x{height} {message.encoding} cannot have rows of {step} bytes"
        )
    if encoding in ("nv12", "nv21") and len(data) != step * height:
        height = height * 3 // 2  # otherwise the driver has counted the rows of chroma already
    # the last row may lack its padding
    if len(data) < step * (height - 1) + row:
        raise FrameError(f"{name}: the image is truncated: {len(data)} bytes, {step * height} expected")
    if len(data) < step * height:
        data = np.concatenate([data, np.zeros(step * height - len(data), np.uint8)])
    pixels: np.ndarray = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :row])
    if depth == 2:
        pixels = pixels.view(np.dtype(np.uint16).newbyteorder(">" if message.is_bigendian else "<"))
    return _to_rgb(
        pixels.reshape((height, width) if channels == 1 else (height, width, channels)), encoding, name
    )


def _decode_compressed(message: Any, name: str) -> np.ndarray:
    """``SOURCE; CODEC compressed TARGET``: the publisher hands its image, converted from SOURCE to TARGET if it names
    one, to OpenCV's encoder, which takes three channels for BGR. One word alone is a picture as any program writes it.
    """
    source, _, rest = message.format.partition(";")
    words = rest.split()
    if "compressedDepth" in words:
        raise FrameError(f"{name}: the topic carries depth images ('{message.format}'), not colour images")
    data = bytes(message.data)
    source = source.strip().lower()
    by_image_transport = len(words) > 1 and words[1] == "compressed"
    if not words or (source.startswith(("rgb", "bgr")) and not by_image_transport):
        return decode_image(data, name)
    target = words[2].lower() if len(words) > 2 else ""
    if target.startswith("mono") and not source.startswith("mono"):
        raise FrameError(
            f"{name}: the publisher has turned its images into grey ('{message.format}'), their colours are lost: "
            "let it convert them to rgb8 first, or compress them as png"
        )
    encoding = target or source
    if encoding not in _ENCODINGS:
        raise FrameError(f"{name}: {_unknown(encoding)}")
    channels, depth, _ = _ENCODINGS[encoding]
    pixels = _decode_stored(data, name)
    found = (pixels.shape[2] if pixels.ndim == 3 else 1, pixels.itemsize)
    if found != (channels, depth):
        raise FrameError(
            f"{name}: the format '{message.format}' means {channels} channels of {8 * depth} bits, the data holds "
            f"{found[0]} of {8 * found[1]}"
            + (": JPEG clips values of 16 bits, compress them as png" if depth > found[1] else "")
        )
    if encoding == "bgr8":
        return pixels
    return _to_rgb(pixels if channels == 1 else pixels[..., [2, 1, 0, 3][:channels]], encoding, name)


def _decode_stored(data: bytes, name: str) -> np.ndarray:
    """Without a conversion: ``[H, W]``, or ``[H, W, 3 or 4]`` RGB(A); uint8, uint16 or whatever the file holds."""
    with opened_image(data, name) as image:
        if image.mode == "L":
            return np.array(image)
        if image.format == "JPEG":
            return np.array(image.convert("RGB"))
        image.load()  # finds truncated data, of which OpenCV may make half a picture
        # PIL reads colours of 16 bits as 8
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError("OpenCV cannot read it")
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _to_rgb(pixels: np.ndarray, encoding: str, name: str) -> np.ndarray:
    """``[H, W]`` or ``[H, W, C]`` in an encoding that is known -> RGB; a new array."""
    height, width = pixels.shape[:2]
    if encoding.startswith(("yuv", "uyvy", "nv")) and width % 2:
        raise FrameError(f"{name}: an image in {encoding} must have an even width, got {width}")
    if encoding.startswith("bayer") and (width % 2 or height % 2):
        raise FrameError(f"{name}: a Bayer image must have even sides, got {width}x{height}")
    if encoding.startswith("nv") and height % 3:
        raise FrameError(f"{name}: an image in {encoding} must have an even height, got {height} rows in all")
    if pixels.dtype != np.uint8:
        pixels = eight_bits(pixels)
    conversion = _ENCODINGS[encoding][2]
    return pixels.copy() if conversion is None else cv2.cvtColor(np.ascontiguousarray(pixels), conversion)


def _unknown(encoding: str) -> str:
    if re.fullmatch(r"(8|16|32|64)[usf]c\d*", encoding.lower()):
        return (
            f"the encoding '{encoding}' says nothing about colours (depth images have it too): "
            "let the driver name one, such as bgr8 or mono16"
        )
    return f"the encoding '{encoding}' is not known; known are {', '.join(KNOWN_ENCODINGS)}"


def _decode_with_cv_bridge(message: Any, name: str) -> np.ndarray:
    """Exotic encodings. Only a distribution's package is asked; the Python index has another of that name."""
    unknown = _unknown(message.encoding)
    if not os.environ.get("ROS_DISTRO"):
        raise FrameError(f"{name}: {unknown}")
    try:
        bridge = importlib.import_module("cv_bridge").CvBridge()
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))
    except ImportError:
        raise FrameError(f"{name}: {unknown}; cv_bridge, which might know it, is not installed") from None
    except Exception as error:  # cv_bridge raises its own and OpenCV's errors, which share no base class
        raise FrameError(
            f"{name}: cv_bridge cannot convert the encoding '{message.encoding}' ({one_line(error)}); {unknown}"
        ) from None
