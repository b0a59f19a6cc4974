# SPDX-License-Identifier: Apache-2.0
"""The network as it runs when nothing is trained: batch norms folded, activations and sums done by the convolutions.

:func:`for_inference` gives such a copy. It computes the same up to rounding. On the CPU in float32 the
convolutions are oneDNN's, with weights laid out once (on the first call) as the processor likes them.
"""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bevnext_core.network.backbone import Bottleneck, ResNet50
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.layers import ResidualBlock
from bevnext_core.precision import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str | torch.device, precision: str) -> torch.autocast:
    """The context in which a network runs with convolutions of :data:`Precision` ``precision``."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=DTYPES[precision], enabled=precision != "fp32")


def for_inference(model: BEVNeXt, packed: bool | None = None, precision: Precision = "fp32") -> BEVNeXt:
    """A copy of ``model``, in evaluation mode, that shares what it does not change (not the convolutions' weights).

    It takes no gradients, and later changes of the model's weights do not reach it.

    Args:
        packed: oneDNN's convolutions; need float32. Default: on the CPU where PyTorch has them.
        precision: half precision rounds the weights of convolutions and linear layers once, where :func:`autocast`,
            under which such a copy has to run, would do so at every call; the results are the same, bit for bit.
    """
    weight = next(model.parameters())
    if packed is None:
        packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and precision == "fp32"
    dtype = None if precision == "fp32" else DTYPES[precision]
    with torch.no_grad():
        return _converted(model, packed and has_packed_convolutions(), dtype).eval()


class FusedConv(nn.Module):
    """``act(conv(x) + add)``, the batch norm that followed being part of the weights; channels-last."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False, packed: bool = False,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        source = conv.weight.dtype
        if norm is not None:  # in double precision, so that only one rounding is added
            conv = fuse_conv_bn_eval(*(copy.deepcopy(part).double().eval() for part in (conv, norm)))
        self.weight = _fixed(conv.weight.detach().to(source).clone(memory_format=torch.channels_last), dtype)
        self.bias = None if conv.bias is None else _fixed(conv.bias.detach().to(source).clone(), dtype)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding: tuple[int, ...] = tuple(int(side) for side in conv.padding)
        self.relu, self.packed = relu, packed

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """``x [M, c, h, w]`` -> ``[M, c', h', w']``; ``add`` like the output."""
        # A pixel alone lies both ways, and is a matrix product that needs no layout.
        if x.shape[2] * x.shape[3] > 1:
            x = x.contiguous(memory_format=torch.channels_last)
            # A compiler has its own ways, and does not know weights that are laid out already.
            if self.packed and not torch.compiler.is_compiling():
                return self._packed_forward(x, add)
        weight = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        out = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if add is not None:
            out += add
        return out.relu_() if self.relu else out

    def _packed_forward(self, x: Tensor, add: Tensor | None) -> Tensor:
        where = (self.padding, self.stride, self.dilation, self.groups)
        if not self.weight.is_mkldnn:
            # The best layout depends on the size of the input, which stays the same.
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.contiguous(), *where, x.shape)
            self.weight = nn.Parameter(packed, requires_grad=False)
        activation = "relu" if self.relu else "none"
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *where, activation, [], "")
        add = add.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, add, self.weight, self.bias, *where, "add", None, activation if self.relu else None, [], None
        )


class FusedResidual(nn.Module):
    """Convolutions one after the other, the last one's output added to the shortcut's."""

    def __init__(self, convolutions: list[FusedConv], shortcut: nn.Module) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for convolution in self.convolutions[:-1]:
            out = convolution(out)
        return self.convolutions[-1](out, self.shortcut(x))


@functools.cache
def has_packed_convolutions() -> bool:
    """Whether this PyTorch has oneDNN's fused convolutions in the form used here (its compiler uses the same)."""
    if not torch.backends.mkldnn.is_available():
        return False
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x, add = torch.randn(1, 3, 5, 6), torch.randn(1, 4, 5, 6)
    try:
        with torch.no_grad():
            fused = FusedConv(conv, relu=True, packed=True)
            results = fused(x), fused(x, add)
            expected = conv(x).relu(), (conv(x) + add).relu()
    except (RuntimeError, AttributeError, TypeError):  # not in this version, or with other arguments
        return False
    return all(torch.allclose(*pair, atol=1e-5) for pair in zip(results, expected, strict=True))


def _fixed(values: Tensor, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(values.to(dtype or values.dtype), requires_grad=False)


def _converted(module: nn.Module, packed: bool, dtype: torch.dtype | None) -> nn.Module:
    fuse = functools.partial(FusedConv, packed=packed, dtype=dtype)
    if isinstance(module, ResidualBlock):
        first, last = fuse(module.conv1, module.bn1, relu=True), fuse(module.conv2, module.bn2, relu=True)
        return FusedResidual([first, last], _converted(module.shortcut, packed, dtype))
    if isinstance(module, Bottleneck):
        parts = [fuse(getattr(module, f"conv{i}"), getattr(module, f"bn{i}"), relu=True) for i in range(1, 4)]
        shortcut = module.downsample if module.downsample is not None else nn.Identity()
        return FusedResidual(parts, _converted(shortcut, packed, dtype))
    if isinstance(module, nn.Conv2d):
        return fuse(module)
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*_chain(list(module), packed, dtype))
    clone = _shallow_copy(module)
    if dtype and isinstance(module, nn.Linear):
        clone.weight = _fixed(module.weight, dtype)
        clone.bias = None if module.bias is None else _fixed(module.bias, dtype)
    for name, child in module.named_children():
        clone._modules[name] = _converted(child, packed, dtype)
    if isinstance(module, ResNet50):
        clone.conv1 = fuse(module.conv1, module.bn1, relu=True)
        clone.bn1, clone.relu = nn.Identity(), nn.Identity()
    return clone


def _chain(modules: list[nn.Module], packed: bool, dtype: torch.dtype | None) -> list[nn.Module]:
    """A Sequential's modules, with every convolution, norm and activation that follow each other as one.

    What is taken up leaves an identity: positions in the sequence stay what they were.
    """
    result: list[nn.Module] = []
    while modules:
        module = modules.pop(0)
        if not isinstance(module, nn.Conv2d):
            result.append(_converted(module, packed, dtype))
            continue
        norm = modules.pop(0) if modules and isinstance(modules[0], nn.BatchNorm2d) else None
        relu = bool(modules) and isinstance(modules[0], nn.ReLU)
        if relu:
            modules.pop(0)
        result.append(FusedConv(module, norm, relu, packed, dtype))
        result += [nn.Identity()] * ((norm is not None) + relu)
    return result


def _shallow_copy(module: nn.Module) -> nn.Module:
    """The module with the same parameters and buffers, but tables (also of hooks) of its own."""
    clone = copy.copy(module)
    clone.__dict__ = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(module).items()}
    return clone
