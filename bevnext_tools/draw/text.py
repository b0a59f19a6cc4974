# SPDX-License-Identifier: Apache-2.0
"""Text in pictures, and labels where there is room for them."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bevnext_tools.draw.colors import TEXT, Color

RIM = 2
"""Pixels of the dark rim that keeps text readable on any picture."""
LABEL_SIZE = 13


@functools.lru_cache(maxsize=16)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def draw_text(
    image: np.ndarray, text: str, x: float, y: float, color: Color = TEXT, size: int = 14, rim: int = RIM
) -> None:
    """Write text with its baseline starting at pixel (x, y), in place."""
    if not text or not (np.isfinite(x) and np.isfinite(y)):
        return
    box = np.reshape(font(size).getbbox(text, anchor="ls", stroke_width=rim), (2, 2)) + (x, y)
    (left, top), (right, bottom) = np.clip(box + [[0], [1]], 0, image.shape[1::-1]).astype(int)
    part = image[top:bottom, left:right]
    if part.size:
        canvas = Image.fromarray(part)
        place = (x - left, y - top)
        ImageDraw.Draw(canvas).text(place, text, color, font(size), "ls", stroke_width=rim, stroke_fill=(0, 0, 0))
        part[:] = canvas


def wrapped(text: str, width: float, size: int = 14) -> list[str]:
    """The lines of ``text`` that are at most ``width`` pixels wide, as :func:`draw_text` writes them."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


class Labels:
    """Puts labels on plates into a picture, the first come first: none covers another one or leaves the picture."""

    def __init__(self, image: np.ndarray) -> None:
        self._image = image
        self._taken = np.zeros(image.shape[:2], bool)

    def put(self, text: str, x: float, above: float, below: float, color: Color) -> bool:
        """Write ``text`` from column ``x`` on, over row ``above`` or under row ``below``; whether there was room."""
        width, height = round(font(LABEL_SIZE).getlength(text)) + 6, LABEL_SIZE + 3
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
            draw_text(self._image, text, left + 3, int(top) + height - 4, ink, LABEL_SIZE, rim=0)
            return True
        return False
