# SPDX-License-Identifier: Apache-2.0
"""The colours of all pictures: one table.

The classes have the seven colours of Okabe and Ito's palette for all kinds of colour vision (Color Universal Design,
2008; its black would not be seen here) and three more, chosen so that any two of the ten, white and the background
differ in protanopia, deuteranopia and tritanopia too (``tests/tools/test_draw.py`` measures it).
"""

from __future__ import annotations

import zlib

Color = tuple[int, int, int]

CLASS_COLORS: dict[str, Color] = {
    "car": (230, 159, 0),  # orange
    "truck": (213, 94, 0),  # vermilion
    "construction_vehicle": (240, 228, 66),  # yellow
    "bus": (0, 114, 178),  # blue
    "trailer": (204, 121, 167),  # reddish purple
    "barrier": (0, 158, 115),  # bluish green
    "motorcycle": (238, 0, 85),  # crimson, not of the palette
    "bicycle": (136, 85, 238),  # violet, not of the palette
    "pedestrian": (86, 180, 233),  # sky blue
    "traffic_cone": (0, 255, 136),  # spring green, not of the palette
}
"""RGB per class."""
TRUTH_COLOR: Color = (255, 255, 255)
DOUBT_COLOR: Color = (255, 176, 0)
BACKGROUND: Color = (24, 26, 30)
GRID: Color = (62, 66, 74)
DIM: Color = (140, 145, 155)
TEXT: Color = (205, 208, 214)


def class_color(name: str) -> Color:
    """RGB of a class; one that nuScenes does not have takes one of the ten colours by its name."""
    return CLASS_COLORS.get(name) or tuple(CLASS_COLORS.values())[zlib.crc32(name.encode()) % len(CLASS_COLORS)]
