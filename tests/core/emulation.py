# SPDX-License-Identifier: Apache-2.0
"""CUDA code compiled as C++, each thread of a block a fiber; kept in the cache of compiled code as everything else."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

from bevnext_core.ops import native
from bevnext_core.ops.compiled import CudaCode

HEADER = Path(__file__).with_name("cuda_emulation.h")
FLAGS = ("-O1", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-DBEVNEXT_EMULATE_CUDA", "-U_FORTIFY_SOURCE")
"""Not fortified: glibc would take a jump to another fiber for a mistake."""


def emulated(code: CudaCode) -> ctypes.CDLL:
    """The functions of a CUDA source file, for the CPU."""
    header = (
        f"-DEMULATION_{hashlib.sha256(HEADER.read_bytes()).hexdigest()[:16]}"  # a change of it builds anew
    )
    flags = (*FLAGS, header, "-I", str(HEADER.parent), "-x", "c++")
    return code.declare(native.load(code.source, tuned=False, flags=flags))
