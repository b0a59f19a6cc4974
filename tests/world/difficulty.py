# SPDX-License-Identifier: Apache-2.0
"""How hard a synthetic split is: counts over what the official evaluation scores.

An object is scored when it lies within its class's range of the ego and the lidar hits it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bevnext_core.datasets.nuscenes import LIDAR
from bevnext_world.recording.writer import token
from bevnext_world.streets.actors import CATEGORIES

RANGES = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), 50.0),
    **dict.fromkeys(("pedestrian", "motorcycle", "bicycle"), 40.0),
    **dict.fromkeys(("traffic_cone", "barrier"), 30.0),
}
"""Metres, of the metric ``detection_cvpr_2019``."""
FAR = {**dict.fromkeys(RANGES, 25.0), "traffic_cone": 15.0, "barrier": 15.0}
"""Metres from which on an object counts as far."""


@dataclass(frozen=True)
class Difficulty:
    """
    Attributes:
        key_frames: number of them; objects: scored objects per key frame.
        far, occluded: shares of the scored objects that are far, and of which less than 80 % is visible.
        sectors: share of the scored objects in front, left, behind and right of the ego (90 degrees each).
        classes: scored objects per key frame.
    """

    key_frames: int
    objects: float
    far: float
    occluded: float
    sectors: tuple[float, float, float, float]
    classes: dict[str, float]

    def __str__(self) -> str:
        per_class = ", ".join(f"{name} {count:.2f}" for name, count in self.classes.items())
        sides = ", ".join(f"{share:.0%}" for share in self.sectors)
        return (
            f"{self.key_frames} key frames, {self.objects:.1f} scored objects each, {self.far:.0%} far, "
            f"{self.occluded:.0%} partly hidden; front, left, back, right: {sides}; {per_class}"
        )


def measure(parts: Iterable[Path]) -> Difficulty:
    """Count over the parts of finished scenes."""
    categories = {token("category", category): name for name, category in CATEGORIES.items()}
    frames = far = occluded = 0
    classes: Counter[str] = Counter()
    sectors = np.zeros(4, int)
    for part in parts:
        rows = json.loads(Path(part).read_text(encoding="utf-8"))
        poses = {row["token"]: row for row in rows["ego_pose"]}
        ego = {
            row["sample_token"]: poses[row["ego_pose_token"]]
            for row in rows["sample_data"]
            if row["filename"].startswith(f"samples/{LIDAR}/")
        }
        frames += len(rows["sample"])
        category_of = {row["token"]: categories[row["category_token"]] for row in rows["instance"]}
        for row in rows["sample_annotation"]:
            name = category_of[row["instance_token"]]
            pose = ego[row["sample_token"]]
            x, y = np.array(row["translation"][:2]) - pose["translation"][:2]
            distance = float(np.hypot(x, y))
            if distance >= RANGES[name] or not row["num_lidar_pts"]:
                continue
            classes[name] += 1
            far += distance > FAR[name]
            occluded += row["visibility_token"] != "4"
            heading = 2 * np.arctan2(pose["rotation"][3], pose["rotation"][0])
            sectors[int(np.floor((np.arctan2(y, x) - heading) / (np.pi / 2) + 0.5)) % 4] += 1
    total = sum(classes.values())
    share = 1 / max(total, 1)
    return Difficulty(
        frames,
        total / max(frames, 1),
        far * share,
        occluded * share,
        tuple((sectors * share).tolist()),  # type: ignore[arg-type]
        {name: classes[name] / max(frames, 1) for name in RANGES},
    )
