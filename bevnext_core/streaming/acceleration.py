# SPDX-License-Identifier: Apache-2.0
"""``torch.compile`` and CUDA graphs for a network, or the network as it is where they cannot be had."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from bevnext_core.errors import ConfigError
from bevnext_core.export.package import ExportedNetwork
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.programs import DetectProgram, EncodeProgram, Program, ProgramNetwork

CompileMode = Literal["default", "reduce-overhead", "graphs"]
"""``torch.compile``; the same with its CUDA graphs; or CUDA graphs of the network as it is, without a compiler."""

_log = logging.getLogger(__name__)


def accelerated(model: BEVNeXt, precision: str, mode: CompileMode) -> BEVNeXt:
    """``model`` made faster by ``mode``; on a CPU, which has no graphs, ``graphs`` leaves it as it is.

    Raises:
        ConfigError: ``model`` is a package of ``bevnext export``.
    """
    if isinstance(model, ExportedNetwork):
        raise ConfigError("a package of 'bevnext export' is compiled already: leave out compile")
    device = next(model.parameters()).device.type
    if mode == "graphs" and device != "cuda":
        _log.warning("no CUDA graphs on %s: the network runs without", device)
        return model
    return AcceleratedNetwork(model, precision, mode)


class AcceleratedNetwork(ProgramNetwork):
    """A network whose programs are compiled, or recorded as CUDA graphs, or both.

    Where something fails (no compiler, no CUDA, an operator that cannot be recorded) one line in the log says so, and
    the program goes on as ``model`` has it.

    Args:
        precision: of the convolutions, ``fp32``, ``bf16`` or ``fp16``.
        mode: compiling takes a minute or more at the first step; graphs keep their activations' memory.
    """

    def __init__(self, model: BEVNeXt, precision: str, mode: CompileMode) -> None:
        device = next(model.parameters()).device.type
        encode, detect = EncodeProgram(model, precision, device), DetectProgram(model, precision, device)
        super().__init__(model, Accelerated(encode, "encode", mode), Accelerated(detect, "detect", mode))
        # A number of samples that depends on the data can neither be recorded nor compiled in one piece.
        if self.refinement.attention is not None:
            self.refinement.attention.dense = mode == "graphs" or device == "cuda"


class Accelerated:
    """A program that is compiled or recorded at its first call, or runs as it is after a failure.

    Args:
        program: tensors in, a tuple of tensors out; what comes out is the caller's own. name: for the log.
    """

    def __init__(self, program: Program, name: str, mode: CompileMode) -> None:
        self._plain, self._name, self._mode = program, name, mode
        self._graph: Graph | None = None
        self._fast: Program | None = self._replayed
        if mode != "graphs":
            self._fast = torch.compile(program, dynamic=False, mode=mode)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if self._fast is None:
            return self._plain(*inputs)
        try:
            outputs = self._fast(*inputs)
            # PyTorch's graphs write into the same memory at the next call, and the history keeps what they wrote.
            return tuple(output.clone() for output in outputs) if self._mode == "reduce-overhead" else outputs
        except Exception as error:  # torch raises anything here: its own errors, a compiler's, a parser's
            self._fast = self._graph = None
            lines = str(error).strip().splitlines() or [""]
            what = "recorded as a CUDA graph" if self._mode == "graphs" else "compiled"
            reason = f"{type(error).__name__}: {lines[0]}"
            _log.warning("'%s' cannot be %s, and runs without (%s)", self._name, what, reason)
            return self._plain(*inputs)

    def _replayed(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._graph is None:
            self._graph = Graph(self._plain, inputs)
        return self._graph(*inputs)


class Graph:
    """A program recorded for inputs of fixed shapes, replayed on copies of later inputs."""

    def __init__(self, program: Program, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(value.clone() for value in inputs)
        self._outputs, self._replay = record(program, self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The program's outputs, the caller's own.

        Raises:
            ValueError: inputs of other shapes or types than those recorded.
        """
        for recorded, value in zip(self._inputs, inputs, strict=True):
            if (recorded.shape, recorded.dtype) != (value.shape, value.dtype):
                raise ValueError(
                    f"recorded for {recorded.dtype}{list(recorded.shape)}, called with {value.dtype}{list(value.shape)}"
                )
            recorded.copy_(value)
        self._replay()
        return tuple(output.clone() for output in self._outputs)


def record(program: Program, inputs: tuple[Tensor, ...]) -> tuple[Sequence[Tensor], Callable[[], None]]:
    """Record ``program`` on these very inputs as a CUDA graph -> its outputs, and what computes them again."""
    device = inputs[0].device
    # Weights that autocast keeps in half precision from before the recording would be gone when it is replayed.
    with torch.cuda.device(device), torch.autocast("cuda", enabled=False, cache_enabled=False):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compilers, libraries and caches do their first things outside of the recording
                program(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = program(*inputs)
    return outputs, graph.replay
