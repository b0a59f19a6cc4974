# SPDX-License-Identifier: Apache-2.0
"""Decoding without waiting for the device, and suppression in C++: the same boxes as by the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevnext_core.ops.nms import operator as rotated_nms_op
from bevnext_core.ops.nms.plain import rotated_nms
from bevnext_core.streaming import decode as decode_module
from bevnext_core.streaming.decode import boxes_from_maps, decode
from tests import recipe
from tests.published import config_of


def test_no_value_is_needed_on_the_host_before_the_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values: whatever asked for one would fail. All tasks then come in one tensor."""
    config = config_of("full1")
    maps = [{k: torch.from_numpy(v) for k, v in task.items()} for task in recipe.head_maps("A")]
    copies: list[torch.Size] = []
    copy = torch.Tensor.cpu

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(tensor.shape)
        return copy(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    candidates = decode(maps, config)
    assert copies == [torch.Size([6, 2, config.head.max_candidates, 12])]
    assert [len(sample) for sample in candidates] == [6, 6]
    packed = decode_module._candidates({k: v.to("meta") for k, v in maps[0].items()}, config)
    assert packed.shape == copies[0][1:] and packed.dtype == torch.float32


def crowd(count: int, extent: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    boxes = np.empty((count, 5))
    boxes[:, :2] = rng.uniform(-extent, extent, (count, 2)).astype(np.float32)
    boxes[:, 2:4] = rng.uniform(0.3, 9, (count, 2)).astype(np.float32)
    boxes[:, 4] = rng.uniform(-4, 4, count).astype(np.float32)
    boxes[1::7] = boxes[::7][: len(boxes[1::7])]  # some lie exactly on each other
    return boxes


@pytest.mark.parametrize("extent", [3, 15, 60])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 300])
def test_the_compiled_form_keeps_what_the_definition_keeps(count: int, extent: float) -> None:
    assert rotated_nms_op.FORMS.on("cpu") == "c++"
    boxes = crowd(count, extent, seed=count)
    for threshold, limit in ((0.2, 500), (0.0, 500), (0.5, 40), (0.2, 0)):
        expected = rotated_nms(boxes, threshold, limit)
        found = rotated_nms_op.fast_rotated_nms(boxes, threshold, limit)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_many_crowds_of_large_boxes() -> None:
    """Where nearly every pair overlaps, as with random weights."""
    for seed in range(30):
        boxes = crowd(150, 20, seed)
        boxes[:, 2:4] *= 3
        expected = rotated_nms(boxes, 0.2, 500)
        np.testing.assert_array_equal(rotated_nms_op.fast_rotated_nms(boxes, 0.2, 500), expected)


def test_the_reference_boxes_are_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("full1")
    maps = [{k: torch.from_numpy(v) for k, v in task.items()} for task in recipe.head_maps("A")]
    ours = boxes_from_maps(maps, config)
    monkeypatch.setattr(decode_module, "fast_rotated_nms", rotated_nms)
    for one, other in zip(ours, boxes_from_maps(maps, config), strict=True):
        assert len(one.scores) > 100
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
