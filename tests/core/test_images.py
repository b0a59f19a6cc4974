# SPDX-License-Identifier: Apache-2.0
"""The image decoder: right pixels, and one kind of error for every kind of damage."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bevnext_core.errors import FrameError
from bevnext_core.images import decode_image, read_image, read_images


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def encoded(array: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def test_lossless_image_comes_back_exactly_as_contiguous_rgb() -> None:
    original = picture()
    decoded = decode_image(encoded(original, "PNG"), "CAM_FRONT")
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, original)


def test_jpeg_keeps_the_channel_order() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 250
    mean = decode_image(encoded(red), "CAM_FRONT").reshape(-1, 3).mean(0)
    assert mean[0] > 240 and mean[1] < 10 and mean[2] < 10


def test_gray_image_becomes_rgb() -> None:
    gray = picture()[..., 0]
    decoded = decode_image(encoded(gray, "PNG"), "CAM_FRONT")
    np.testing.assert_array_equal(decoded, np.repeat(gray[..., None], 3, 2))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_data_is_an_error_that_names_the_image(kind: str, share: float) -> None:
    data = encoded(picture(), kind)
    with pytest.raises(FrameError, match=r"^CAM_BACK \(x\.jpg\): the image"):
        decode_image(data[: int(len(data) * share)], "CAM_BACK (x.jpg)")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_damaged_data_gives_an_image_or_a_frame_error_and_nothing_else(kind: str) -> None:
    data = bytearray(encoded(picture(), kind))
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 4):
            damaged[position] = rng.integers(0, 256)
        try:
            assert decode_image(bytes(damaged), "CAM_FRONT").ndim == 3
        except FrameError as error:
            assert "CAM_FRONT" in str(error)


def test_missing_file_names_camera_and_file(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=r"CAM_BACK: the image file is missing: .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg", "CAM_BACK")


def test_unreadable_file_names_camera_and_file(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=rf"CAM_BACK: the image file cannot be read: {tmp_path}"):
        read_image(tmp_path, "CAM_BACK")


def test_truncated_file_names_camera_and_file(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    data = encoded(picture())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        FrameError, match=r"CAM_BACK \(.*half\.jpg\): the image cannot be decoded .*truncated"
    ):
        read_image(path, "CAM_BACK")


def test_images_read_in_parallel_keep_their_order(tmp_path: Path) -> None:
    paths = []
    for value in range(8):
        paths.append(tmp_path / f"{value}.png")
        paths[-1].write_bytes(encoded(np.full((4, 4, 3), value, np.uint8), "PNG"))
    images = read_images(paths, [f"CAM_{i}" for i in range(8)])
    assert [int(image[0, 0, 0]) for image in images] == list(range(8))
    assert read_images([], []) == ()


def test_error_of_a_parallel_read_is_that_of_the_first_bad_camera(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="CAM_A"):
        read_images([tmp_path / "a", tmp_path / "b"], ["CAM_A", "CAM_B"])
