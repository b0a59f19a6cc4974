# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that would run code when unpickled, given to every command that takes one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bevnext_core.errors import CheckpointError
from bevnext_ros.node.detector_factory import make_detector
from bevnext_ros.node.parameters import make_options
from bevnext_tools.cli.main import main as bevnext
from tests.training.tiny import arguments, tiny_dataroot
from training import ablate, evaluate, train

Command = tuple[Callable[[list[str]], int], list[str]]


class Malicious:
    """Unpickling this creates a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.victim}'",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("malicious")
    tiny_dataroot(folder)
    return folder


@pytest.fixture(params=["zip", "legacy", "pickle"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """As ``torch.save`` writes it, now and formerly, and as a pickle that is no PyTorch file."""
    content = {"state_dict": {"a": torch.zeros(3)}, "meta": Malicious(tmp_path / "victim")}
    if request.param == "pickle":
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(content["meta"]))
    else:
        torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=request.param == "zip")
    return tmp_path / "evil.pth"


def training(option: str, stage: int = 2, init: str = "") -> Callable[[Path, str], Command]:
    def command(folder: Path, file: str) -> Command:
        options = arguments(folder, f"run{option}{init}", option, file, stage=stage)
        options += ["--set", f"training.backbone_init={init}"] if init else []
        return train.main, [part for part in options if part != "--from-scratch" or option == "--resume"]

    return command


def scoring(main: Callable[[list[str]], int], *first: str, out: str = "--out") -> Callable[[Path, str], Command]:
    def command(folder: Path, file: str) -> Command:
        data = ["--dataroot", str(folder / "data"), "--version", "v1.0-mini", "--split", "mini_train"]
        return main, [*first, "--checkpoint", file, *data, out, str(folder / "out")]

    return command


def other(*first: str, out: str) -> Callable[[Path, str], Command]:
    return lambda folder, file: (bevnext, [*first, file, "--out", str(folder / out)])


COMMANDS = {
    "train.py --resume": training("--resume"),
    "train.py --init-from": training("--init-from"),
    "train.py --fine-tune": training("--fine-tune"),
    "train.py --backbone-weights, ImageNet": training("--backbone-weights", 1, "imagenet"),
    "train.py --backbone-weights, perspective": training("--backbone-weights", 1, "perspective"),
    "evaluate.py": scoring(evaluate.main),
    "ablate.py": scoring(ablate.main),
    "bevnext detect": scoring(bevnext, "detect"),
    "bevnext evaluate": scoring(bevnext, "evaluate"),
    "bevnext demo": other("demo", "--checkpoint", out="demo"),
    "bevnext benchmark": other("benchmark", "--checkpoint", out="b.json"),
    "bevnext export, compiled": other("export", "--checkpoint", out="n.pt2"),
    "bevnext export, ONNX": other("export", "--checkpoint", out="n.onnx"),
    "bevnext import-checkpoint": other("import-checkpoint", out="c.safetensors"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_the_type_on_one_line_and_runs_nothing(
    name: str, file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, options = COMMANDS[name](folder, str(file))
    assert main(options) in (1, 2)
    text = capsys.readouterr().err
    errors = [line for line in text.splitlines() if "error: " in line]
    assert len(errors) == 1 and text.splitlines()[-1] == errors[0] and "Traceback" not in text
    assert f"{file} holds an object of type {os.system.__module__}.system; only tensors" in errors[0]
    assert not (file.parent / "victim").exists()


def test_the_nodes_detector_names_the_type_and_runs_nothing(file: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"evil\.pth holds an object of type {os.system.__module__}\.system"):
        make_detector(make_options({"checkpoint": str(file)}, ""))
    assert not (file.parent / "victim").exists()


def test_the_payload_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "victim")))
    assert (tmp_path / "victim").exists()
