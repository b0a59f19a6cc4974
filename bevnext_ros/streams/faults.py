# SPDX-License-Identifier: Apache-2.0
"""What is wrong, in words: the newest line about each subject, with its age, until it is healed. Shared by threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_GRACE_SECONDS = 5.0
"""How long a fault that was healed is still told of."""


@dataclass(frozen=True)
class Fault:
    """The newest line about a subject, how often one was noted, and when (monotonic seconds; ``None``: not healed)."""

    text: str
    count: int
    noted: float
    healed: float | None = None


class Faults:
    """Notes faults by subject, whose first word is its kind: ``image NAME``, ``camera_info NAME``, ``frame CAUSE``.

    Args:
        log: gets every line as it is noted. clock: monotonic seconds.
    """

    def __init__(
        self, log: Callable[[str], None] = lambda text: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._clock = log, clock
        self._faults: dict[str, Fault] = {}
        self._lock = threading.Lock()

    def note(self, subject: str, text: str) -> None:
        """``subject`` is at fault."""
        with self._lock:
            known = self._faults.pop(subject, None)  # the newest is the last in order
            self._faults[subject] = Fault(text, 1 + (known.count if known else 0), self._clock())
        self._log(text)

    def heal(self, subject: str) -> None:
        """A subject, or all of a kind, is well again."""
        with self._lock:
            for name, fault in self._faults.items():
                if fault.healed is None and (name == subject or name.split(" ")[0] == subject):
                    self._faults[name] = Fault(fault.text, fault.count, fault.noted, self._clock())

    @property
    def all(self) -> dict[str, Fault]:
        """Every subject that ever was at fault, the newest last."""
        with self._lock:
            return dict(self._faults)

    @property
    def present(self) -> dict[str, Fault]:
        """Those that are not healed."""
        return {name: fault for name, fault in self.all.items() if fault.healed is None}

    def last(self) -> str:
        """The newest fault that is not healed, or was until just now, with its age; empty when all is well."""
        now = self._clock()
        for fault in reversed(sorted(self.all.values(), key=lambda f: (f.healed is None, f.noted))):
            if fault.healed is None:
                return f"{fault.text} ({now - fault.noted:.0f} s ago)"
            if now - fault.healed <= _GRACE_SECONDS:
                return f"{fault.text} ({now - fault.noted:.0f} s ago, healed)"
        return ""
