"""Text in pictures, and labels where there is room for them."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bevnext_core.draw.colors import TEXT, Color

RIM = 2
"""Pixels of the dark rim that keeps text readable on any picture."""
LABEL_SIZE = 13


@functools.lru_cache(maxsize=16)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=4096)
def _masks(text: str, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Shares ``[H, W]`` of ink and of its rim in each pixel, and the row of the baseline."""
    left, top, right, bottom = font(size).getbbox(text, anchor="ls", stroke_width=RIM)
    start, extent = (-left, -top), (round(right - left) + 1, round(bottom - top) + 1)
    masks = []
    for stroke in (0, RIM):
        image = Image.new("L", extent)
        ImageDraw.Draw(image).text(start, text, 255, font(size), "ls", stroke_width=stroke)
        masks.append(np.asarray(image, np.float32) / 255)
    return masks[0], masks[1], round(-top)


def draw_text(
    image: np.ndarray, text: str, x: float, y: float, color: Color = TEXT, size: int = 14, on_rim: bool = True
) -> None:
    """Write text with its baseline starting at pixel (x, y), in place."""
    if not text or not (np.isfinite(x) and np.isfinite(y)):
        return
    ink, rim, baseline = _masks(text, size)
    left, top = (int(np.clip(value, -1e4, 1e4)) for value in (x - RIM, y - baseline))
    rows = slice(max(top, 0), max(min(top + ink.shape[0], image.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + ink.shape[1], image.shape[1]), 0))
    part = image[rows, columns]
    if part.size:
        inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        dark = part * (1 - on_rim * rim[inner][..., None])
        part[:] = np.rint(dark + (np.array(color) - dark) * ink[inner][..., None])


class Labels:
    """Puts labels on plates into a picture, the first come first: none covers another one or leaves the picture."""

    def __init__(self, image: np.ndarray, size: int = LABEL_SIZE) -> None:
        self._image, self._size = image, size
        self._taken = np.zeros(image.shape[:2], bool)

    def put(self, text: str, x: float, above: float, below: float, color: Color) -> bool:
        """Write ``text`` from column ``x`` on, over row ``above`` or under row ``below``; whether there was room."""
        width, height = round(font(self._size).getlength(text)) + 6, self._size + 3
        for top in (above - height, below):
            if not (np.isfinite(top) and np.isfinite(x)) or top < 0 or top + height > self._image.shape[0]:
                continue
            left = max(int(x), 0)
            place = (slice(int(top), int(top) + height), slice(left, left + width))
            if left + width > self._image.shape[1] or self._taken[place].any():
                continue
            self._taken[place] = True
            self._image[place] = color
            bright = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 110
            ink: Color = (0, 0, 0) if bright else (255, 255, 255)
            draw_text(self._image, text, left + 3, int(top) + height - 4, ink, self._size, on_rim=False)
            return True
        return False
