# SPDX-License-Identifier: Apache-2.0
"""``bevnext completion SHELL``: prints a script that lets the shell complete commands, options and values.

The script is made by shtab from the commands' own parsers, those of other packages too, and asks Python nothing
later: make it again after an update.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bevnext_core.errors import BevnextError
from bevnext_core.files import Parser
from bevnext_tools.cli.registry import COMMANDS

SHELLS = ("bash", "zsh", "fish")
_WHERE = """where a shell looks for it:
  bash   bevnext completion bash > ~/.local/share/bash-completion/completions/bevnext
  zsh    bevnext completion zsh > _bevnext, in a folder of $fpath
  fish   bevnext completion fish > ~/.config/fish/completions/bevnext.fish"""
_FILES = {"FILE": "FILE", "BAG": "FILE", "DIR": "DIRECTORY"}
"""What is completed where an option's value is called so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("shell", choices=SHELLS)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _WHERE


def run(args: argparse.Namespace) -> int:
    """Print the script. Raises BevnextError when shtab is not installed."""
    try:
        import shtab
    except ImportError:
        command = f"{sys.executable} -m pip install shtab"
        raise BevnextError(f"completion needs the Python package shtab: `{command}`") from None
    print(shtab.complete(parser_of_all(shtab), args.shell))
    return 0


def parser_of_all(shtab: Any) -> Parser:
    """One parser of all commands; of one that lacks a package here, the name alone."""
    from bevnext_tools.cli.main import add_options

    parser = Parser(prog="bevnext", description="Camera-only 3D object detection with BEVNeXt.")
    parser.add_argument("--version", action="store_true", help="the version")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary, description=command.summary)
        try:
            add_options(own, name)
        except BevnextError as error:
            print(f"bevnext: note: no options of '{name}': {error}", file=sys.stderr)
        _mark_files(own, shtab)
    return parser


def _mark_files(parser: argparse.ArgumentParser, shtab: Any) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _mark_files(inner, shtab)
        elif action.metavar in _FILES:
            action.complete = getattr(shtab, _FILES[str(action.metavar)])  # type: ignore[attr-defined]
