# SPDX-License-Identifier: Apache-2.0
"""The benchmark's inputs are not degenerate, its parts make the whole, and its comparisons say what they compare."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.benchmark import Measurement

from bevnext_benchmarks import measure as measure_module
from bevnext_benchmarks import operators
from bevnext_benchmarks.measure import COMPONENTS, MODES, STAGES, Case, measure
from bevnext_benchmarks.report import FORMAT, compare, parts, read_results, table
from bevnext_core.config import ModelConfig, load_config
from bevnext_core.errors import BevnextError
from bevnext_tools.cli.main import main
from bevnext_tools.export import noise_drive
from bevnext_tools.export.noise_drive import drive_frame
from tests.paths import ROOT

TINY = """\
name: tiny
channels: 16
image: {height: 64, width: 160}
backbone: {base_channels: 8, neck_channels: 32}
depth: {min: 1.0, max: 60.0, step: 4.0, mid_channels: 16, crf_iterations: 2}
bev: {extent: 51.2, cell: 6.4, z_min: -5.0, z_max: 3.0, encoder_channels: 32}
history: {frames: 2, interval: 0.5}
refinement: {heads: 4, height_anchors: 4, feedforward_ratio: 2}
head: {shared_channels: 16, branch_channels: 16, max_candidates: 20}
"""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_file: Path) -> ModelConfig:
    return load_config(tiny_file)


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))


def test_inputs_are_neither_zero_nor_alike(tiny: ModelConfig) -> None:
    frames = [drive_frame(tiny, index) for index in range(3)]
    images = [image for frame in frames for image in frame.images if image is not None]
    assert len(images) == 18 and all(image.shape == (900, 1600, 3) for image in images)
    assert min(image.std() for image in images) > 30
    for first in range(len(images)):
        for second in range(first):
            assert not np.array_equal(images[first], images[second])
    poses = [frame.global_from_ego[:2, 3] for frame in frames]
    assert np.linalg.norm(poses[1] - poses[0]) == pytest.approx(10, rel=0.1)  # 20 m/s


# -------------------------------------------------------------------------------------------- measuring
@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("mode", MODES)
def test_every_part_is_measured_and_the_stages_make_the_whole(
    tiny: ModelConfig, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "PROFILED", 1)
    result = measure(Case(mode, tiny, seconds=0))
    found = parts(result)
    assert list(found) == [
        *("whole", "profiled", *STAGES, "rest"),
        *(f"  {name}" for name in COMPONENTS),
        "convolutions",
    ]
    seconds = {name: values[0] for name, values in found.items()}
    assert min(seconds.values()) > 0 and result["boxes"] > 0 and result["peak_bytes"] > 2**20
    # What is measured once lies within what it is a part of: nothing is counted twice.
    assert seconds["  backbone, neck"] + seconds["  depth network"] + seconds["  CRF"] <= seconds["encode"]
    assert seconds["  BEV pooling"] + seconds["  pre-process net"] <= seconds["lift"]
    assert seconds["  BEV backbone, neck"] + seconds["  heads"] + seconds["  refinement"] <= seconds["detect"]
    assert seconds["convolutions"] <= seconds["encode"] + seconds["lift"] + seconds["detect"]


@pytest.mark.usefixtures("small_images")
def test_plain_forms_are_measured_when_asked_for(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVNEXT_CRF", "auto")  # so that what the measurement sets is taken back
    monkeypatch.setenv("BEVNEXT_BEV_POOL", "auto")
    plain = measure(Case("single", tiny, seconds=0, plain=True))["forms"]
    assert plain["CRF"] == plain["BEV pooling"] == plain["convolutions"] == "plain"


def test_peak_memory_is_that_of_the_block() -> None:
    """In a process of its own, as measurements are: here the block could lie in memory that others have freed."""
    code = """
import numpy as np, torch
from bevnext_benchmarks.measure import peak_memory

block = np.ones(2**26, np.uint8)
del block
with peak_memory(torch.device("cpu")) as small:
    pass
with peak_memory(torch.device("cpu")) as large:
    block = np.ones(2**26, np.uint8)
    del block
