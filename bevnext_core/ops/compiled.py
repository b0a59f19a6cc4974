# SPDX-License-Identifier: Apache-2.0
"""Operators that are compiled: how their functions are declared, which form is in use, how they are called.

Each operator has up to three forms: ``c++`` on the CPU, ``cuda`` on a GPU, and ``plain`` (PyTorch or numpy), which is
the oracle of the others and takes over where they cannot be built. The compiled ones are registered with PyTorch:
they have gradients and shape inference, and stand in traced, compiled and exported programs as one node each.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bevnext_core.errors import ConfigError
from bevnext_core.ops import native
from bevnext_core.ops.native import NativeBuildError

POINTER, INT64, INT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double

TYPES = {torch.float32: "float", torch.float64: "double"}
"""The types that C++ and CUDA functions with a type in their name are there for."""

Signatures: TypeAlias = Mapping[str, Sequence[type]]
Argument: TypeAlias = Tensor | np.ndarray | Sequence[int] | float

_log = logging.getLogger(__name__)


def by_type(**functions: Sequence[type]) -> dict[str, Sequence[type]]:
    """The signatures of functions that are there for each of :data:`TYPES`: ``name_float``, ``name_double``."""
    return {f"{name}_{kind}": types for name, types in functions.items() for kind in TYPES.values()}


class HostCode:
    """The functions of one C++ source file; compiled on first use.

    Args:
        signatures: each function's types, but for the last one: the number of threads, an int.
        tuned, flags: as :func:`bevnext_core.ops.native.load`.
    """

    def __init__(self, source: Path, signatures: Signatures, tuned: bool = True, flags: tuple[str, ...] = ()) -> None:
        self._signatures = {name: [*types, INT] for name, types in signatures.items()}
        self._load = functools.partial(native.load, source, tuned=tuned, flags=flags)

    @functools.cached_property
    def library(self) -> ctypes.CDLL:
        """The compiled file.

        Raises:
            NativeBuildError: it cannot be built or loaded.
        """
        return _declared(self._load(), self._signatures)

    def __call__(self, name: str, *arguments: Argument) -> None:
        if getattr(self.library, name)(*_values(arguments), torch.get_num_threads()):
            raise MemoryError(f"{name}: not enough memory")


class CudaCode:
    """The functions of one CUDA source file; compiled on first use, for the card at hand.

    Args:
        signatures: each function's types; the last one is the stream.
        check: name of the function that says whether the kernels run on the present card (0: they do).
    """

    def __init__(self, source: Path, signatures: Signatures, check: str) -> None:
        self.source, self._signatures, self._check = source, signatures, check
        self._libraries: dict[tuple[int, int], ctypes.CDLL] = {}

    def declare(self, library: ctypes.CDLL) -> ctypes.CDLL:
        """``library``, its functions' types declared."""
        return _declared(library, self._signatures)

    def library(self, device: torch.device | int) -> ctypes.CDLL:
        """The file compiled for one GPU.

        Raises:
            NativeBuildError: it cannot be built or loaded.
        """
        capability = torch.cuda.get_device_capability(device)
        if capability not in self._libraries:
            self._libraries[capability] = self.declare(native.load_cuda(self.source, (capability,)))
        return self._libraries[capability]

    @contextmanager
    def on(self, device: torch.device) -> Iterator[tuple[ctypes.CDLL, int]]:
        """The library and the current stream of ``device``, which is the present card while the block runs."""
        with torch.cuda.device(device):
            yield self.library(device), torch.cuda.current_stream(device).cuda_stream

    def build(self) -> None:
        for index in range(torch.cuda.device_count()):
            with self.on(torch.device("cuda", index)) as (library, _):
                if code := getattr(library, self._check)():
                    raise NativeBuildError(f"the kernels do not run on GPU {index} (CUDA error {code})")


class Forms:
    """Which form an operator takes.

    Args:
        what: the operator, as the log names it.
        variable: the environment variable that decides: ``auto`` (compiled, else plain with one line in the log),
            ``plain``, or ``native`` (an error rather than the plain form).
        host: all files that the C++ form needs.
        plain: what the plain form is written in.
    """

    def __init__(self, what: str, variable: str, host: Sequence[HostCode], cuda: CudaCode | None = None,
                 plain: str = "plain PyTorch") -> None:
        self.variable = variable
        self._what, self._host, self._cuda, self._plain = what, host, cuda, plain
        self._found: dict[str, str] = {}

    def of(self, device: torch.device | str = "cpu") -> str:
        """:meth:`on` the type of a device."""
        return self.on(torch.device(device).type)

    def on(self, kind: str) -> str:
        """``c++``, ``cuda`` or ``plain`` on a type of device; compiled when it was not.

        Raises:
            ConfigError: the variable is not one of auto, native, plain.
            NativeBuildError: it is native, and the form cannot be built or loaded.
        """
        wanted = os.environ.get(self.variable, "auto")
        if wanted not in ("auto", "native", "plain"):
            raise ConfigError(f"{self.variable}={wanted!r}: must be auto, native or plain")
        if wanted == "plain":
            return wanted
        found = self._found.get(kind)
        if found is None or (found == "plain" and wanted == "native"):
            try:
                found = self._build(kind)
            except NativeBuildError as error:
                if wanted == "native":
                    raise
                _log.warning("%s uses %s on %s, which is slower: %s", self._what, self._plain, kind, error)
                found = "plain"
            self._found[kind] = found
        return found

    # A constant for a tracer, no build to follow: torch.compiler.assume_constant_result without importing the compiler
    on._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _build(self, kind: str) -> str:
        if kind == "cpu":
            for code in self._host:
                _ = code.library
            return "c++"
        if kind == "cuda" and self._cuda is not None:
            self._cuda.build()
            return "cuda"
        raise NativeBuildError(f"there is no compiled form for {kind}")


def register_gradients(operator: Any, backward: Callable[..., Sequence[Tensor]], of: Sequence[int],
                       needs: Sequence[int]) -> None:
    """Let ``backward(grad, *inputs)`` be an operator's gradients.

    Args:
        of: positions of the inputs that it gives gradients of.
        needs: positions of the inputs that it takes, tensors before others.
    """

    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        kept = [inputs[position] for position in needs]
        ctx.save_for_backward(*(value for value in kept if isinstance(value, Tensor)))
        ctx.others = [value for value in kept if not isinstance(value, Tensor)]
        ctx.count = len(inputs)

    def gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = dict(zip(of, backward(grad, *ctx.saved_tensors, *ctx.others), strict=True))
        return tuple(found.get(position) for position in range(ctx.count))

    operator.register_autograd(gradients, setup_context=setup_context)


def launch(function: Callable[..., int], *arguments: Argument) -> None:
    """Call a function of a CUDA file; the last argument is the stream. Nothing waits for the device."""
    if code := function(*_values(arguments)):
        raise RuntimeError(f"{function.__name__} failed on the GPU: CUDA error {code}")


def _declared(library: ctypes.CDLL, signatures: Signatures) -> ctypes.CDLL:
    for name, types in signatures.items():
        getattr(library, name).argtypes = types
    return library


def _values(arguments: Sequence[Argument]) -> list[object]:
    """As the C interfaces take them: addresses of tensors and arrays, and of sequences of integers."""
    values: list[object] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            values.append(argument.data_ptr())
        elif isinstance(argument, np.ndarray):
            values.append(argument.ctypes.data)
        elif isinstance(argument, Sequence):
            values.append((INT64 * len(argument))(*argument))
        else:
            values.append(argument)
    return values
