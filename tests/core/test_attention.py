# SPDX-License-Identifier: Apache-2.0
"""Attention from BEV cells into the cameras: equal to its definition, with shapes and waits as stated."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bevnext_core.network import perspective_refinement
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.perspective_refinement import CameraCrossAttention
from bevnext_tools.export.noise_drive import network_inputs
from tests.published import config_of

CONFIG = config_of("small2")
SAMPLES = 2
"""A second sample, so that a pair's sample and camera cannot be confused."""


@pytest.fixture(scope="module")
def attention() -> CameraCrossAttention:
    torch.manual_seed(1)
    module = CameraCrossAttention(CONFIG.channels, CONFIG.image, CONFIG.bev, CONFIG.refinement)
    module.deformable.reset_parameters()
    # Far enough that samples leave the image on every side.
    torch.nn.init.normal_(module.deformable.offsets.weight, std=0.5)
    torch.nn.init.normal_(module.deformable.offsets.bias, std=2)
    torch.nn.init.normal_(module.deformable.weights.weight, std=0.3)
    return module


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor, CameraGeometry]:
    torch.manual_seed(2)
    _, _, geometry = network_inputs(CONFIG, rigs=SAMPLES)
    geometry.valid[1, 0, 3] = False
    cells, channels = CONFIG.bev.size**2, CONFIG.channels
    features = torch.randn(SAMPLES, len(CONFIG.cameras), channels, *CONFIG.image.feature_size)
    return torch.randn(SAMPLES, cells, channels), torch.randn(cells, channels), features, geometry


def definition(
    module: CameraCrossAttention, query: Tensor, position: Tensor, features: Tensor, geometry: CameraGeometry
) -> Tensor:
    """Camera by camera: the mean over those that see the cell of the weighted samples of each head."""
    pixels, seen = module.project(geometry)
    part = module.deformable
    values = part.value_projection(features.permute(0, 1, 3, 4, 2)).unflatten(-1, (part.heads, -1))
    offsets, weights = part.sampling(query + position)
    size = torch.tensor([features.shape[4], features.shape[3]])
    samples = []
    for b in range(len(query)):
        total = torch.zeros_like(query[b])
        for camera in range(features.shape[1]):
            grid = 2 * (pixels[b, camera][:, None] + offsets[b] / size) - 1
            value = values[b, camera].permute(2, 3, 0, 1)
            sampled = F.grid_sample(value, grid.transpose(0, 1), align_corners=False)
            mixed = (sampled * weights[b].transpose(0, 1)[:, None]).sum(-1).flatten(0, 1).t()
            total = total + torch.where(seen[b, camera, :, None], mixed, 0)
        samples.append(total / seen[b].sum(0).clamp(min=1)[:, None])
    return module.output(torch.stack(samples)) + query


@pytest.mark.parametrize("form", ["pairs", "few pairs at a time", "dense"])
def test_it_is_what_the_definition_says(
    attention: CameraCrossAttention, inputs: Any, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients. Of the offsets' gradients few may differ: they jump where a sample meets a border."""
    query, position, features, geometry = inputs
    query, features = query.clone().requires_grad_(), features.clone().requires_grad_()
    monkeypatch.setattr(attention, "dense", form == "dense")
    if form == "few pairs at a time":
        monkeypatch.setattr(perspective_refinement, "PAIRS_AT_A_TIME", 1000)
    ours, expected = (
        function(query, position, features, geometry)
        for function in (attention, lambda *values: definition(attention, *values))
    )
    seen = attention.project(geometry)[1]
    assert not seen[1, 3].any() and seen[0, 3].any() and (seen.sum(1) == 0).any() and (seen.sum(1) > 1).any()
    assert relative(ours, expected) <= 5e-6
    factor = torch.randn_like(ours)
    learned = [query, features, *attention.deformable.parameters()]
    found, wanted = (torch.autograd.grad((out * factor).sum(), learned) for out in (ours, expected))
    for one, other in zip(found, wanted, strict=True):
        assert relative(one, other) <= 1e-3


def test_without_any_camera_a_cell_keeps_its_query(attention: CameraCrossAttention, inputs: Any) -> None:
    query, position, features, geometry = inputs
    blind = CameraGeometry(**{**vars(geometry), "valid": torch.zeros_like(geometry.valid)})
    with torch.no_grad():
        found = attention(query, position, features, blind)
    torch.testing.assert_close(found, query + attention.output.bias)


def relative(one: Tensor, other: Tensor) -> float:
    return float(((one - other).norm() / other.norm()).detach())


class Calls(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_a_gpu_is_waited_for_once_or_not_at_all(
    attention: CameraCrossAttention, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``nonzero`` has to know a number on the host; the dense form, which CUDA graphs record, must not."""
    with torch.no_grad(), Calls() as pairs:
        attention(*inputs)
    monkeypatch.setattr(attention, "dense", True)
    with torch.no_grad(), Calls() as dense:
        attention(*inputs)
    assert pairs.names["nonzero"] == 1 and dense.names["nonzero"] == 0
    for name in ("_local_scalar_dense", "_linalg_check_errors", "lift_fresh", "equal"):
        assert pairs.names[name] == dense.names[name] == 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_projection(
    attention: CameraCrossAttention, inputs: Any, dtype: torch.dtype
) -> None:
    """In half precision anchors would lie a fifth of a percent of the image off: pixels."""
    geometry = inputs[3]
    expected = attention.project(geometry)
    with torch.autocast("cpu", dtype=dtype):
        found = attention.project(geometry)
    assert all(map(torch.equal, found, expected))
