# SPDX-License-Identifier: Apache-2.0
"""Every encoding, row length and byte order -> the same RGB picture; what is broken is refused by name."""

from __future__ import annotations

import io
import sys
import types

import cv2
import numpy as np
import pytest
from PIL import Image

from bevnext_core.errors import FrameError
from bevnext_core.images import decode_image
from bevnext_ros.messages.images import image_to_rgb


def picture(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def message(pixels: np.ndarray, encoding: str, padding: int = 0, bigendian: int = 0, **changes):
    """Rows of ``pixels`` (any type) as an image message with ``padding`` bytes after each row."""
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    noise = np.full((len(rows), padding), 77, np.uint8)
    fields = {
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "encoding": encoding,
        "is_bigendian": bigendian,
        "step": rows.shape[1] + padding,
        "data": np.concatenate([rows, noise], 1).tobytes(),
        **changes,
    }
    return types.SimpleNamespace(**fields)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    "encoding, channels",
    [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("rgba8", [0, 1, 2, 3]), ("bgra8", [2, 1, 0, 3])],
)
def test_colour_orders(encoding, channels, padding):
    rgb = picture()
    with_alpha = np.concatenate([rgb, np.full((6, 8, 1), 9, np.uint8)], 2)
    np.testing.assert_array_equal(
        image_to_rgb(message(with_alpha[..., channels], encoding, padding), "c"), rgb
    )


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("bigendian", [0, 1])
@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "mono16"])
def test_sixteen_bits_in_both_byte_orders(encoding, bigendian, padding):
    rgb = picture()
    pixels = rgb.astype(np.uint16) * 256 + (255 - rgb)  # the low byte differs from the high one
    expected = np.round(pixels / 257.0).astype(np.uint8)
    if encoding == "bgr16":
        pixels = pixels[..., ::-1]
    if encoding == "mono16":
        pixels, expected = pixels[..., 0], np.repeat(expected[..., :1], 3, 2)
    pixels = np.ascontiguousarray(pixels).astype(">u2" if bigendian else "<u2")
    np.testing.assert_array_equal(image_to_rgb(message(pixels, encoding, padding, bigendian), "c"), expected)


def test_mono8():
    gray = picture()[..., 0]
    np.testing.assert_array_equal(image_to_rgb(message(gray, "mono8", 3), "c"), np.stack([gray] * 3, 2))


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize(
    "encoding, order", [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
def test_both_yuv422_orders(encoding, order, padding):
    """Colours by the BT.601 formula for studio swing, written out here."""
    y, u, v = 120.0, 90.0, 190.0
    red = 1.164 * (y - 16) + 1.596 * (v - 128)
    green = 1.164 * (y - 16) - 0.813 * (v - 128) - 0.392 * (u - 128)
    blue = 1.164 * (y - 16) + 2.017 * (u - 128)
    pair = {"u": u, "y": y, "v": v}
    row = np.array([pair[c] for c in order] * 4, np.uint8).reshape(8, 2)
    decoded = image_to_rgb(message(np.stack([row] * 6), encoding, padding), "c")
    assert decoded.shape == (6, 8, 3)
    np.testing.assert_allclose(decoded.reshape(-1, 3), np.tile([red, green, blue], (48, 1)), atol=2)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns(pattern, depth):
    color = {"r": 200, "g": 120, "b": 30}
    mosaic = np.array([color[c] for c in pattern], np.uint16).reshape(2, 2)
    mosaic = np.tile(mosaic, (6, 6)) * (257 if depth == 16 else 1)
    pixels = mosaic.astype("<u2" if depth == 16 else np.uint8)
    decoded = image_to_rgb(message(pixels, f"bayer_{pattern}{depth}", 4), "c")
    np.testing.assert_allclose(decoded[2:-2, 2:-2].reshape(-1, 3), np.tile([200, 120, 30], (64, 1)), atol=1)


def test_last_row_may_lack_its_padding_and_the_result_is_writable():
    rgb = picture()
    padded = message(rgb, "rgb8", 5)
    padded.data = padded.data[:-5]
    decoded = image_to_rgb(padded, "c")
    np.testing.assert_array_equal(decoded, rgb)
    decoded[0, 0] = 0
    np.testing.assert_array_equal(image_to_rgb(padded, "c"), rgb)  # the message is untouched


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"data": b"\0" * 100}, "truncated: 100 bytes, 144 expected"),
        ({"step": 10}, "cannot have rows of 10 bytes"),
        ({"width": 0}, "0x6"),
        ({"encoding": "yuv422", "width": 7, "step": 24}, "even width"),
        ({"encoding": "bayer_rggb8", "height": 5}, "even sides"),
    ],
)
def test_broken_images_are_refused_with_the_camera_and_the_reason(changes, text):
    with pytest.raises(FrameError, match=f"front.*{text}"):
        image_to_rgb(message(picture(), changes.pop("encoding", "rgb8"), **changes), "front")


def test_unknown_encoding_lists_what_is_known(monkeypatch):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    with pytest.raises(FrameError, match=r"front.*'nv24'.*rgb8.*bayer_grbg16"):
        image_to_rgb(message(picture(), "nv24"), "front")


def test_unknown_encoding_goes_to_the_cv_bridge_of_a_distribution_only(monkeypatch):
    bridge = types.ModuleType("cv_bridge")

    class CvBridge:
        def imgmsg_to_cv2(self, given, wanted):
            assert wanted == "rgb8"
            if given.encoding == "odd":
                raise RuntimeError("no such conversion")
            return np.full((given.height, given.width, 3), 5, np.uint8)

    bridge.CvBridge = CvBridge
    monkeypatch.setitem(sys.modules, "cv_bridge", bridge)
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    with pytest.raises(FrameError, match="not known"):
        image_to_rgb(message(picture(), "nv24"), "front")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert (image_to_rgb(message(picture(), "nv24"), "front") == 5).all()
    with pytest.raises(FrameError, match=r"front: cv_bridge cannot convert.*no such conversion"):
        image_to_rgb(message(picture(), "odd"), "front")


def compressed(data: bytes, form: str = "jpeg"):
    return types.SimpleNamespace(format=form, data=np.frombuffer(data, np.uint8))


def test_compressed_images_go_through_the_one_decoder():
    buffer = io.BytesIO()
    Image.fromarray(picture(64, 96)).save(buffer, "JPEG")
    decoded = image_to_rgb(compressed(buffer.getvalue(), "bgr8; jpeg compressed bgr8"), "front")
    np.testing.assert_array_equal(decoded, decode_image(buffer.getvalue(), "front"))
    with pytest.raises(FrameError, match="front"):
        image_to_rgb(compressed(buffer.getvalue()[:300]), "front")
    with pytest.raises(FrameError, match="depth"):
        image_to_rgb(compressed(b"", "16UC1; compressedDepth png"), "front")


def test_colours_and_grey_of_raw_images():
    rgb = picture(5, 7)
    for encoding, pixels in (("rgb8", rgb), ("bgr8", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))):
        np.testing.assert_array_equal(image_to_rgb(message(pixels, encoding), "c"), rgb)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(image_to_rgb(message(grey, "mono8"), "c")[..., 0], grey)
