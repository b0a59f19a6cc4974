# SPDX-License-Identifier: Apache-2.0
"""``bevnext COMMAND ...``: finds the command, runs it, and turns a user's mistake into one line.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int`` (the exit code). It is
imported when it is called, so that ``bevnext --help`` does not wait for torch.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any

from bevnext_core.errors import BevnextError, one_line
from bevnext_core.files import Parser
from bevnext_tools.cli import registry
from bevnext_tools.cli.registry import COMMANDS
from bevnext_tools.threads import prepare_threads, use_threads

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: bevnext COMMAND [options]\n\nCamera-only 3D object detection with BEVNeXt.\n\n"
        f"commands:\n{lines}\n\n"
        "bevnext COMMAND --help shows a command's options; bevnext --version the version."
    )


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _fail(message: str) -> int:
    print(f"bevnext: error: {message}", file=sys.stderr)
    return EXIT_ERROR


def _load(name: str) -> Any:
    """The command's module.

    Raises:
        BevnextError: a package that it needs is not installed.
    """
    try:
        return importlib.import_module(COMMANDS[name].module)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("bevnext_"):
            raise  # a part of this package: not the user's to install
        raise BevnextError(
            f"'{name}' needs the Python package '{error.name}', which is not installed in {sys.prefix}"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command -> exit code: 0, 2 for a user's mistake (one line on stderr), 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare_threads()
    registry.discover()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else EXIT_ERROR
    if arguments[0] == "--version":
        print(f"bevnext_ros {version('bevnext_ros')}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(COMMANDS))}"
        return _fail(f"unknown command '{name}'; {hint}")
    try:
        module = _load(name)
        parser = Parser(prog=f"bevnext {name}", description=COMMANDS[name].summary)
        module.add_arguments(parser)
        if getattr(module, "COMPUTES", False):
            parser.add_argument(
                "--threads", type=int, metavar="N", help="computing threads (default: OMP_NUM_THREADS, or all cores)"
            )
        given = parser.parse_args(arguments[1:])
        use_threads(getattr(given, "threads", None) or None)  # 0, too: as many as there are
        code = int(module.run(given))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output has gone (`bevnext config --dump | head`); nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (BevnextError, OSError) as error:
        # A full disk or a folder without rights is the user's to mend, not a defect.
        return _fail(one_line(error))
    except KeyboardInterrupt:
        print("bevnext: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
