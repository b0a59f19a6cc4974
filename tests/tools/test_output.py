# SPDX-License-Identifier: Apache-2.0
"""What every command says: --quiet, --verbose, and a shell that completes its words."""

from __future__ import annotations

import argparse
import io
import logging
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from bevnext_core.errors import BevnextError
from bevnext_core.precision import PRECISIONS
from bevnext_tools import progress as progress_module
from bevnext_tools.cli import registry
from bevnext_tools.cli.main import main
from bevnext_tools.cli.registry import COMMANDS, Command
from bevnext_tools.progress import progress

registry.discover()


class Terminal(io.StringIO):
    """A progress bar draws itself there."""

    def isatty(self) -> bool:
        return True


Call = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command on a terminal -> exit code, stdout, stderr. `made` has a bar, a note, log lines, a result; with
    ``--fail`` an error."""

    def run(args: argparse.Namespace) -> int:
        log = logging.getLogger("bevnext_core.made")
        for _ in tqdm(range(3), desc="bar", disable=None):
            log.debug("a detail")
        print("bevnext: note: a note", file=sys.stderr)
        log.warning("a warning")
        if args.fail:
            raise BevnextError("it cannot be")
        print("the result")
        return 0

    module = types.ModuleType("made_command")
    module.run = run  # type: ignore[attr-defined]
    module.add_arguments = lambda parser: parser.add_argument("--fail", action="store_true")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_command", module)
    monkeypatch.setitem(COMMANDS, "made", Command("made_command", "for the test"))

    def on_terminal(*arguments: str) -> tuple[Any, str, str]:
        with redirect_stderr(Terminal()) as err, redirect_stdout(io.StringIO()) as out:
            try:
                code: Any = main(arguments)
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), err.getvalue()

    return on_terminal


def test_a_command_says_its_notes_and_shows_its_progress(call):
    code, out, err = call("made")
    assert (code, out) == (0, "the result\n")
    assert "bar: 100%" in err and "a note" in err and "a detail" not in err
    assert "bevnext: warning: a warning\n" in err


@pytest.mark.parametrize("arguments", [("made", "--quiet"), ("-q", "made"), ("--quiet", "made"), ("made", "-q")])
def test_quiet_leaves_results_and_errors(call, arguments):
    assert call(*arguments) == (0, "the result\n", "")
    assert call(*arguments, "--fail") == (2, "", "bevnext: error: it cannot be\n")


@pytest.mark.parametrize("arguments", [("made", "--verbose"), ("-v", "made")])
def test_verbose_tells_what_is_logged_and_where_an_error_comes_from(call, arguments):
    levels = {name: logging.getLogger(name).level for name in ("bevnext_core", "bevnext_tools")}
    code, out, err = call(*arguments)
    assert (code, out) == (0, "the result\n")
    assert "DEBUG bevnext_core.made: a detail" in err and "made: {'verbose': True}" in err
    assert err.count("a warning") == 1 and "bar: 100%" in err
    code, out, err = call(*arguments, "--fail")
    assert code == 2 and 'raise BevnextError("it cannot be")' in err
    assert err.endswith("bevnext: error: it cannot be\n")
    assert levels == {name: logging.getLogger(name).level for name in levels}, "as it was"
    assert "a detail" not in call("made")[2]


def test_both_at_once_are_refused_in_one_line(call):
    line = "bevnext made: error: argument -v/--verbose: not allowed with argument -q/--quiet "
    assert call("made", "-q", "-v") == (2, "", line + "(bevnext made --help shows the options)\n")


def test_the_help_tells_of_both(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert "--quiet (-q)" in out and "--verbose (-v)" in out


# ---------------------------------------------------------------------------------------------- completion
@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What bash is given, of the commands of all packages."""
    pytest.importorskip("shtab", reason="needs shtab")
    if not shutil.which("bash"):
        pytest.skip("there is no bash")
    command = [sys.executable, "-m", "bevnext_tools", "completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("completion") / "bevnext"
    path.write_text(done.stdout)
    return path


def completed(script: Path, *words: str, folder: Path | None = None) -> list[str]:
    """What bash offers for the last of ``words``, as it asks where the user presses the key."""
    code = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
        "[[ $(complete -p bevnext) =~ -F\\ ([^ ]+) ]]\n"
        '"${BASH_REMATCH[1]}" bevnext "${@: -1}" "${@: -2:1}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", code, "bash", str(script), "bevnext", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.stderr == ""
    return sorted(done.stdout.split())


def test_bash_completes_commands_of_all_packages(script):
    assert set(COMMANDS) <= set(completed(script, ""))
    assert completed(script, "nus") == ["nuscenes-to-bag"] and completed(script, "de") == ["demo", "detect"]


def test_bash_completes_options_values_and_commands_of_commands(script):
    assert completed(script, "detect", "--sp") == ["--split"]
    assert {"--quiet", "--threads", "--rrd"} <= set(completed(script, "detect", "--"))
    assert completed(script, "detect", "--precision", "") == sorted(PRECISIONS)
    assert set(completed(script, "weights", "")) >= {"accept", "get", "list"}


def test_bash_completes_files_where_an_option_takes_one(script, tmp_path):
    (tmp_path / "net.safetensors").touch()
    (tmp_path / "nets").mkdir()
    assert completed(script, "detect", "--checkpoint", "ne", folder=tmp_path) == ["net.safetensors", "nets"]
    assert completed(script, "detect", "--dataroot", "ne", folder=tmp_path) == ["nets"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_scripts_of_theirs(shell, capsys):
    pytest.importorskip("shtab", reason="needs shtab")
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert {"zsh": "#compdef bevnext", "fish": "complete -c bevnext"}[shell] in text
    assert "nuscenes-to-bag" in text and "score-threshold" in text


def test_without_shtab_one_line_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bevnext: error: completion needs the Python package shtab: `") and line.endswith("shtab`")


def test_long_work_draws_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(err: io.StringIO, **options: Any) -> str:
        with redirect_stderr(err), progress("detecting", "frame", 3, **options) as bar:
            for _ in range(3):
                bar.update()
        return err.getvalue()

    first, *drawn = shown(Terminal()).split("\n", 1)
    assert first == "bevnext: detecting: 3 frames" and "100%" in drawn[0] and "\r" in drawn[0]
    assert shown(io.StringIO()) == "bevnext: detecting: 3 frames\n"  # too short for more
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)
    first, *lines = shown(io.StringIO(), begin="now for three").splitlines()
    assert first == "bevnext: now for three" and lines[-1].startswith("bevnext: detecting: 3 of 3, ")
    assert any(line.startswith("bevnext: detecting: 1 of 3, ") for line in lines)
    assert shown(io.StringIO(), hidden=True) == ""
