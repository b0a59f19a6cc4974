# SPDX-License-Identifier: Apache-2.0
"""How far the network's window with each frame's own colours and camera parameters is from the published one.

    python -m scripts.compare_windows --dataroot D --checkpoint C [--scene S]

Over the frames of a scene that have a past: relative L2 difference of the head maps by kind; boxes matched within
0.5 m (same class), their mean displacement, missing and extra ones.
"""

from __future__ import annotations

import argparse

import numpy as np

from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.detector import Detector
from bevnext_core.files import Parser
from bevnext_core.network.heads import REGRESSION
from bevnext_core.streaming.decode import BoxSet, boxes_from_maps


def match(found: BoxSet, reference: BoxSet) -> tuple[int, float, int, int]:
    """Matched boxes, their summed displacement in metres, missing, extra."""
    free, moved = set(range(len(found.scores))), []
    for box, label in zip(reference.boxes, reference.labels, strict=True):
        near = {i: float(np.linalg.norm(found.boxes[i, :2] - box[:2])) for i in free if found.labels[i] == label}
        best = min(near, key=near.__getitem__, default=-1)
        if best >= 0 and near[best] <= 0.5:
            free.discard(best)
            moved.append(near[best])
    return len(moved), sum(moved), len(reference.scores) - len(moved), len(free)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataroot", required=True)
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--scene", default="scene-0103")
    parser.add_argument("--checkpoint", required=True)
    args = parser.parse_args()
    detector = Detector.from_checkpoint(args.checkpoint)
    frames = list(NuScenesReader(args.dataroot, args.version, scenes=[args.scene]).frames(args.scene))
    squares: dict[str, list[np.ndarray]] = {name: [] for name in ("heatmap", *REGRESSION)}
    boxes = np.zeros(4)
    for index in range(1, len(frames)):
        past = frames[index::-1]
        published, own = (detector.window_maps(past, published=choice) for choice in (True, False))
        for name, found in squares.items():
            pairs = [(a[name], b[name]) for a, b in zip(own.tasks, published.tasks, strict=True)]
            found.append(np.sum([[float((a - b).square().sum()), float(b.square().sum())] for a, b in pairs], 0))
        boxes += match(*(boxes_from_maps(maps.tasks, detector.config)[0] for maps in (own, published)))
    matched, moved, missing, extra = boxes
    differences = {name: np.mean([np.sqrt(a / b) for a, b in found]) for name, found in squares.items()}
    print(
        f"{args.scene}, {len(frames) - 1} frames with a past: "
        + ", ".join(f"{name} {value:.4f}" for name, value in differences.items())
        + f"; of {matched + missing:.0f} boxes {matched:.0f} within 0.5 m (mean {moved / max(matched, 1):.3f} m), "
        f"{missing:.0f} missing, {extra:.0f} extra"
    )


if __name__ == "__main__":
    main()
