"""Head maps to boxes: score, select, decode, and suppress duplicates per task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bevnext_core.config import ModelConfig, TaskConfig
from bevnext_core.ops.rotated_nms import circle_nms, rotated_nms

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
    """
    head, bev = config.head, config.bev
    candidates: list[list[BoxSet]] = []
    for maps in tasks:
        scores = maps["heatmap"].float().sigmoid().nan_to_num(0.0)
        rows, columns = scores.shape[-2:]
        count = min(head.max_candidates, rows * columns)
        best, cells = scores.flatten(2).topk(count)
        best, order = best.flatten(1).topk(count)
        labels = order // count
        cells = cells.flatten(1).gather(1, order)

        def take(name: str, maps: dict[str, Tensor] = maps, cells: Tensor = cells) -> Tensor:
            flat = maps[name].float().flatten(2).transpose(1, 2)
            return flat.gather(1, cells.unsqueeze(-1).expand(-1, -1, flat.shape[-1]))

        offset, rotation = take("reg"), take("rot")
        boxes = torch.cat(
            [
                ((cells % columns).float() + offset[..., 0]).unsqueeze(-1) * bev.cell - bev.extent,
                ((cells // columns).float() + offset[..., 1]).unsqueeze(-1) * bev.cell - bev.extent,
                take("height"),
                take("dim").exp(),
                torch.atan2(rotation[..., :1], rotation[..., 1:]),
                take("vel"),
            ],
            -1,
        )
        limit = torch.tensor([head.center_range, head.center_range, head.center_range_z], device=boxes.device)
        keep = (
            (best > head.score_threshold) & (boxes[..., :3].abs() <= limit).all(-1) & boxes.isfinite().all(-1)
        )
        packed = torch.cat([boxes, best.unsqueeze(-1), labels.unsqueeze(-1).float()], -1).cpu().numpy()
        mask = keep.cpu().numpy()
        candidates.append(
            [
                BoxSet(p[m, :9].astype(np.float32), p[m, 9].astype(np.float32), p[m, 10].astype(np.int64))
                for p, m in zip(packed, mask, strict=True)
            ]
        )
    return [list(sample) for sample in zip(*candidates, strict=True)]


def suppress(candidates: BoxSet, task: TaskConfig, limit: int) -> np.ndarray:
    """Indices of ``candidates`` (best first) that survive the task's non-maximum suppression."""
    boxes = candidates.boxes[:PRE_NMS_LIMIT]
    if task.nms == "circle":
        return circle_nms(boxes[:, :2], task.threshold, limit)
    rectangles = boxes[:, [0, 1, 3, 4, 6]].copy()
    if task.scales:
        scale = np.asarray(task.scales, np.float32)[candidates.labels[:PRE_NMS_LIMIT]]
        rectangles[:, 2:4] *= scale[:, None]
    return rotated_nms(rectangles, task.threshold, limit)


def boxes_from_maps(tasks: list[dict[str, Tensor]], config: ModelConfig) -> list[BoxSet]:
    """Final boxes of every sample, task by task (not sorted over tasks), with labels into ``config.class_names``."""
    results = []
    for sample in decode(tasks, config):
        kept = []
        first_label = 0
        for candidates, task in zip(sample, config.tasks, strict=True):
            index = suppress(candidates, task, config.head.max_per_task)
            kept.append(
                BoxSet(
                    candidates.boxes[index], candidates.scores[index], candidates.labels[index] + first_label
                )
            )
            first_label += len(task.classes)
        results.append(
            BoxSet(
                np.concatenate([k.boxes for k in kept]),
                np.concatenate([k.scores for k in kept]),
                np.concatenate([k.labels for k in kept]),
            )
        )
    return results
