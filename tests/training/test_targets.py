# SPDX-License-Identifier: Apache-2.0
"""Heat maps and box values against the published code, and the rules that the reference does not reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bevnext_core.config import ModelConfig, load_config
from tests import recipe
from tests.paths import ROOT
from training.losses.targets import DetectionTargets, detection_targets, gaussian_radius

CONFIG = ModelConfig()


def reference_targets() -> DetectionTargets:
    truth = [recipe.make_gt("A", 40), recipe.make_gt("A2", 25)]
    return detection_targets(
        [torch.from_numpy(boxes) for boxes, _ in truth], [torch.from_numpy(labels) for _, labels in truth], CONFIG
    )


def one_box(**fields: float) -> torch.Tensor:
    values = {"x": 0.0, "y": 0.0, "z": 0.0, "l": 4.0, "w": 2.0, "h": 1.5, "yaw": 0.0, "vx": 0.0, "vy": 0.0} | fields
    return torch.tensor([list(values.values())])


def test_heatmaps_equal_the_published_ones(mod_targets: dict[str, np.ndarray]) -> None:
    heatmaps = reference_targets().heatmaps.numpy()
    first = 0
    for t, task in enumerate(CONFIG.tasks):
        expected = np.zeros((2, len(task.classes), 128, 128), np.float32)
        expected[tuple(mod_targets[f"tgt.task{t}.heat_idx"].T.astype(int))] = mod_targets[f"tgt.task{t}.heat_val"]
        drawn = heatmaps[:, first : first + len(task.classes)]
        first += len(task.classes)
        np.testing.assert_array_equal(drawn > 0, expected > 0, err_msg=f"task {t}")
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6, err_msg=f"task {t}")
        np.testing.assert_array_equal(drawn == 1, expected == 1, err_msg=f"task {t}: peaks")


def test_box_values_equal_the_published_ones(mod_targets: dict[str, np.ndarray]) -> None:
    targets = reference_targets()
    for t in range(6):
        for b in range(2):
            mask = mod_targets[f"tgt.task{t}.mask"][b].astype(bool)
            mine = (targets.task == t) & (targets.sample == b)
            np.testing.assert_array_equal(targets.cell[mine].numpy(), mod_targets[f"tgt.task{t}.ind"][b][mask])
            expected = mod_targets[f"tgt.task{t}.anno"][b][mask]
            np.testing.assert_allclose(targets.values[mine].numpy(), expected, rtol=1e-6, atol=4e-6)


def test_a_center_just_outside_the_lower_border_counts_with_a_negative_offset() -> None:
    targets = detection_targets([one_box(x=-51.6, y=51.1)], [torch.tensor([0])], CONFIG)
    assert targets.cell.tolist() == [127 * 128]
    assert targets.values[0, 0].item() == pytest.approx(-0.5, abs=1e-4)
    assert len(detection_targets([one_box(x=-52.1)], [torch.tensor([0])], CONFIG).cell) == 0
    assert len(detection_targets([one_box(y=51.2)], [torch.tensor([0])], CONFIG).cell) == 0


def test_overlapping_gaussians_keep_the_larger_value() -> None:
    near, far = one_box(x=10.4, y=10.4), one_box(x=12.0, y=10.4)
    both = detection_targets([torch.cat([near, far])], [torch.tensor([8, 8])], CONFIG).heatmaps
    alone = [detection_targets([box], [torch.tensor([8])], CONFIG).heatmaps for box in (near, far)]
    assert torch.equal(both, torch.maximum(*alone))
    assert int((both == 1).sum()) == 2


def test_a_task_takes_at_most_500_objects_in_the_order_of_its_classes() -> None:
    rng = np.random.default_rng(0)
    boxes = one_box().repeat(620, 1)
    boxes[:, :2] = torch.from_numpy(rng.uniform(-50, 50, (620, 2)).astype(np.float32))
    labels = torch.tensor([9] * 300 + [8] * 300 + [0] * 20)
    targets = detection_targets([boxes], [labels], CONFIG)
    assert torch.bincount(targets.task).tolist() == [20, 0, 0, 0, 0, 500]
    assert int((targets.heatmaps[0, 8] == 1).sum()) > int((targets.heatmaps[0, 9] == 1).sum())


def test_objects_of_the_same_cell_both_count() -> None:
    targets = detection_targets([one_box().repeat(2, 1)], [torch.tensor([0, 0])], CONFIG)
    assert len(targets.cell) == 2 and int((targets.heatmaps == 1).sum()) == 1


def test_samples_without_objects() -> None:
    nothing = torch.zeros(0, 9), torch.zeros(0, dtype=torch.long)
    targets = detection_targets([nothing[0], nothing[0]], [nothing[1], nothing[1]], CONFIG)
    assert targets.heatmaps.shape == (2, 10, 128, 128) and float(targets.heatmaps.sum()) == 0
    assert targets.values.shape == (0, 10)


def test_the_radius_is_symmetric_and_at_least_two_cells() -> None:
    lengths, widths = torch.tensor([14.0, 1.0, 40.0]), torch.tensor([3.5, 0.7, 6.0])
    torch.testing.assert_close(gaussian_radius(lengths, widths), gaussian_radius(widths, lengths))
    tiny = detection_targets([one_box(l=0.4, w=0.4)], [torch.tensor([9])], CONFIG).heatmaps
    assert int((tiny > 0).sum()) == 25


def test_the_grid_follows_the_configuration() -> None:
    small = load_config(Path(ROOT / "config/model/small_stage1.yaml"))
    targets = detection_targets([one_box(x=51.0, y=-51.0)], [torch.tensor([0])], small)
    assert targets.heatmaps.shape == (1, 10, 64, 64) and targets.cell.tolist() == [63]


def test_a_class_that_is_not_in_the_table_and_a_nan_velocity_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be 0 to 9"):
        detection_targets([one_box()], [torch.tensor([10])], CONFIG)
    with pytest.raises(ValueError, match="NaN"):
        detection_targets([one_box(vx=float("nan"))], [torch.tensor([0])], CONFIG)
