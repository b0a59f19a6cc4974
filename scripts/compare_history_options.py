"""How much the two history options change the result: each alone, against the published window (key/key).

    python scripts/compare_history_options.py --dataroot D --checkpoint C [--scene S]

Prints, over the frames of a scene, the relative L2 difference of the head maps, and how the boxes differ:
matched within 0.5 m (same class), their mean displacement, missing and extra ones.
"""

from __future__ import annotations

import argparse

import numpy as np

from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.network.bevnext import HeadMaps
from bevnext_core.streaming.decode import BoxSet, boxes_from_maps

ORDER = ("heatmap", "reg", "height", "dim", "rot", "vel")
OPTIONS = (("own", "key"), ("key", "own"), ("own", "own"))


def map_differences(a: HeadMaps, b: HeadMaps) -> list[float]:
    """Relative L2 per kind of map, over all tasks."""
    return [
        float(
            np.sqrt(
                sum(float((x[k] - y[k]).square().sum()) for x, y in zip(a.tasks, b.tasks))
                / sum(float(y[k].square().sum()) for y in b.tasks)
            )
        )
        for k in ORDER
    ]


def match(found: BoxSet, reference: BoxSet) -> tuple[int, float, int, int]:
    """Matched boxes, their summed displacement in metres, missing, extra."""
    free, matched, moved = set(range(len(found.scores))), 0, 0.0
    for index in range(len(reference.scores)):
        same = [i for i in free if found.labels[i] == reference.labels[index]]
        distance = [float(np.linalg.norm(found.boxes[i, :2] - reference.boxes[index, :2])) for i in same]
        if distance and min(distance) <= 0.5:
            free.discard(same[int(np.argmin(distance))])
            matched, moved = matched + 1, moved + min(distance)
    return matched, moved, len(reference.scores) - matched, len(free)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataroot", required=True)
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--scene", default="scene-0103")
    parser.add_argument("--checkpoint", required=True)
    args = parser.parse_args()
    detectors = {
        pair: Detector.from_checkpoint(
            args.checkpoint, options=DetectorOptions(crf_canvas=pair[0], camera_params=pair[1])
        )
        for pair in (("key", "key"), *OPTIONS)
    }
    reader = NuScenesReader(args.dataroot, args.version, scenes=[args.scene])
    frames = list(reader.frames(args.scene))
    config = detectors["key", "key"].config
    window = config.history.frames + 1
    maps: dict[tuple[str, str], list[list[float]]] = {pair: [] for pair in OPTIONS}
    boxes = {pair: np.zeros(4) for pair in OPTIONS}
    total = 0
    for index in range(1, len(frames)):  # the first frame has no history
        past = frames[max(0, index + 1 - window) : index + 1][::-1]
        reference = detectors["key", "key"].window_maps(past)
        reference_boxes = boxes_from_maps(reference.tasks, config)[0]
        total += len(reference_boxes.scores)
        for pair in OPTIONS:
            found = detectors[pair].window_maps(past)
            maps[pair].append(map_differences(found, reference))
            boxes[pair] += match(boxes_from_maps(found.tasks, config)[0], reference_boxes)
    print(
        f"{args.scene}, {len(frames) - 1} frames with history, {total} boxes of the published window (key/key)"
    )
    print(f"{'crf_canvas/camera_params':26}" + "".join(f"{name:>9}" for name in ORDER) + "   boxes")
    for pair in OPTIONS:
        mean = np.mean(maps[pair], 0)
        matched, moved, missing, extra = boxes[pair]
        print(
            f"{'/'.join(pair):26}"
            + "".join(f"{value:9.4f}" for value in mean)
            + f"   {matched:.0f} within 0.5 m (mean {moved / max(matched, 1):.3f} m), "
            f"{missing:.0f} missing, {extra:.0f} extra"
        )


if __name__ == "__main__":
    main()
