# SPDX-License-Identifier: Apache-2.0
"""The optimiser of a run: AdamW as published, or Muon for the convolutions with AdamW for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bevnext_core.config import TrainingConfig
from bevnext_core.errors import ConfigError
from training.run.training_forward import TrainingForward


def make_optimizer(forward: TrainingForward, training: TrainingConfig) -> tuple[Any, list[float]]:
    """The optimiser of all parameters that learn, and each of its groups' share of the learning rate.

    Raises:
        ConfigError: ``training.optimizer`` is one that the PyTorch at hand does not have.
    """
    backbone = {id(parameter) for parameter in forward.network.backbone.parameters()}
    learning = [p for p in forward.parameters() if p.requires_grad]
    parts = [[p for p in learning if (id(p) in backbone) == inside] for inside in (False, True)]
    shares = [1.0, training.backbone_lr_ratio]
    values = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimizer == "adamw":
        return torch.optim.AdamW([{"params": part} for part in parts], fused=True, **values), shares
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"training.optimizer=muon takes PyTorch 2.9 or newer, and this is {torch.__version__}")
    faster = training.muon_learning_rate / training.learning_rate
    others, matrices = ([[p for p in part if (p.dim() == 4) == is_matrix] for part in parts] for is_matrix in (0, 1))
    return MuonAndAdamW(matrices, others, values), [*shares, *(share * faster for share in shares)]


class MuonAndAdamW:
    """``torch.optim.Muon`` over convolutions, each as the matrix ``[out, in * kh * kw]``, and AdamW over the rest.

    A matrix shares its storage with the weight. Has what the training step and a gradient scaler use of an optimiser;
    ``param_groups`` are AdamW's and then Muon's, the latter with the weights themselves.

    Args:
        convolutions, others: groups of parameters; values: learning rate and weight decay.
    """

    def __init__(self, convolutions: list[list[nn.Parameter]], others: list[list[nn.Parameter]], values: dict[str, Any],
                 ) -> None:
        self.adamw = torch.optim.AdamW([{"params": group} for group in others], fused=True, **values)
        self.muon = torch.optim.Muon(
            [{"params": [nn.Parameter(_matrix(p.detach(), p)) for p in group]} for group in convolutions], **values
        )
        self.convolutions = [{"params": group, **values} for group in convolutions]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.adamw.param_groups, *self.convolutions]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none or parameter.grad is None:
                    parameter.grad = None
                else:
                    parameter.grad.zero_()

    def step(self) -> None:
        for own, group in zip(self.convolutions, self.muon.param_groups, strict=True):
            group["lr"] = own["lr"]
            for weight, matrix in zip(own["params"], group["params"], strict=True):
                matrix.grad = None if weight.grad is None else _matrix(weight.grad, weight)
        self.adamw.step()
        self.muon.step()

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.muon.load_state_dict(state["muon"])


def _matrix(values: Tensor, weight: Tensor) -> Tensor:
    """``values``, shaped like ``weight [out, in, kh, kw]``, as ``[out, in * kh * kw]``; a view of the weight itself.

    A channels-last weight has its columns in another order, which is all the same to Muon.
    """
    order = (0, 1, 2, 3) if weight.is_contiguous() else (0, 2, 3, 1)
    ordered = values.permute(order)
    return ordered.view(len(values), -1) if values.data_ptr() == weight.data_ptr() else ordered.reshape(len(values), -1)
