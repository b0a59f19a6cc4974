# SPDX-License-Identifier: Apache-2.0
"""The command line: what a run is made of, and slips, which are told without waiting for torch."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from bevnext_core.errors import ConfigError
from tests.paths import ROOT
from tests.training.tiny import arguments
from training.run.options import parse_arguments, resolve_config


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--set training.epoch=3", "--set training.epoch=3: expected KEY=VALUE with a key that"),
        ("--set training", "--set training: expected KEY=VALUE"),
        ("--dataroot /no/such", "no such dataroot: /no/such"),
        ("--split val", "unknown split 'val' of v1.0-mini: it has mini_train, mini_val"),
        ("--set training.epochs=0", "epochs"),
        ("--set training.epochs=[1]", "epochs"),
        ("--set depth.step=[", "--set depth.step=[: the value is no valid YAML"),
        ("--config gone.yaml", "gone.yaml"),
        ("--stage 1", "--stage 1, but 'tiny_stage2' is a configuration of stage 2"),
        ("--batch 3 --set training.shared_run=2", "--batch 3 is no multiple of training.shared_run 2; take --batch 4"),
        ("--set history.frames=0 training.shared_run=2", "'tiny_stage2' has no history to share"),
        ("--set training.part=bev training.shared_run=2", "training.part=bev has no encodings to share"),
        ("--set training.part=images", "the present frame alone: --set history.frames=0"),
        ("--set training.part=bev", "name their folder with --cache"),
        ("--cache x", "--set training.image_augmentation=false"),
        ("--init-from x", "ways to start: choose one"),
        ("scratchless", "name its checkpoint with --init-from, or use --from-scratch"),
        ("scratchless --resume", "name its checkpoint with --init-from, or use --from-scratch"),
        ("scratchless --init-from x --stage 1 --set training.stage=1", "stage 1 takes --backbone-weights"),
        ("scratchless --init-from x --set training.head_scale=0.02", "goes with --from-scratch"),
    ],
)
def test_a_slip_is_one_line_before_torch_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, message: str
) -> None:
    words = more.split()
    options = [a for a in arguments(tmp_path) if a != "--from-scratch" or "scratchless" not in words]
    monkeypatch.setattr(sys, "argv", ["train.py", *options, *(word for word in words if word != "scratchless")])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "training/train.py"), run_name="__main__")
    assert str(end.value.code).startswith("error: ") and message in str(end.value.code)
    assert "\n" not in str(end.value.code)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--bogus", "train.py: error: unrecognized arguments: --bogus"),
        ("--stage 3", "train.py: error: argument --stage: invalid choice: 3"),
    ],
)
def test_a_wrong_option_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments(tmp_path), *words.split()])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "training/train.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith(message)


def test_torch_is_what_the_test_above_would_stumble_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments(tmp_path)])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        runpy.run_path(str(ROOT / "training/train.py"), run_name="__main__")


def test_overrides_reach_the_run(tmp_path: Path) -> None:
    more = ("--set", "training.epochs=7", "training.learning_rate=1e-3", "--set", "depth.step=4.0")
    config = resolve_config(parse_arguments(arguments(tmp_path, "x", *more)))
    assert config.training.epochs == 7 and config.training.learning_rate == 1e-3 and config.depth.step == 4.0


@pytest.mark.parametrize("missing", ["--dataroot", "--work-dir"])
def test_a_run_needs_data_and_a_folder(tmp_path: Path, capsys: Any, missing: str) -> None:
    options = arguments(tmp_path)
    at = options.index(missing)
    with pytest.raises(SystemExit):
        parse_arguments(options[:at] + options[at + 2 :])
    assert f"{missing} is needed" in capsys.readouterr().err
    assert parse_arguments([*options[:at], *options[at + 2 :], "--dry-run"]).dry_run


def test_a_checkpoint_that_is_named_needs_no_other_start(tmp_path: Path) -> None:
    options = [a for a in arguments(tmp_path, "x", "--resume", "some.pt") if a != "--from-scratch"]
    assert resolve_config(parse_arguments(options)).name == "tiny_stage2"
    with pytest.raises(ConfigError):
        resolve_config(parse_arguments([a for a in options if a not in ("--resume", "some.pt")]))
