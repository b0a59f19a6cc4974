# SPDX-License-Identifier: Apache-2.0
"""The folded copy of the network: the reference's tensors and boxes, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevnext_core.network.backbone import Bottleneck
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.inference import FusedConv, for_inference, has_packed_convolutions
from bevnext_core.network.layers import ResidualBlock, conv_bn_relu
from bevnext_core.streaming.decode import boxes_from_maps
from tests.core.test_end_to_end import compare_boxes, errors, limit_of
from tests.paths import BUNDLED
from tests.published import Trace, build, geometry_from, load_reference, window_inputs


@pytest.fixture(scope="module")
def small2() -> BEVNeXt:
    return build("small2")


def trained(module: nn.Module) -> nn.Module:
    """The module with norms that change something."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            for values in (norm.running_mean, norm.bias):
                nn.init.normal_(values)
            for values in (norm.running_var, norm.weight):
                nn.init.uniform_(values, 0.3, 2)
    return module.eval()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("variant", ["small1", "small2"])
def test_reference(variant: str, packed: bool) -> None:
    """Every stored tensor within the limits that hold for the network itself, and the same boxes."""
    if packed and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    assert not packed or has_packed_convolutions()
    arrays, description = load_reference(BUNDLED, f"small_stage{variant[-1]}")
    model = for_inference(build(variant), packed)
    images, colors = window_inputs(model.config)
    trace = Trace(model)
    maps = trace.run(images, colors, geometry_from(arrays, model.config.history.frames + 1))
    found = errors(trace.tensors, arrays, description)
    assert len(found) > 55
    assert not {name: value for name, value in found.items() if value > limit_of(name)}
    compare_boxes(
        boxes_from_maps(maps.tasks, model.config)[0], {**arrays, "nms": description["nms"]}, maps.tasks
    )
    fused = [module for module in model.modules() if isinstance(module, FusedConv)]
    assert packed == any(module.weight.is_mkldnn for module in fused)


@pytest.mark.parametrize("packed", [False, True])
def test_parts(packed: bool) -> None:
    """Norms, activations and sums, with biases, strides, dilations and groups, and inputs of any layout."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
            self.chain = nn.Sequential(*conv_bn_relu(8, 12, 3, dilation=2), nn.Conv2d(12, 8, 1), nn.ReLU())
            self.norm_only = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))
            self.block = ResidualBlock(8, 8)
            self.projected = ResidualBlock(8, 16, stride=2, project=True)
            shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
            self.bottleneck = Bottleneck(16, 8, 2, shortcut)
            self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(32, 4, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm_only(self.chain(self.plain(x))) - 0.5
            x = self.bottleneck(self.projected(self.block(x)))
            return torch.cat([x.flatten(1), self.mean(x).flatten(1)], 1)

    packed = packed and has_packed_convolutions()
    module = trained(Parts())
    fused = for_inference(module, packed)  # type: ignore[arg-type]
    kinds = (nn.BatchNorm2d, nn.Conv2d, ResidualBlock, Bottleneck)
    assert not any(isinstance(part, kinds) for part in fused.modules())
    x = torch.randn(3, 6, 21, 30)
    with torch.inference_mode():
        expected = module(x)
        for given in (x, x.contiguous(memory_format=torch.channels_last), x.expand(3, 6, 21, 30)[..., :]):
            for _ in range(2):
                torch.testing.assert_close(fused(given), expected, rtol=1e-4, atol=1e-4)
        # Another size than the one that the weights were laid out for.
        wider = torch.randn(1, 6, 40, 34)
        torch.testing.assert_close(fused(wider), module(wider), rtol=1e-4, atol=1e-4)


def test_the_network_itself_is_left_alone(small2: BEVNeXt) -> None:
    before = {name: value.clone() for name, value in small2.state_dict().items()}
    small2.train()
    calls: list[int] = []
    fused = for_inference(small2)
    fused.register_forward_hook(lambda *_: calls.append(1))
    fused.neck.register_forward_hook(lambda *_: calls.append(2))
    assert small2.training and not fused.training
    assert not small2.neck._forward_hooks and not small2._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in small2.state_dict().items())
    # Nothing that is not a convolution is there twice.
    assert fused.refinement.cell_embedding.weight is small2.refinement.cell_embedding.weight
    assert fused.view_transform.frustum is small2.view_transform.frustum
    # Training it further does not reach the copy; a 1x1 convolution's weights lie alike in every layout.
    for conv, copied in (
        (small2.neck.output, fused.neck.output),
        (small2.neck.lateral[0], fused.neck.lateral[0]),
    ):
        first = [copied.weight.clone(), copied.bias.clone()]
        with torch.no_grad():
            conv.weight.zero_()
            conv.bias.zero_()
        assert torch.equal(copied.weight, first[0]) and torch.equal(copied.bias, first[1])
    small2.load_state_dict(before)
    small2.eval()
