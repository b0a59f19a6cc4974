# SPDX-License-Identifier: Apache-2.0
"""Draw a handful of made-up boxes through the six cameras of the test rig and from above.

    python -m scripts.draw_conventions docs/images/conventions.png

Shows how results look and which way the axes go. Nothing is detected here, and no data set is involved.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from bevnext_core.classes import CLASSES
from bevnext_core.detections import Detections
from bevnext_core.files import Parser
from bevnext_tools.draw.cameras import draw_frame, write_picture
from tests.rig import drive

# x, y, z, length, width, height, yaw, vx, vy; and the class
BOXES = (
    ((14, 1, 0.9, 4.6, 1.9, 1.7, 0.0, 6, 0), "car"),
    ((24, 6, 1.5, 10.5, 2.9, 3.4, 0.15, 4, 0.6), "bus"),
    ((11, -6, 0.9, 0.7, 0.7, 1.8, 1.6, 0, 1.4), "pedestrian"),
    ((6, 8, 0.9, 1.7, 0.6, 1.4, -0.6, 3, -2), "bicycle"),
    ((-9, 3, 1.4, 7.0, 2.5, 2.8, 3.1, -5, 0.2), "truck"),
    ((-7, -5, 0.6, 0.5, 2.5, 1.0, 0.3, 0, 0), "barrier"),
    ((2, -9, 0.8, 2.1, 0.8, 1.5, 1.2, 1, 3), "motorcycle"),
    ((-3, 9, 0.5, 0.4, 0.4, 1.0, 0.0, 0, 0), "traffic_cone"),
)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    args = parser.parse_args()
    frame = drive(1)[0]
    # A plain sky and ground instead of the test's noise: the boxes are what is to be seen.
    images = []
    for image in frame.images:
        assert image is not None
        plain = np.full_like(image, (58, 62, 68))
        plain[: round(image.shape[0] * 0.48)] = (96, 106, 120)
        images.append(plain)
    boxes = np.array([box for box, _ in BOXES], np.float32)
    labels = np.array([CLASSES.index(name) for _, name in BOXES])
    scores = np.ones(len(boxes), np.float32)
    detections = Detections(boxes, scores, labels, CLASSES, frame.stamp_ns, frame.global_from_ego)
    plain_frame = dataclasses.replace(frame, images=tuple(images))
    picture = draw_frame(plain_frame, detections, title="made-up boxes", camera_width=352, extent=30)
    write_picture(picture, args.file)


if __name__ == "__main__":
    main()
