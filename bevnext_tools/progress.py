# SPDX-License-Identifier: Apache-2.0
"""How far long work has come, on stderr: a line when it begins, then a bar on a terminal, lines in a log or a pipe."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 10.0
"""Between lines, where there is no terminal."""


class _Lines:
    """Takes the place of a terminal: what a bar draws becomes a line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            say(text)

    def flush(self) -> None:
        """Lines are flushed anyway."""


def say(text: str) -> None:
    """A line on stderr, at once."""
    print(f"bevnext: {text}", file=sys.stderr, flush=True)


def progress(
    what: str,
    unit: str,
    total: int | None,
    items: Iterable[Any] | None = None,
    *,
    begin: str | None = None,
    hidden: bool = False,
) -> tqdm[Any]:
    """A bar over ``items``, or to be moved by its ``update``.

    Args:
        what: is done. unit: a word for one of the ``total`` things.
        begin: the line with which it begins, in place of the usual one; empty: none. hidden: show nothing.
    """
    if begin is None:
        begin = what if total is None else f"{what}: {total} {unit}{'s' * (total != 1)}"
    if begin and not hidden:
        say(begin)
    if sys.stderr.isatty():
        return tqdm(items, desc=what, unit=unit, total=total, disable=hidden)
    text = "{desc}{n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left"
    pace: dict[str, Any] = {"mininterval": SECONDS, "delay": SECONDS, "maxinterval": math.inf, "miniters": 1}
    pace |= {"file": _Lines(), "bar_format": text}
    return tqdm(items, desc=f"{what}: ", unit=unit, total=total, disable=hidden, **pace)
