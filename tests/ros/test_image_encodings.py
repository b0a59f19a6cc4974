# SPDX-License-Identifier: Apache-2.0
"""docs/ros.md's table of encodings, row by row: raw, and compressed as image_transport's publisher does it.

``publish`` follows ``compressed_publisher.cpp`` and ``cv_bridge.cpp`` (revisions in docs/ros.md): which target a format
names, and that the image goes to OpenCV's encoder, which takes three channels for blue, green, red whatever they are.
"""

from __future__ import annotations

import itertools
import re
import types

import cv2
import numpy as np
import pytest

from bevnext_core.errors import FrameError
from bevnext_core.images import decode_image
from bevnext_ros.messages.images import KNOWN_ENCODINGS, image_to_rgb
from tests.paths import ROOT

COLOUR = np.array([200, 120, 30])
HEIGHT, WIDTH = 24, 36
YUV = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21")
COLUMNS = ("raw", "jpeg", "old jpeg", "png", "tiff")


def table() -> dict[str, dict[str, str]]:
    """{encoding: {column: what the cell says}} of the table in docs/ros.md."""
    text = (ROOT / "docs/ros.md").read_text(encoding="utf-8")
    rows = re.search(r"\| encoding \| raw \|.*?\n\n", text, re.DOTALL).group().splitlines()[2:]
    found = {}
    for row in filter(None, rows):
        names, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = dict(zip(COLUMNS, cells, strict=True))
    return found


TABLE = table()


def luminance_and_chroma() -> tuple[int, int, int]:
    """Y, U, V of the colour: BT.601, studio swing."""
    r, g, b = COLOUR / 255
    y = 16 + 65.481 * r + 128.553 * g + 24.966 * b
    return (
        round(y),
        round(128 - 37.797 * r - 74.203 * g + 112 * b),
        round(128 + 112 * r - 93.786 * g - 18.214 * b),
    )


