# SPDX-License-Identifier: Apache-2.0
"""Counts of what was dropped, by cause. Shared by threads."""

from __future__ import annotations

import threading
from collections import Counter


class DropCounter:
    """Thread-safe counts by cause."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, cause: str, count: int = 1) -> None:
        """Count ``count`` drops under ``cause``."""
        if count:
            with self._lock:
                self._counts[cause] += count

    def __getitem__(self, cause: str) -> int:
        with self._lock:
            return self._counts[cause]

    @property
    def total(self) -> int:
        """All drops together."""
        with self._lock:
            return sum(self._counts.values())

    def snapshot(self) -> dict[str, int]:
        """A copy of the counts, sorted by cause."""
        with self._lock:
            return dict(sorted(self._counts.items()))
