# SPDX-License-Identifier: Apache-2.0
"""Detection targets: a Gaussian heat map per class and, for each object, the values of its cell.

The published CenterPoint targets, quirks included: the radius formula lacks a factor, cell indices
truncate toward zero (a centre up to one cell outside the lower border counts as inside, with a
negative offset), and a task takes at most 500 objects, in the order of its classes. Vectorised over
all objects of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bevnext_core.config import ModelConfig

MIN_OVERLAP = 0.1
MIN_RADIUS = 2
MAX_OBJECTS = 500
"""Objects of one sample that a task takes."""


@dataclass(frozen=True)
class DetectionTargets:
    """Targets of a batch of B samples; M objects that lie in the grid, of all tasks together.

    Attributes:
        heatmaps: ``[B, classes, Y, X]`` float32 in [0, 1], exactly 1 at the cells of objects.
        sample, task, cell: ``[M]`` int64; ``cell`` is row * X + column.
        values: ``[M, 10]`` float32: offset in the cell (column, row), height of the geometric centre in
            metres, log of length, width and height, sine and cosine of yaw, velocity (vx, vy) in m/s.
    """

    heatmaps: torch.Tensor
    sample: torch.Tensor
    task: torch.Tensor
    cell: torch.Tensor
    values: torch.Tensor


def gaussian_radius(length: torch.Tensor, width: torch.Tensor, min_overlap: float = MIN_OVERLAP) -> torch.Tensor:
    """Published radius (in cells, not yet truncated) for objects of ``length`` x ``width`` cells. ``[M]``.

    CenterNet's three cases; the roots of the second and third are divided by 2 where the solution of the
    quadratic would divide by 2a, as published. Symmetric in its arguments.
    """
    total, area = length + width, length * width
    c1 = area * (1 - min_overlap) / (1 + min_overlap)
    r1 = (total + torch.sqrt(total**2 - 4 * c1)) / 2
    b2 = 2 * total
    r2 = (b2 + torch.sqrt(b2**2 - 16 * (1 - min_overlap) * area)) / 2
    b3 = -2 * min_overlap * total
    r3 = (b3 + torch.sqrt(b3**2 - 16 * min_overlap * (min_overlap - 1) * area)) / 2
    return torch.minimum(torch.minimum(r1, r2), r3)


def detection_targets(
    boxes: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], config: ModelConfig
) -> DetectionTargets:
    """Targets of B samples.

    Args:
        boxes: B tensors ``[n, 9]``, layout of :mod:`bevnext_core.boxes`, in the (augmented) ego frame.
        labels: B tensors ``[n]`` int64, index into ``config.class_names``.

    Raises:
        ValueError: a label that is no class of the configuration, or a non-finite box.
    """
    device = boxes[0].device
    size, cell = config.bev.size, config.bev.cell
    heatmaps = torch.zeros(len(boxes), len(config.class_names), size, size, device=device)
    task_of_class = torch.tensor([t for t, task in enumerate(config.tasks) for _ in task.classes], device=device)

    counts = torch.tensor([len(b) for b in boxes], device=device)
    sample = torch.repeat_interleave(torch.arange(len(boxes), device=device), counts)
    box = torch.cat([b.reshape(-1, 9).float() for b in boxes])
    label = torch.cat([x.reshape(-1).long() for x in labels])
    if len(label) and not (int(label.min()) >= 0 and int(label.max()) < len(config.class_names)):
        raise ValueError(f"labels must be 0 to {len(config.class_names) - 1}, got {sorted(set(label.tolist()))}")
    if not torch.isfinite(box).all():
        bad = (~torch.isfinite(box).all(1)).nonzero().flatten().tolist()
        raise ValueError(f"boxes {bad[:5]} of the batch hold NaN or infinity")

    # The order inside a task is that of its classes; beyond 500 objects of a task the rest is left out.
    order = torch.argsort(sample * len(config.class_names) + label, stable=True)
    box, label, sample = box[order], label[order], sample[order]
    task = task_of_class[label]
    group = sample * len(config.tasks) + task
    rank = torch.arange(len(group), device=device) - torch.searchsorted(group, group)

    center = (box[:, :2] + config.bev.extent) / cell
    index = center.to(torch.int32).long()  # toward zero
    inside = ((index >= 0) & (index < size)).all(1)
    keep = inside & (box[:, 3] > 0) & (box[:, 4] > 0) & (rank < MAX_OBJECTS)
    box, label, sample, task = box[keep], label[keep], sample[keep], task[keep]
    center, index = center[keep], index[keep]

    _draw_gaussians(heatmaps, sample, label, index, gaussian_radius(box[:, 3] / cell, box[:, 4] / cell))
    yaw = box[:, 6:7]
    values = torch.cat([center - index, box[:, 2:3], box[:, 3:6].log(), yaw.sin(), yaw.cos(), box[:, 7:9]], 1)
    return DetectionTargets(heatmaps, sample, task, index[:, 1] * size + index[:, 0], values)


def _draw_gaussians(
    heatmaps: torch.Tensor, sample: torch.Tensor, label: torch.Tensor, index: torch.Tensor, radius: torch.Tensor
) -> None:
    """Write the maximum of the objects' Gaussians into ``heatmaps`` ``[B, classes, Y, X]``, in place.

    ``index`` ``[M, 2]`` is (column, row); sigma is a sixth of the window's side 2 * radius + 1.
    """
    if not len(label):
        return
    classes, rows, columns = heatmaps.shape[1:]
    radius = torch.clamp(radius.to(torch.int64), min=MIN_RADIUS)
    reach = torch.arange(-int(radius.max()), int(radius.max()) + 1, device=radius.device)
    x, y = index[:, 0, None] + reach, index[:, 1, None] + reach
    sigma = (2 * radius.double() + 1) / 6
    square = (reach**2)[None, :, None] + (reach**2)[None, None, :]
    value = torch.exp(-square / (2 * sigma**2)[:, None, None])
    value[value < torch.finfo(torch.float64).eps] = 0  # the peak is 1
    in_x = (x >= 0) & (x < columns) & (reach.abs() <= radius[:, None])
    in_y = (y >= 0) & (y < rows) & (reach.abs() <= radius[:, None])
    drawn = in_y[:, :, None] & in_x[:, None, :]
    place = ((sample * classes + label)[:, None, None] * rows + y[:, :, None]) * columns + x[:, None, :]
    heatmaps.view(-1).scatter_reduce_(0, place[drawn], value.float()[drawn], "amax")
