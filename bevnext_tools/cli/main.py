# SPDX-License-Identifier: Apache-2.0
"""``bevnext COMMAND ...``: finds the command, runs it, and turns a user's mistake into one line.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int`` (the exit code). It is
imported when it is called, so that ``bevnext --help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import Any

from bevnext_core.errors import BevnextError, one_line
from bevnext_core.files import Parser
from bevnext_tools.cli import registry
from bevnext_tools.cli.dataset import add_said_arguments
from bevnext_tools.cli.registry import COMMANDS
from bevnext_tools.threads import prepare_threads, use_threads

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
_log = logging.getLogger(__name__)


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: bevnext COMMAND [options]\n\nCamera-only 3D object detection with BEVNeXt.\n\n"
        f"commands:\n{lines}\n\n"
        "bevnext COMMAND --help shows a command's options; bevnext --version the version.\n"
        "--quiet (-q): errors and results only; --verbose (-v): also what is logged, and where an error comes from."
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


def add_options(parser: argparse.ArgumentParser, name: str) -> Any:
    """Give ``parser`` all options of a command -> its module. Raises BevnextError as :func:`_load`."""
    module = _load(name)
    module.add_arguments(parser)
    if getattr(module, "COMPUTES", False):
        parser.add_argument(
            "--threads", type=int, metavar="N", help="computing threads (default: OMP_NUM_THREADS, or all cores)"
        )
    add_said_arguments(parser)
    return module


class _Line(logging.Formatter):
    """What is logged in the form of the commands' own lines."""

    def format(self, record: logging.LogRecord) -> str:
        return f"bevnext: {record.levelname.lower()}: {record.getMessage()}"


@contextmanager
def _saying(quiet: bool, verbose: bool) -> Iterator[None]:
    """What a command says on stderr beside its error, which is printed after this: nothing, the usual, or its log."""
    loggers = [logging.getLogger(f"bevnext_{part}") for part in ("core", "tools", "ros", "world", "benchmarks")]
    levels = [(logger, logger.level) for logger in loggers]
    with ExitStack() as stack:
        if quiet:  # progress bars ask whether this is a terminal
            stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s") if verbose else _Line())
        for logger in loggers:
            logger.addHandler(handler)
            if verbose:
                logger.setLevel(logging.DEBUG)
        try:
            yield
        except (BevnextError, OSError):
            _log.debug("the error came from here", exc_info=True)
            raise
        finally:
            for logger, level in levels:
                logger.setLevel(level)
                logger.removeHandler(handler)


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
    if len(arguments) > 1 and arguments[0] in ("-q", "--quiet", "-v", "--verbose"):
        arguments[:2] = arguments[1::-1]  # before the command they mean the same
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(COMMANDS))}"
        return _fail(f"unknown command '{name}'; {hint}")
    try:
        parser = Parser(prog=f"bevnext {name}", description=COMMANDS[name].summary)
        module = add_options(parser, name)
        given, unknown = parser.parse_known_args(arguments[1:])
        if unknown:
            parser.prog += f" {given.part}" if getattr(given, "part", "") else ""  # its help has the options
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        use_threads(getattr(given, "threads", None) or None)  # 0, too: as many as there are
        with _saying(given.quiet, given.verbose):
            _log.debug("bevnext_ros %s, Python %s in %s", version("bevnext_ros"), sys.version.split()[0], sys.prefix)
            _log.debug("%s: %s", name, {key: value for key, value in vars(given).items() if value not in (None, False)})
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
