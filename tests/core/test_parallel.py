# SPDX-License-Identifier: Apache-2.0
"""Work shared among threads: when memory or threads run out, a C interface returns what it promises.

Each case runs in a process of its own, which a mistake would end.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from bevnext_core.ops import native
from bevnext_core.ops.bev_pool import operator as bev_pool_op
from bevnext_core.ops.crf import operator as crf_op

PRELUDE = """
import ctypes, resource, sys
import numpy as np

library = ctypes.CDLL(sys.argv[1])

def leave(mebibytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def address(array):
    return ctypes.c_void_p(array.ctypes.data)

n, d = ctypes.c_int64, ctypes.c_double
"""


def output_of(library: ctypes.CDLL, code: str) -> list[int]:
    command = [sys.executable, "-c", PRELUDE + code, library._name]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, f"the process ended with {run.returncode}: {run.stderr}"
    return [int(word) for word in run.stdout.split()]


def shared() -> ctypes.CDLL:
    return native.load(Path(__file__).with_name("share.cpp"))


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_thread_without_memory(failing: int) -> None:
    """The calling thread too, whose exception would find the others running."""
    assert output_of(shared(), f"print(library.fail_in({failing}, 4))") == [1]


def test_no_further_thread_to_be_had() -> None:
    code = "leave(1); counts = np.zeros(4, np.int64); print(library.count_tasks(n(100), 4, address(counts)), *counts)"
    assert output_of(shared(), code) == [0, 100, 0, 0, 0]


def test_pooling_without_memory() -> None:
    """Each of two threads asks for 64 MiB of sums."""
    code = """
one, row = np.ones(1, np.float32), np.ones(32, np.float32)
cell, out = np.zeros(1, np.int32), np.empty(2**25, np.float32)
leave(32)
sizes = [n(size) for size in (1, 1, 32, 1, 1, 1, 2**20)]
print(library.bev_pool_forward_float(address(one), address(row), 0, address(cell), *sizes, address(out), 0, 2))
"""
    assert output_of(bev_pool_op.HOST.library, code) == [1]


def test_crf_without_memory() -> None:
    """Each of two threads asks for the maps of a camera, 72 MiB; all patches have the same logit."""
    code = """
one, kernel, out = np.zeros(1, np.float32), np.ones((2, 9, 64, 176), np.float32), np.zeros(1, np.float32)
strides, sizes = np.zeros(4, np.int64), np.array([2, 512, 64, 176])
leave(32)
arguments = address(one), address(strides), address(kernel), d(0.1), address(sizes), n(1), address(out), 2
print(library.crf_forward_float(*arguments))
"""
    assert output_of(crf_op.HOST.library, code) == [1]