print(large["peak_bytes"] - small["peak_bytes"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2**25


def test_operators_are_compared_before_they_are_timed(tiny: ModelConfig) -> None:
    for case in (operators.pooling(tiny, 2, torch.float32, "cpu"), operators.crf(tiny, "cpu")):
        found = operators.measure(case, seconds=0)
        assert {(m.sub_label, m.description) for m in found} == {
            (way, form) for way in operators.WAYS for form in ("c++", "plain")
        }
        assert all(isinstance(m, Measurement) and m.median > 0 for m in found)
        right = case.forms["c++"]
        case.forms["c++"] = lambda *inputs, right=right, **fixed: right(*inputs, **fixed) * 1.01
        with pytest.raises(AssertionError, match=r"forward: 'c\+\+' is off by"):
            operators.measure(case, seconds=0)


# -------------------------------------------------------------------------------------------- the command
def test_the_command_writes_what_it_compares(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    arguments = ["benchmark", "--config", str(tiny_file), "--modes", "streaming", "--seconds", "0"]
    assert main([*arguments, "--threads", "1", "--out", str(out)]) == 0
    results = read_results(out)
    assert results["format"] == FORMAT and results["network"] == "tiny" and results["threads"] == 1
    assert {"date", "revision", "machine"} <= set(results["environment"])
    assert "BEV pooling" in capsys.readouterr().out
    assert main(["benchmark", "--compare", str(out), str(out)]) == 0
    compared = capsys.readouterr().out
    assert "differs" not in compared and "1.00 ~" in compared


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--modes", "sideways"], "unknown sideways"),
        (["--seconds", "-1"], "--seconds and --threads must not be negative"),
        (["--compiled", "x.pt2"], "--compiled needs --checkpoint"),
        (["--compare", "nowhere.json", "nowhere.json"], "no such file"),
        (["--checkpoint", "nowhere.safetensors"], "no such checkpoint"),
    ],
)
def test_mistakes_cost_one_line_and_no_measuring(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error and "measuring" not in error and error.count("\n") == 1


# -------------------------------------------------------------------------------------------- comparing
def results(seconds: float, **changes: Any) -> dict[str, Any]:
    def around(value: float) -> list[float]:
        return [0.98 * value, value, 1.02 * value]

    parts = {"whole": 1.0, "encode": 0.75, "CRF": 0.25, "convolutions": 0.6}
    mode = {
        "times_s": around(seconds),
        "boxes": 7,
        "peak_bytes": 2**30,
        "components_s": {name: around(share * seconds) for name, share in parts.items()},
    }
    found = {
        "format": FORMAT,
        "environment": {"date": "2026-01-02T03:04:05", "revision": "abc", "machine": "P", "load": 0.1},
        "network": "n",
        "threads": 2,
        "forms": {"CRF": "c++"},
        "precision": "fp32",
        "precision_asked": "fp32",
        "modes": {"streaming": mode, "window": copy.deepcopy(mode)},
    }
    found["environment"] |= {name: changes.pop(name) for name in list(changes) if name in found["environment"]}
    return {**found, **changes}


def row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.strip().startswith(name + "  "))


def test_the_table_has_medians_quartiles_and_shares() -> None:
    text = table(results(2.0))
    assert row(text, "whole") == ["whole", "2000.00", "1980.00", "to", "2020.00", "100.0%"]
    assert row(text, "rest")[-1] == "25.0%" and row(text, "CRF")[-1] == "25.0%"
    assert "peak 1024 MiB, 7 boxes" in text


def test_ratios_are_of_a_over_b_and_chance_is_marked() -> None:
    text = compare(results(3.0), results(2.0))
    assert row(text, "whole") == ["whole", "3000.00", "2000.00", "1.50"]
    assert row(text, "CRF")[-1] == "1.50" and "note:" not in text and "memory 1.00" in text
    assert row(compare(results(2.0), results(2.01)), "whole")[-1] == "~"


@pytest.mark.parametrize("changes", [{"machine": "Q"}, {"threads": 1}, {"precision": "bf16"}])
def test_other_circumstances_are_noted(changes: dict[str, Any]) -> None:
    (name,) = changes
    text = compare(results(3.0), results(2.0, **changes))
    notes = [line for line in text.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and f"{name} differs" in notes[0] and str(changes[name]) in notes[0]


def test_what_only_one_measured_is_left_out() -> None:
    one = results(3.0)
    del one["modes"]["window"], one["modes"]["streaming"]["components_s"]["CRF"]
    text = compare(results(3.0), one)
    assert "window" not in text and "CRF  " not in text and "encode" in text


def test_files_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    for text, message in (("{", "not JSON"), ("[]", "measure it again"), (json.dumps({"modes": {}}), "measure it")):
        path.write_text(text)
        with pytest.raises(BevnextError, match=message):
            read_results(path)