def pixels_in(encoding: str, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A picture of the one colour in an encoding: ``[rows, width(, channels)]``."""
    name, bits = re.match(r"(.*?)(8|16)?$", encoding).groups()
    scale, kind = (257, np.uint16) if bits == "16" else (1, np.uint8)
    y, u, v = luminance_and_chroma()
    values = {"r": COLOUR[0], "g": COLOUR[1], "b": COLOUR[2], "a": 9}
    if name.startswith("bayer_"):
        mosaic = np.array([values[c] for c in name[6:]]).reshape(2, 2)
        return (np.tile(mosaic, (height // 2, width // 2)) * scale).astype(kind)
    if name == "mono":
        return np.full((height, width), grey() * scale, kind)
    if name in ("nv12", "nv21") or encoding in ("nv12", "nv21"):
        chroma = np.tile(
            np.array((u, v) if encoding == "nv12" else (v, u), np.uint8), (height // 2, width // 2)
        )
        return np.concatenate([np.full((height, width), y, np.uint8), chroma])
    if name in ("yuv422", "uyvy", "yuyv", "yuv422_yuy2"):
        pair = (u, y, v, y) if name in ("yuv422", "uyvy") else (y, u, y, v)
        return np.tile(np.array(pair, np.uint8), (height, width // 2)).reshape(height, width, 2)
    if set(name) <= set("rgba"):
        return np.tile(np.array([values[c] for c in name], kind) * scale, (height, width, 1)).astype(kind)
    bits, letter, channels = re.match(r"(\d+)([USF])C(\d)", encoding).groups()
    kind = np.dtype(f"{'f' if letter == 'F' else 'iu'[letter == 'U']}{int(bits) // 8}")
    shape = (height, width) if channels == "1" else (height, width, int(channels))
    return np.full(shape, 100, kind)


def grey() -> int:
    return round(float(COLOUR @ [0.299, 0.587, 0.114]))


def raw(encoding: str) -> types.SimpleNamespace:
    pixels = pixels_in(encoding)
    return types.SimpleNamespace(
        height=HEIGHT,
        width=WIDTH,
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0],
        data=pixels.tobytes(),
    )


def publish(encoding: str, column: str) -> types.SimpleNamespace | None:
    """A CompressedImage as the publisher of that column makes it; ``None`` where it publishes nothing."""
    codec = column.split()[-1]
    bits = int(re.search(r"(8|16|32|64)", encoding).group()) if re.search(r"(8|16|32|64)", encoding) else 8
    colour = encoding.startswith(("rgb", "bgr")) or (encoding in YUV and column != "old jpeg")
    target = ""
    if codec == "jpeg" and bits <= 16:
        target = "bgr8" if colour else "mono8" if column == "jpeg" else ""
    elif codec == "png" and colour:
        target = f"bgr{bits}"
    if (codec == "png" and bits > 16) or (codec == "jpeg" and (bits > 16 or (target and "C" in encoding))):
        return None  # an error is logged: the depth, or no conversion from a type without colours
    if encoding in YUV and not target:
        return None  # no encoder takes two channels, and cv_bridge has no type for NV12
    pixels = pixels_in(target or encoding)
    data = cv2.imencode(f".{codec}", pixels)[1].tobytes()
    return types.SimpleNamespace(format=f"{encoding}; {codec} compressed {target}", data=data)


@pytest.mark.parametrize("encoding, column", itertools.product(TABLE, COLUMNS))
def test_every_cell_of_the_documented_table(encoding, column, monkeypatch):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    said = TABLE[encoding][column]
    message = raw(encoding) if column == "raw" else publish(encoding, column)
    if said == "-":
        assert message is None
    elif said == "read":
        rgb = image_to_rgb(message, "front")
        assert rgb.shape == (HEIGHT, WIDTH, 3) and rgb.dtype == np.uint8
        expected = np.full(3, grey()) if "mono" in encoding else COLOUR
        # the edges of a demosaiced picture, and JPEG's rounding
        np.testing.assert_allclose(rgb[4:-4, 4:-4].reshape(-1, 3).mean(0), expected, atol=4)
    else:
        reason = {"refused: no colours": "says nothing about colours", "refused: grey": "colours are lost"}
        reason["refused: clipped"] = "JPEG clips values of 16 bits"
        with pytest.raises(FrameError, match=rf"^front: .*{reason[said]}"):
            image_to_rgb(message, "front")


def test_the_table_has_every_encoding_that_is_read():
    read = {encoding for encoding, cells in TABLE.items() if cells["raw"] == "read"}
    assert read == set(KNOWN_ENCODINGS) and len(TABLE) > len(read)


@pytest.mark.parametrize("codec", ["jpeg", "png"])
@pytest.mark.parametrize("target", ["", "bayer_rggb8"])
def test_a_mosaic_as_jpeg_or_png_is_demosaiced_exactly_as_the_raw_one(codec, target):
    """A Bayer camera's images; the format alone tells them from grey pictures."""
    rng = np.random.default_rng(3)
    mosaic = rng.integers(0, 256, (32, 48), np.uint8)
    data = cv2.imencode(f".{codec}", mosaic)[1]
    stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    message = types.SimpleNamespace(format=f"bayer_rggb8; {codec} compressed {target}", data=data.tobytes())
    direct = types.SimpleNamespace(
        height=32, width=48, encoding="bayer_rggb8", is_bigendian=0, step=48, data=stored.tobytes()
    )
    np.testing.assert_array_equal(image_to_rgb(message, "front"), image_to_rgb(direct, "front"))


@pytest.mark.parametrize("form", ["jpeg", "jpg", "", "JPEG", "rgb8; jpeg", "bgr8;jpeg"])
def test_other_programs_forms_are_pictures_as_any_viewer_shows_them(form):
    data = cv2.imencode(".jpg", pixels_in("bgr8"))[1].tobytes()
    rgb = image_to_rgb(types.SimpleNamespace(format=form, data=data), "front")
    np.testing.assert_array_equal(rgb, decode_image(data, "front"))
    np.testing.assert_allclose(rgb.reshape(-1, 3).mean(0), COLOUR, atol=4)


def test_deep_grey_pictures_are_scaled_not_clipped():
    deep = np.array([[0, 257, 40_000, 65_535]], np.uint16).repeat(4, 0)
    for codec in ("png", "tiff"):
        data = cv2.imencode(f".{codec}", deep)[1].tobytes()
        for form in (codec, f"mono16; {codec} compressed "):
            rgb = image_to_rgb(types.SimpleNamespace(format=form, data=data), "front")
            assert rgb[0, :, 1].tolist() == [0, 1, 156, 255] and (rgb == rgb[..., :1]).all()
    data = cv2.imencode(".tiff", deep.astype(np.float32))[1].tobytes()
    with pytest.raises(FrameError, match=r"front.*32 bits, which are no colours"):
        image_to_rgb(types.SimpleNamespace(format="tiff", data=data), "front")


@pytest.mark.parametrize(
    "form, encoding, text",
    [
        ("rgb8; jpeg compressed bgr8", "mono8", "means 3 channels of 8 bits, the data holds 1 of 8"),
        ("bayer_rggb8; png compressed ", "bgr8", "means 1 channels of 8 bits, the data holds 3 of 8"),
        (
            "bayer_gbrg8; png compressed ",
            "bayer_gbrg16",
            "means 1 channels of 8 bits, the data holds 1 of 16",
        ),
        ("h264; jpeg compressed ", "bgr8", "'h264' is not known; known are rgb8"),
        ("32FC1; compressedDepth png", "bgr8", "depth images"),
    ],
)
def test_what_does_not_fit_its_format_is_refused(form, encoding, text):
    data = cv2.imencode(".png", pixels_in(encoding))[1].tobytes()
    with pytest.raises(FrameError, match=f"^front: .*{text}"):
        image_to_rgb(types.SimpleNamespace(format=form, data=data), "front")


@pytest.mark.parametrize("encoding", ["bayer_rggb16", "mono16", "rgb16"])
def test_truncated_deep_pictures_are_refused(encoding):
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 65_536, pixels_in(encoding).shape).astype(np.uint16)
    data = cv2.imencode(".png", noise)[1].tobytes()
    target = "bgr16" if encoding == "rgb16" else ""
    for share in (0.1, 0.5, 0.9):
        half = types.SimpleNamespace(
            format=f"{encoding}; png compressed {target}", data=data[: int(len(data) * share)]
        )
        with pytest.raises(FrameError, match=r"^front: the image"):
            image_to_rgb(half, "front")


@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_drivers_count_the_rows_of_chroma_or_not_and_may_pad(encoding):
    padded = np.pad(pixels_in(encoding), ((0, 0), (0, 12)))
    whole = raw(encoding)
    expected = image_to_rgb(whole, "front")
    for height, data in (
        (HEIGHT, padded.tobytes()),
        (HEIGHT * 3 // 2, padded.tobytes()),
        (HEIGHT, padded.tobytes()[:-12]),
    ):
        whole.height, whole.step, whole.data = height, WIDTH + 12, data
        np.testing.assert_array_equal(image_to_rgb(whole, "front"), expected)
    whole.height, whole.data = HEIGHT, whole.data[:-200]
    with pytest.raises(FrameError, match=r"front.*truncated"):
        image_to_rgb(whole, "front")
