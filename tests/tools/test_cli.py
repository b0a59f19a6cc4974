# SPDX-License-Identifier: Apache-2.0
"""The command line: commands are found, and a mistake of the user is one line instead of a traceback."""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from bevnext_core.errors import FrameError
from bevnext_tools.cli import registry
from bevnext_tools.cli.main import main
from bevnext_tools.cli.registry import COMMANDS, Command
from tests.command_line import error_line, run_command
from tests.paths import ROOT

registry.discover()


# ---------------------------------------------------------------------------------------------- dispatch
def test_help_lists_every_command_without_importing_torch() -> None:
    code = (
        "import sys; from bevnext_tools.cli.main import main; assert main(['--help']) == 0; "
        "slow = {'torch', 'cv2', 'nuscenes', 'matplotlib', 'pydantic'}; "
        "assert not slow & set(sys.modules), 'help must be quick'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    for name, command in COMMANDS.items():
        assert name in result.stdout and command.summary in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: bevnext {name}" in capsys.readouterr().out


def test_no_command_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out
    assert main(["detcet"]) == 2
    assert capsys.readouterr().err == "bevnext: error: unknown command 'detcet'; did you mean 'detect'?\n"
    assert main(["xyz"]) == 2
    err = capsys.readouterr().err
    assert err == f"bevnext: error: unknown command 'xyz'; there are {', '.join(sorted(COMMANDS))}\n"


ORDERS = [("rig", "--quiet", "template"), ("rig", "template", "-q"), ("-q", "rig", "template")]


@pytest.mark.parametrize("order", ORDERS)
def test_quiet_goes_with_a_part_of_a_command_too(
    order: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bevnext_tools.cli import rig

    def told(path: str) -> None:
        print("a warning", file=sys.stderr)

    monkeypatch.setattr(rig, "_refuse_to_replace", told)
    options = ["--cameras", "front", "--size", "8x8", "--out", str(tmp_path / "rig.yaml")]
    assert main([*order, *options]) == 0
    assert capsys.readouterr().err == ""
    assert main(["rig", "template", *options]) == 0
    assert capsys.readouterr().err == "a warning\n"


def test_an_unknown_option_is_told_with_the_command_whose_help_has_the_options(
    capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["rig", "import", "--camera-info", "a=a.yaml", "--vehicle-from-camera", "a=0 0 1", "b=0", "--out", "x"]
    for arguments, command in ((given, "rig import"), (["weights", "--bogus"], "weights")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"bevnext {command}: error: unrecognized arguments: ")
        assert line.endswith(f" (bevnext {command} --help shows the options)")


@pytest.mark.parametrize(
    ("package", "command"),
    [("bevnext_world", "demo"), ("bevnext_ros", "play"), ("bevnext_benchmarks", "benchmark")],
)
def test_packages_add_their_commands_without_being_installed(package: str, command: str) -> None:
    code = (
        "import runpy, sys\n"
        "from bevnext_tools.cli import registry\n"
        "registry.discover = lambda: None\n"
        f"sys.argv = ['bevnext', '--help']\nrunpy.run_module('{package}', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert f"  {command} " in result.stdout and "  detect " in result.stdout


def test_core_alone_has_no_commands_of_others_and_reads_no_bags() -> None:
    code = (
        "import sys\n"
        "from bevnext_tools.cli import registry\n"
        "from bevnext_tools.cli.main import main\n"
        "registry.discover = lambda: None\n"
        "main(['--help'])\n"
        "sys.exit(main(['detect', '--bag', 'b', '--checkpoint', 'demo', '--out', 'o']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "demo" not in result.stdout
    assert "no installed package can read bags" in error_line(result)


def test_a_package_that_cannot_be_loaded_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = importlib.metadata.EntryPoint("broken", "no_such_package_at_all", registry.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    assert main(["config", "--dump"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("bevnext: warning: no commands from 'no_such_package_at_all': No module named")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bevnext_ros ")


def install_command(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    def run(args: argparse.Namespace) -> int:
        if error:
            raise error
        return args.code

    module = types.ModuleType("made_command")
    module.run = run  # type: ignore[attr-defined]
    module.add_arguments = lambda parser: parser.add_argument("--code", type=int)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_command", module)
    monkeypatch.setitem(COMMANDS, "made", Command("made_command", "for the test"))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 7, ""),
        (FrameError("CAM_BACK:\n  bad"), 2, "bevnext: error: CAM_BACK: bad\n"),
        (
            PermissionError(13, "Permission denied", "/out"),
            2,
            "bevnext: error: [Errno 13] Permission denied: '/out'\n",
        ),
        (KeyboardInterrupt(), 130, "bevnext: interrupted\n"),
    ],
)
def test_end_of_a_command_is_an_exit_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any, code: int, line: str
) -> None:
    install_command(monkeypatch, error)
    assert main(["made", "--code", "7"]) == code
    assert capsys.readouterr().err == line


def test_defect_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    install_command(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["made", "--code", "7"])


def test_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "made", Command("no_such_package_here", ""))
    assert main(["made"]) == 2
    assert "'made' needs the Python package 'no_such_package_here'" in capsys.readouterr().err


def test_reader_of_the_output_may_go_away() -> None:
    # `true` ends at once, long before anything is written to it
    command = f"{sys.executable} -m bevnext_tools config --dump | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------ config
def test_config_dump_is_a_complete_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "--dump"]) == 0
    text = capsys.readouterr().out
    assert {"name", "cameras", "channels", "image", "depth", "bev", "head", "tasks", "training"} <= set(
        yaml.safe_load(text)
    )
    path = tmp_path / "model.yaml"
    path.write_text(text.replace("channels: 160", "channels: 80", 1))
    assert main(["config", "--config", str(path)]) == 0
    assert main(["config", "--dump", "--config", str(path)]) == 0
    assert "channels: 80" in capsys.readouterr().out


def test_unknown_config_key_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("chanels: 80\n")
    line = error_line(run_command("config", "--config", path))
    assert f"{path}: unknown key 'chanels'; known are: name," in line
