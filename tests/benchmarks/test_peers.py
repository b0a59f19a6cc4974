# SPDX-License-Identifier: Apache-2.0
"""The benchmark of peers runs every form, in turns, and compares what they give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from bevnext_benchmarks import peers
from bevnext_benchmarks.random_network import TINY
from bevnext_core.config import config_to_mapping
from bevnext_tools.cli.main import main
from bevnext_tools.export import noise_drive


@pytest.mark.slow
def test_every_form_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name, reason=f"{name} is not installed (the extra 'peers'): the peers are not measured")
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(config_to_mapping(TINY)))
    assert main(["peers", "--config", str(config), "--rounds", "2", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "tiny, " in text and "1 threads, 2 rounds" in text
    for part in peers.PARTS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {part} ")]
        assert len(re.findall(r"[\d.e-]+ \([\d.e-]+\)", row)) == len(peers.FORMS)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers, "NEEDED", ("torch", "no_such_runtime"))
    assert main(["peers"]) == 2
    assert capsys.readouterr().err == "bevnext: error: peers needs no_such_runtime: pip install no_such_runtime\n"


def test_what_gives_something_else_is_not_measured() -> None:
    order: list[str] = []

    def form(name: str, factor: float) -> peers.Work:
        def work() -> list[torch.Tensor]:
            order.append(name)
            return [torch.full((3,), factor)]

        return work

    forms = {"here, fp32": form("a", 1.0), "there, fp32": form("b", 1.0)}
    found = peers.measure(forms, "encode", 2, 1)
    assert [m.description for m in found] == list(forms) and [len(m.times) for m in found] == [2, 2]
    assert "".join(order) == "aab" + 2 * "aabb"  # compared, then in turns, each with a run to warm up
    with pytest.raises(AssertionError, match=r"encode: 'there, fp32' is off by 2.0e-02"):
        peers.measure({**forms, "there, fp32": form("b", 1.02)}, "encode", 2, 1)
