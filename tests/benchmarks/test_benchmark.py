"""``bevnext benchmark``: what it measures is there, is right, and can be compared."""

from __future__ import annotations

import copy
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bevnext_benchmarks import workload
from bevnext_benchmarks.measure import MODES, MODULES, STAGES, Case, measure
from bevnext_benchmarks.probe import Probe, operator_seconds
from bevnext_benchmarks.report import FORMAT, compare, read_results, table
from bevnext_benchmarks.step import scale_axes
from bevnext_benchmarks.workload import drive_frame, random_network, rigs_step, scaled
from bevnext_core.cli.main import main
from bevnext_core.config import ConfigError, ModelConfig, config_to_mapping, load_config, published_config
from bevnext_core.errors import BevnextError

TINY = """
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
    monkeypatch.setattr(workload, "SOURCE_SIZE", (320, 180))


# -------------------------------------------------------------------------------------------- inputs
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


@pytest.mark.usefixtures("small_images")
def test_rigs_at_once_stream_what_their_windows_give(tiny: ModelConfig) -> None:
    model = random_network(tiny)
    streamed, window = (rigs_step(model, 2, mode, CPU, nullcontext)() for mode in ("streaming", "window"))
    alone = rigs_step(model, 1, "window", CPU, nullcontext)()
    for a, b, c in zip(streamed.tasks, window.tasks, alone.tasks, strict=True):
        assert a["heatmap"].shape[0] == 2
        torch.testing.assert_close(a["heatmap"], b["heatmap"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a["heatmap"][:1], c["heatmap"], rtol=1e-3, atol=1e-3)
        assert (a["heatmap"][0] - a["heatmap"][1]).abs().max() > 1e-2, "both rigs got the same input"


# -------------------------------------------------------------------------------------------- measuring
@pytest.mark.usefixtures("small_images")
def test_plain_forms_are_measured_when_asked_for(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVNEXT_CRF", "auto")  # so that what the measurement sets is taken back
    monkeypatch.setenv("BEVNEXT_BEV_POOL", "auto")
    case = Case("single", config_to_mapping(tiny), warmup=0, repeats=1, detail=False, plain=True)
    plain = measure(case)["forms"]
    assert plain["CRF"] == plain["BEV pooling"] == plain["convolutions"] == "plain"


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("mode", MODES)
def test_every_part_is_measured_and_the_stages_make_the_whole(tiny: ModelConfig, mode: str) -> None:
    result = measure(Case(mode, config_to_mapping(tiny), warmup=1, repeats=3))
    assert list(result["stages"]) == [*STAGES, "rest"]
    assert set(result["components"]) == {*MODULES.values(), "depth network", "plan"}
    parts = [*result["stages"].values(), *result["components"].values()]
    for part in [result, *parts]:
        assert len(part["values_s"]) == 3
        assert part["min_s"] <= part["median_s"] <= part["max_s"]
        assert result["peak_bytes"] >= part["peak_bytes"] > 0
    for index, whole in enumerate(result["values_s"]):
        assert sum(part["values_s"][index] for part in result["stages"].values()) == pytest.approx(
            whole, abs=1e-5
        )
    # What no stage accounts for is little: a step that goes another way than the hooks would show here.
    rest = result["stages"]["rest"]["values_s"]
    assert min(r / w for r, w in zip(rest, result["values_s"], strict=True)) < 0.3
    encode, lift = (result["stages"][name]["median_s"] for name in ("encode", "lift"))
    assert encode > result["components"]["backbone"]["min_s"] > 0
    assert lift > result["components"]["BEV pooling"]["min_s"] > 0
    assert 0 < result["convolution_share"] < 1
    assert sum(result["operators"].values()) < result["profiled_s"] * 1.05


def test_a_slow_part_is_seen_in_its_place() -> None:
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return x

    slow, quick, probe = Slow(), nn.Identity(), Probe(CPU)
    probe.watch_module(slow, "slow")
    probe.watch_module(quick, "quick")
    for keep in (False, True, True):
        with probe.span("whole"):
            quick(slow(torch.ones(1)))
            slow(torch.ones(1))
        probe.end_of_run(keep)
    assert len(probe.seconds["slow"]) == 2
    assert min(probe.seconds["slow"]) >= 0.1
    assert min(probe.seconds["quick"]) < 0.05
    for whole, slow_s, quick_s in zip(*(probe.seconds[k] for k in ("whole", "slow", "quick")), strict=True):
        assert whole >= slow_s + quick_s


def test_memory_of_a_span_is_seen() -> None:
    probe = Probe(CPU)
    with probe.sampling():
        with probe.span("small"):
            time.sleep(0.02)
        with probe.span("outer"), probe.span("large"):
            block = np.ones(2**26, np.uint8)
            time.sleep(0.02)
            del block
    assert probe.peak["large"] - probe.peak["small"] > 2**25
    assert probe.peak["outer"] >= probe.peak["large"]


def test_convolutions_are_told_from_the_rest() -> None:
    conv, linear = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(256, 256)
    images, rows = torch.randn(2, 32, 64, 64), torch.randn(512, 256)
    with torch.no_grad():
        conv(images), linear(rows)
        whole, only_conv = operator_seconds(lambda: [conv(images) for _ in range(5)], CPU)
        _, both = operator_seconds(lambda: [linear(conv(images).sum() + rows) for _ in range(5)], CPU)
    assert set(only_conv) == {"convolution"}
    assert 0.3 * whole < only_conv["convolution"] <= whole
    assert both["convolution"] > 0 and both["matrix product"] > 0


# -------------------------------------------------------------------------------------------- sizes
def test_sizes_are_changed_and_wrong_ones_named() -> None:
    config = published_config(2)
    assert scaled(config, "history", "2").history.frames == 2
    assert scaled(config, "bev", "64").bev.size == 64
    assert scaled(config, "bev", "64").bev.extent == config.bev.extent
    assert scaled(config, "image", "128x352").image.feature_size == (16, 44)
    assert scaled(config, "batch", "4") == config
    for axis, value, text in (
        ("history", "3", "three equal groups"),
        ("image", "100x352", "multiple of 32"),
        ("image", "128", "HEIGHTxWIDTH"),
        ("bev", "60", "multiple of 8"),
        ("batch", "0", "at least 1"),
        ("batch", "many", "'many'"),
        ("depth", "1", "known are batch"),
    ):
        with pytest.raises((BevnextError, ConfigError), match=text):
            scaled(config, axis, value)


def test_axes_are_read() -> None:
    assert scale_axes([]) == {}
    assert scale_axes(["batch=1,3"]) == {"batch": ("1", "3")}
    assert set(scale_axes(["all", "bev=64"])) == set(workload.SCALES)
    assert scale_axes(["all", "bev=64"])["bev"] == ("64",)
    with pytest.raises(BevnextError, match="unknown 'width'"):
        scale_axes(["width=3"])


# -------------------------------------------------------------------------------------------- the command
@pytest.mark.slow
def test_the_command_writes_json_and_a_plot(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, png = tmp_path / "result.json", tmp_path / "result.png"
    drawn = pytest.importorskip("matplotlib", reason="matplotlib is not installed: no plot") and [
        f"--plot={png}"
    ]
    arguments = ["benchmark", "--config", str(tiny_file), "--modes", "streaming", "--scale", "batch=2"]
    arguments += ["--repeats", "2", "--threads", "1", "--out", str(out), *drawn]
    assert main(arguments) == 0
    results = read_results(out)
    assert results["format"] == FORMAT and results["network"] == "tiny" and results["threads"] == 1
    assert {"date", "revision", "processor", "cores", "torch"} <= set(results["environment"])
    assert results["modes"]["streaming"]["boxes"] > 0
    (point,) = results["scale"]["batch"]
    assert (point["value"], point["mode"], point["rigs"]) == ("2", "streaming", 2)
    printed = capsys.readouterr().out
    assert "BEV pooling" in printed and "not in convolutions" in printed and "rigs at once" in printed
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and png.stat().st_size > 5000
    assert main(["benchmark", "--compare", str(out), str(out)]) == 0
    compared = capsys.readouterr().out
    assert "differs" not in compared and "1.00 ~" in compared


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--modes", "sideways"], "unknown sideways"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--scale", "history=4"], "three equal groups"),
        (["--plot", "picture.pdf"], "must end in .png"),
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
def part(seconds: float, spread: float = 0.02) -> dict[str, Any]:
    low, high = seconds * (1 - spread), seconds * (1 + spread)
    values = [low, seconds, high]
    return {"median_s": seconds, "min_s": low, "max_s": high, "values_s": values, "peak_bytes": 2**30}


def results(seconds: float, **changes: Any) -> dict[str, Any]:
    mode = {
        **part(seconds),
        "watched_s": seconds,
        "boxes": 7,
        "profiled_s": seconds,
        "operators": {"convolution": seconds * 0.6},
        "convolution_share": 0.6,
        "convolution_shares": [0.6],
        "stages": {"encode": part(seconds * 0.75), "rest": part(seconds * 0.25)},
        "components": {"CRF": part(seconds * 0.25)},
    }
    environment = {
        "date": "2026-01-02T03:04:05+00:00",
        "revision": "abc",
        "device": "cpu",
        "processor": "P",
        "cores": 2,
        "load": 0.1,
        "torch": "2.15.0",
    }
    found = {
        "format": FORMAT,
        "environment": environment,
        "network": "n",
        "threads": 2,
        "forms": {"CRF": "c++"},
        "precision": "fp32",
        "options": "own",
        "modes": {"streaming": mode, "window": copy.deepcopy(mode)},
        "scale": {"bev": [{"value": "64", "mode": "streaming", **part(seconds)}]},
    }
    found["environment"] |= {name: changes.pop(name) for name in list(changes) if name in environment}
    return {**found, **changes}


def test_ratios_are_of_a_over_b_and_chance_is_marked() -> None:
    lines = compare(results(3.0), results(2.0)).splitlines()
    (whole, *_) = [line for line in lines if line.startswith("whole")]
    assert whole.split() == ["whole", "3000.00", "2000.00", "1.50", "1.00"]
    (crf, *_) = [line for line in lines if line.strip().startswith("CRF  ")]
    assert "1.50" in crf
    assert any(line.strip().startswith("64 streaming") and "1.50" in line for line in lines)
    assert not any("note:" in line for line in lines)
    (whole, *_) = [
        line for line in compare(results(2.0), results(2.01)).splitlines() if line.startswith("whole")
    ]
    assert "~" in whole


@pytest.mark.parametrize(
    "changes",
    [{"processor": "Q"}, {"threads": 1}, {"torch": "2.11.0"}, {"precision": "bf16"}, {"options": "key"}],
)
def test_other_circumstances_are_noted(changes: dict[str, Any]) -> None:
    (name,) = changes
    text = compare(results(3.0), results(2.0, **changes))
    notes = [line for line in text.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and f"{name} differs" in notes[0] and str(changes[name]) in notes[0]


def test_what_only_one_measured_is_left_out() -> None:
    one = results(3.0)
    del one["modes"]["window"], one["scale"]
    text = compare(results(3.0), one)
    assert "window" not in text and "64 streaming" not in text


def test_the_table_says_shares_and_other_load() -> None:
    text = table(results(2.0))
    assert "not in convolutions: 40.0%" in text and "window / streaming: 1.00" in text
    assert "other work" not in text and "other work" in table(results(2.0, load=7.0))


def test_files_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    for text, message in (
        ("{", "not JSON"),
        ("[]", "measure it again"),
        (json.dumps({"modes": {}}), "measure it"),
    ):
        path.write_text(text)
        with pytest.raises(BevnextError, match=message):
            read_results(path)
