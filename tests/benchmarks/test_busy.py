# SPDX-License-Identifier: Apache-2.0
"""The step beside busy processes is measured with both kinds of waiting, and the busy processes end with it."""

from __future__ import annotations

import re
import sys

import psutil
import pytest

from bevnext_benchmarks import busy
from tests.paths import ROOT


def test_a_row_per_load(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    weights = str(ROOT / "weights" / "demo_stage2.safetensors")
    arguments = ["busy", "--checkpoint", weights, "--beside", "1", "--warmup", "0", "--threads", "1"]
    arguments += ["--steps", "3", "--seconds", "0", "--ways", "active"]
    monkeypatch.setattr(sys, "argv", arguments)
    busy.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0] == "| busy processes | active | passive | ratio |"
    assert len(rows) == 3 and re.fullmatch(r"\| 1 (\| [1-9][0-9]* \([0-9]+ to [0-9]+\) ){2}\| [0-9.]+ \|", rows[2])
    beside = [p.cmdline() for p in psutil.Process().children() if "while True: pass" in " ".join(p.cmdline())]
    assert not beside
