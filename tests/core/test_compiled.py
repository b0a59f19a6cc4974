# SPDX-License-Identifier: Apache-2.0
"""Which form an operator takes, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bevnext_core.errors import ConfigError
from bevnext_core.ops import compiled, native
from bevnext_core.ops.compiled import INT64, POINTER, Forms, HostCode
from bevnext_core.ops.native import NativeBuildError
from tests.paths import ROOT

VARIABLE = "BEVNEXT_SHARING"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was logged as a warning."""
    found: list[str] = []
    monkeypatch.setattr(compiled._log, "warning", lambda text, *values: found.append(text % values))
    return found


def forms() -> Forms:
    code = HostCode(Path(__file__).with_name("share.cpp"), {"count_tasks": [INT64, POINTER]})
    return Forms("sharing", VARIABLE, [code])


def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise NativeBuildError("no C++ compiler found")

    monkeypatch.setattr(native, "load", load)


def test_compiled_where_it_can_be(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one = forms()
    for wanted in ("auto", "native"):
        monkeypatch.setenv(VARIABLE, wanted)
        assert one.on("cpu") == "c++"
    monkeypatch.setenv(VARIABLE, "plain")
    assert one.on("cpu") == "plain"
    assert not lines


def test_without_a_compiler(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain form with one line in the log; an error where the native form is asked for."""
    without_a_compiler(monkeypatch)
    one = forms()
    assert [one.on("cpu") for _ in range(3)] == ["plain"] * 3
    assert lines == ["sharing uses plain PyTorch on cpu, which is slower: no C++ compiler found"]
    monkeypatch.setenv(VARIABLE, "native")
    for _ in range(2):
        with pytest.raises(NativeBuildError, match="no C\\+\\+ compiler found"):
            one.on("cpu")


def test_other_devices(lines: list[str]) -> None:
    one = forms()
    for kind in ("cuda", "mps"):
        assert one.on(kind) == "plain"
    assert [line.rpartition(": ")[2] for line in lines] == [
        f"there is no compiled form for {kind}" for kind in ("cuda", "mps")
    ]


def test_the_form_is_a_constant_for_a_tracer() -> None:
    """As PyTorch's decorator has it, which is not used for what it imports."""
    assert vars(Forms.on) == vars(torch.compiler.assume_constant_result(lambda: 0))


def test_importing_the_detector_imports_no_compiler() -> None:
    """It would take seconds at every start of every program."""
    code = "import sys, training.train; print({'torchvision', 'torch._dynamo'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_wrong_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "quick")
    with pytest.raises(ConfigError, match="BEVNEXT_SHARING='quick': must be auto, native or plain"):
        forms().on("cpu")
