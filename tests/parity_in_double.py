# SPDX-License-Identifier: Apache-2.0
"""How far the reference's own rounding moves its final boxes: the same weights, run in double precision.

    python -m tests.parity_in_double [small1|small2|full1|full2]

Geometry stays in float32, so that every frustum point falls into the same cell; all else is float64. Prints
the boxes that differ most from the reference, in the box's fields. ``full2`` takes minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from bevnext_core.boxes import BOX_FIELDS
from bevnext_core.streaming.decode import boxes_from_maps
from tests.paths import REFERENCE
from tests.published import CONFIGS, build, from_bottom_center, geometry_from, load_reference, window_inputs


class StayDouble(TorchFunctionMode):
    """``tensor.float()`` gives float64 wherever the network asks for float32 to be safe."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.Tensor.float and args[0].is_floating_point():
            return args[0].double()
        return func(*args, **(kwargs or {}))


def main(variant: str) -> None:
    arrays, _ = load_reference(REFERENCE / "goldens", f"{variant[:-1]}_stage{variant[-1]}")
    model = build(variant).double()
    model.view_transform.float()
    images, colors = window_inputs(model.config)
    geometry = geometry_from(arrays, model.config.history.frames + 1)
    plan, branches = model.view_transform.plan, model.depth_net.branches

    def plan_in_single(*arguments: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return plan(*arguments)

    model.view_transform.plan = plan_in_single  # type: ignore[method-assign]
    model.depth_net.branches = lambda reduced, parameters: branches(reduced, parameters.double())  # type: ignore[method-assign]
    with torch.no_grad(), StayDouble():
        maps = model(images.double(), colors.double(), geometry)
    tasks = [{name: value.float() for name, value in task.items()} for task in maps.tasks]
    found = boxes_from_maps(tasks, model.config)[0]
    stored, labels = from_bottom_center(arrays["final.boxes"]), arrays["final.labels"]
    rows = []
    for box, label, score in zip(stored, labels, arrays["final.scores"], strict=True):
        same = found.boxes[found.labels == label]
        if len(same):
            difference = np.abs(same - box)
            nearest = difference[difference.max(1).argmin()]
            rows.append((float(nearest.max()), BOX_FIELDS[int(nearest.argmax())], int(label), float(score)))
    print(f"{variant}: {len(found.scores)} boxes in double precision, {len(stored)} in the reference")
    for distance, name, label, score in sorted(rows, reverse=True)[:8]:
        print(f"  label {label} score {score:.4f}: {name} differs by {distance:.5f}")


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "small2"
    if chosen not in CONFIGS:
        sys.exit(f"unknown variant '{chosen}': one of {', '.join(CONFIGS)}")
    main(chosen)
