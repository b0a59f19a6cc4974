# SPDX-License-Identifier: Apache-2.0
"""The subcommands of ``bevnext``: this package's own, and those that other packages add.

A package adds commands through the entry-point group ``bevnext.commands``: an entry is a module with a
dictionary ``COMMANDS`` and, where it takes part in one of these, a dictionary ``EXTENSIONS`` that
names functions as ``module:function``. Such a module imports nothing heavy: it is loaded for the help too.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from bevnext_core.errors import BevnextError

GROUP = "bevnext.commands"


class Command(NamedTuple):
    """Module of a subcommand and its line in the help.

    The module has ``add_arguments(parser)``, ``run(args) -> int``, and ``COMPUTES = True`` where ``--threads`` applies.
    """

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "detect": Command(
        "bevnext_tools.cli.detect", "detect boxes in a nuScenes data set, a bag or images; write results and pictures"
    ),
    "evaluate": Command("bevnext_tools.cli.evaluate", "score a network or detections with the nuScenes metric"),
    "import-checkpoint": Command("bevnext_tools.cli.import_checkpoint", "convert a published .pth file"),
    "weights": Command("bevnext_tools.cli.weights", "list or fetch the published weights; accept their terms of use"),
    "config": Command("bevnext_tools.cli.config", "print or check a model configuration"),
    "rig": Command("bevnext_tools.cli.rig", "own cameras: rig.yaml from a calibration, a check by eye, an example"),
    "check-calibration": Command(
        "bevnext_tools.cli.check_calibration", "draw lidar points and annotated boxes into a frame's images"
    ),
    "export": Command("bevnext_tools.cli.export", "compile a network ahead of time, or write it as ONNX"),
    "completion": Command("bevnext_tools.cli.completion", "print what completes commands in bash, zsh or fish"),
}
EXTENSIONS: dict[str, str] = {}

_found: set[str] = set()


def add(module: Any) -> None:
    """Take over the commands and extensions of a package's module; again changes nothing."""
    COMMANDS.update(module.COMMANDS)
    EXTENSIONS.update(getattr(module, "EXTENSIONS", {}))


def discover() -> None:
    """Add what the installed packages offer. One that cannot be loaded is named on stderr; the others go on."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.value not in _found:
            _found.add(entry.value)
            try:
                add(entry.load())
            except ImportError as error:
                print(f"bevnext: warning: no commands from '{entry.value}': {error}", file=sys.stderr)


def extension(name: str, what: str) -> Callable[..., Any]:
    """The function that a package offers under ``name``; ``what`` it does is for the message.

    Raises:
        BevnextError: no installed package offers it.
    """
    if name not in EXTENSIONS:
        raise BevnextError(f"no installed package can {what}: install this project, or run its own package's command")
    module, _, function = EXTENSIONS[name].partition(":")
    return getattr(importlib.import_module(module), function)
