# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a model's state, with the published ramp."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ModelEma:
    """Average of every floating entry of the state dict, buffers included.

    ``decay = limit * (1 - exp(-n / ramp))``, where n starts at ``start`` and counts up before each use; entries
    of other types stay what they were in the first copy. In distributed training every rank averages its own
    model (batch-norm statistics are local), and rank 0's is kept, as published.
    """

    def __init__(self, model: nn.Module, limit: float = 0.999, ramp: int = 2000, start: int = 10560) -> None:
        self.limit, self.ramp = limit, ramp
        self.updates = start
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def decay(self) -> float:
        """The decay of the latest update."""
        return self.limit * (1 - math.exp(-self.updates / self.ramp))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``."""
        self.updates += 1
        decay = self.decay()
        current = model.state_dict()
        names = [name for name, value in self.state.items() if value.is_floating_point()]
        average = [self.state[name] for name in names]
        torch._foreach_mul_(average, decay)
        torch._foreach_add_(average, [current[name].detach() for name in names], alpha=1 - decay)

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "state": self.state}

    def load_state_dict(self, data: Mapping[str, object]) -> None:
        self.updates = int(data["updates"])  # type: ignore[call-overload]
        state = data["state"]
        assert isinstance(state, Mapping)
        if set(state) != set(self.state):
            raise ValueError("the average belongs to another model")
        for name, value in state.items():
            assert isinstance(value, Tensor)
            self.state[name].copy_(value)
