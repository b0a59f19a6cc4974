# SPDX-License-Identifier: Apache-2.0
"""``~`` is the home folder wherever a path is taken: commands, scripts, Python, parameters."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevnext_benchmarks import busy, latency
from bevnext_benchmarks.gpu import __main__ as gpu
from bevnext_core.checkpoint import import_published, load_checkpoint, save_checkpoint
from bevnext_core.datasets.nuscenes_tables import load_tables
from bevnext_core.errors import BevnextError
from bevnext_core.export.package import read_description
from bevnext_core.files import Parser, user_path
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagWriter
from bevnext_ros.node.detector_factory import make_detector
from bevnext_ros.node.parameters import make_options
from bevnext_tools.cli import registry
from bevnext_tools.cli.main import COMMANDS, main
from bevnext_tools.evaluation.submission import read_submission
from scripts import choose_thresholds, compare_windows, demo_ros, draw_conventions
from tests.published import build
from training import ablate, evaluate, train

registry.discover()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_an_unknown_users_home_is_left_as_it_is(home: Path) -> None:
    assert user_path("~/a") == home / "a" and user_path("a/~") == Path("a/~")
    assert user_path("~nobody-of-that-name/a") == Path("~nobody-of-that-name/a")


def test_a_checkpoint_is_written_and_read_there(home: Path) -> None:
    model = build("small2")
    save_checkpoint("~/own.safetensors", model.state_dict(), model.config)
    assert (home / "own.safetensors").is_file()
    assert load_checkpoint("~/own.safetensors").config == model.config
    values = {"checkpoint": "~/own.safetensors", "device": "cpu"}
    assert make_detector(make_options(values, "the node")).config == model.config


MISSING: dict[str, Callable[[str], object]] = {
    "checkpoint": load_checkpoint,
    "published file": lambda path: import_published(path, "~/out"),
    "submission": read_submission,
    "package": read_description,
    "data set": lambda path: load_tables(path, "v1.0-mini"),
    "bag": lambda path: BagReader(path).__enter__(),
    "model of the node": lambda path: make_detector(
        make_options({"checkpoint": "x", "model": path}, "the node")
    ),
    "checkpoint of the node": lambda path: make_detector(make_options({"checkpoint": path}, "the node")),
}


@pytest.mark.parametrize("kind", MISSING)
def test_what_is_read_is_looked_for_there(kind: str, home: Path) -> None:
    with pytest.raises(BevnextError, match=f"{home}/gone"):
        MISSING[kind]("~/gone")
    with pytest.raises(BevnextError, match="~nobody-of-that-name/gone"):
        MISSING[kind]("~nobody-of-that-name/gone")


def test_a_bag_is_written_there(home: Path) -> None:
    assert BagWriter("~/bag").path == home / "bag"


def texts(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if a.type is None and a.nargs != 0 and not a.choices]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_expands_it_in_every_text(name: str, home: Path) -> None:
    parser = Parser()
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    for action in texts(parser):
        assert parser._get_values(action, ["~/x"]) in (f"{home}/x", [f"{home}/x"]), action.option_strings


def test_the_command_line_uses_that_parser(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "model.yaml").write_text("name: from_home")
    assert main(["config", "--config=~/model.yaml"]) == 0
    assert "valid, 'from_home'" in capsys.readouterr().out


SCRIPTS = [train, evaluate, ablate, busy, gpu, latency, choose_thresholds, compare_windows, demo_ros, draw_conventions]


@pytest.mark.parametrize("module", SCRIPTS)
def test_scripts_expand_it(module: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.ArgumentParser] = []
    whole = Parser.parse_known_args  # parse_args goes through it too
    monkeypatch.setattr(
        Parser, "parse_known_args", lambda self, *rest: (seen.append(self), whole(self, *rest))[1]
    )
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit):
        module.main()
    for action in texts(seen[0]):
        assert seen[0]._get_values(action, ["~/x"]) in (f"{home}/x", [f"{home}/x"]), action.option_strings
