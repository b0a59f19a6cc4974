"""Rotated suppression by ``rotated_nms.cpp``, or in numpy by blocks where there is no compiler: the same boxes."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import numpy as np

from bevnext_core.ops import native
from bevnext_core.ops.native import NativeBuildError
from bevnext_core.ops.nms.plain import rotated_nms_by_blocks

_log = logging.getLogger(__name__)


@functools.cache
def nms_library() -> ctypes.CDLL | None:
    """``rotated_nms.cpp``, compiled; ``None``, with one line in the log, where it cannot be. No fused multiply-adds."""
    source = Path(__file__).parent / "rotated_nms.cpp"
    try:
        library = native.load(source, tuned=False, flags=("-ffp-contract=off",))
    except NativeBuildError as error:
        _log.warning("rotated suppression runs in numpy: %s", error)
        return None
    p, n = ctypes.c_void_p, ctypes.c_int64
    library.rotated_nms.argtypes = [p, n, ctypes.c_double, n, p]
    library.rotated_nms.restype = n
    return library


def fast_rotated_nms(rectangles: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """Indices kept, best first; arguments and result as :func:`~bevnext_core.ops.nms.plain.rotated_nms`."""
    library = nms_library()
    if library is None:
        return rotated_nms_by_blocks(rectangles, threshold, limit)
    boxes = np.asarray(rectangles, np.float64).reshape(-1, 5)
    table = np.ascontiguousarray(np.c_[boxes[:, :4], np.cos(boxes[:, 4]), np.sin(boxes[:, 4])])
    kept = np.empty(max(0, min(len(table), limit)), np.int64)
    found = library.rotated_nms(table.ctypes.data, len(table), float(threshold), int(limit), kept.ctypes.data)
    if found < 0:
        raise MemoryError("rotated_nms: not enough memory")
    return kept[:found]
