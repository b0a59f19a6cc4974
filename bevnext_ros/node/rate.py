# SPDX-License-Identifier: Apache-2.0
"""At most so many frames a second, by their stamps: what is above is skipped on purpose."""

from __future__ import annotations

_SLACK = 0.05
"""Share of the period by which a frame may be early: stamps jitter."""


class RateLimit:
    """Chooses frames so that ``max_rate`` (Hz, 0: no limit) is kept on average, as evenly as the stamps allow."""

    def __init__(self) -> None:
        self._due_ns: float | None = None

    def takes(self, stamp_ns: int, max_rate: float) -> bool:
        """Whether a frame is to be computed; stamps may go back."""
        if max_rate <= 0:
            return True
        period = 1e9 / max_rate
        if self._due_ns is None or stamp_ns < self._due_ns - 2 * period:
            self._due_ns = stamp_ns  # the first one, or time went back
        if stamp_ns < self._due_ns - _SLACK * period:
            return False
        self._due_ns = max(self._due_ns, stamp_ns - period) + period
        return True
