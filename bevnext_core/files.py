# SPDX-License-Identifier: Apache-2.0
"""Paths as users write them, files that a reader never meets half-written, the folder of what can be made again."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from bevnext_core.errors import BevnextError

CACHE_VARIABLE = "BEVNEXT_CACHE_DIR"


def cache_directory() -> Path:
    """The folder of what can be made again (compiled code, drives, indices of data sets); created when missing.

    ``BEVNEXT_CACHE_DIR``, else ``XDG_CACHE_HOME/bevnext_ros``, else ``~/.cache/bevnext_ros``; a private
    folder below the system's temporary one where that cannot be written.

    Raises:
        BevnextError: that one is somebody else's.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bevnext_ros"
    try:
        base = base.expanduser()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(base, os.W_OK | os.X_OK):
            return base
    except (OSError, RuntimeError):
        pass
    private = Path(tempfile.gettempdir()) / f"bevnext_ros-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise BevnextError(f"{private} belongs to another user: set {CACHE_VARIABLE} to a folder of yours")
    return private


def user_path(path: str | Path) -> Path:
    """``path`` with a leading ``~`` (or ``~user``, where there is such a user) as the home folder."""
    return Path(os.path.expanduser(path))


class Parser(argparse.ArgumentParser):
    """Options whose values may begin with ``~``, also where no shell expands it (``--out=~/x``); errors of one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("type", None, os.path.expanduser)

    def error(self, message: str) -> NoReturn:
        """End the program with one line and code 2: who wants all options asks for them."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help shows the options)\n")


@contextmanager
def atomic_path(path: str | Path, private: bool = False) -> Iterator[Path]:
    """A temporary file beside ``path`` (same suffix); it takes its place when the block ends without error.

    Args:
        private: for its owner's eyes and hands only, whatever the umask.

    Raises:
        OSError: the folder cannot be created or written.
    """
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's files are private to the user; a compiler may have made another one in its place.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o600 if private else 0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
