# SPDX-License-Identifier: Apache-2.0
"""Head maps to boxes: score, select, decode, and suppress duplicates per task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bevnext_core.config import ModelConfig, TaskConfig
from bevnext_core.ops.nms.operator import fast_rotated_nms
from bevnext_core.ops.nms.plain import circle_nms

PRE_NMS_LIMIT = 1000


@dataclass
class BoxSet:
    """Boxes ``[M, 9]`` float32 (geometric centre, see :mod:`bevnext_core.boxes`), scores ``[M]``, labels ``[M]``."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def decode(tasks: list[dict[str, Tensor]], config: ModelConfig) -> list[list[BoxSet]]:
    """Candidates of every sample and task, best first, before suppression; labels count within the task.

    The best ``max_candidates`` cells per class, of these the best over all classes (no peak search), above
    the score threshold and with the centre in range. Cells whose values are not finite are left out.
    All of it is computed where the maps are; one tensor comes to the host.
    """
    packed = torch.stack([_candidates(maps, config) for maps in tasks]).cpu().numpy()
    return [[_unpacked(task[sample]) for task in packed] for sample in range(packed.shape[1])]


def _candidates(maps: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """One task's best cells, whatever their score: ``[B, K, 12]`` float32, box, score, label, and 1 to be kept."""
    head, bev = config.head, config.bev
    scores = maps["heatmap"].float().sigmoid().nan_to_num(0.0)
    rows, columns = scores.shape[-2:]
    count = min(head.max_candidates, rows * columns)
    best, cells = scores.flatten(2).topk(count)
    best, order = best.flatten(1).topk(count)
    labels = order // count
    cells = cells.flatten(1).gather(1, order)

    def take(name: str) -> Tensor:
        flat = maps[name].float().flatten(2).transpose(1, 2)
        return flat.gather(1, cells.unsqueeze(-1).expand(-1, -1, flat.shape[-1]))

    rotation = take("rot")
    place = torch.stack([cells % columns, cells // columns], -1).float() + take("reg")
    center, yaw = place * bev.cell - bev.extent, torch.atan2(rotation[..., :1], rotation[..., 1:])
    boxes = torch.cat([center, take("height"), take("dim").exp(), yaw, take("vel")], -1)
    in_range = (boxes[..., :2].abs() <= head.center_range).all(-1) & (boxes[..., 2].abs() <= head.center_range_z)
    keep = (best > head.score_threshold) & in_range & boxes.isfinite().all(-1)
    return torch.cat([boxes, torch.stack([best, labels.float(), keep.float()], -1)], -1)


def _unpacked(candidates: np.ndarray) -> BoxSet:
    """``[K, 12]`` of :func:`_candidates` -> those to be kept."""
    kept = candidates[candidates[:, 11] > 0]
    return BoxSet(kept[:, :9].copy(), kept[:, 9].copy(), kept[:, 10].astype(np.int64))


def suppress(candidates: BoxSet, task: TaskConfig, limit: int) -> np.ndarray:
    """Indices of ``candidates`` (best first) that survive the task's non-maximum suppression.

    On the host: it is greedy, so a GPU would do it box after box, or compute the overlap of all pairs; and in
    float64 with one library's sine it keeps the same boxes whatever the device is. What comes here is few.
    """
    boxes = candidates.boxes[:PRE_NMS_LIMIT]
    if task.nms == "circle":
        return circle_nms(boxes[:, :2], task.threshold, limit)
    rectangles = boxes[:, [0, 1, 3, 4, 6]].copy()
    if task.scales:
        scale = np.asarray(task.scales, np.float32)[candidates.labels[:PRE_NMS_LIMIT]]
        rectangles[:, 2:4] *= scale[:, None]
    return fast_rotated_nms(rectangles, task.threshold, limit)


def boxes_from_maps(tasks: list[dict[str, Tensor]], config: ModelConfig) -> list[BoxSet]:
    """Final boxes of every sample, task by task (not sorted over tasks), with labels into ``config.class_names``."""
    results = []
    for sample in decode(tasks, config):
        kept, first_label = [], 0
        for found, task in zip(sample, config.tasks, strict=True):
            index = suppress(found, task, config.head.max_per_task)
            kept.append((found.boxes[index], found.scores[index], found.labels[index] + first_label))
            first_label += len(task.classes)
        results.append(BoxSet(*map(np.concatenate, zip(*kept, strict=True))))
    return results
