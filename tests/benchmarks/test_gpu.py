# SPDX-License-Identifier: Apache-2.0
"""``make gpu``: its dry form runs with nothing but what it names; each part sees its subject broken."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bevnext_benchmarks import training as training_benchmark
from bevnext_benchmarks.gpu import __main__ as gpu
from bevnext_benchmarks.gpu import kernels, network, training
from bevnext_benchmarks.gpu.part import Part
from bevnext_core.detector import Detector
from bevnext_core.export.package import DetectProgram
from bevnext_core.frame import CameraFrame
from bevnext_core.network.bevnext import HeadMaps
from bevnext_core.ops.bev_pool import operator as bev_pool_op
from bevnext_core.ops.crf import operator as crf_op
from bevnext_tools.export import noise_drive
from tests.paths import ROOT

ALLOWED = (
    *("torch", "torchvision", "numpy", "cv2", "PIL", "safetensors", "yaml", "pydantic", "pyquaternion"),
    *("pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"),  # pydantic's
    *("sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "setuptools", "triton"),  # torch's
    *("torchgen", "functorch", "_distutils_hack", "_yaml"),
    *("bevnext_core", "bevnext_benchmarks", "training", "tests"),
)
BLOCK = f"""
import importlib.machinery, sys

find = importlib.machinery.PathFinder.find_spec

def found(name, path=None, target=None):
    if path is None and name not in {ALLOWED!r}:  # Python's own, and what setuptools brings
        path = [folder for folder in sys.path if "-packages" not in folder or "setuptools" in folder]
    return find(name, path, target)

importlib.machinery.PathFinder.find_spec = staticmethod(found)
"""


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Part:
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))
    return Part("cpu", "tiny")


# -------------------------------------------------------------------------------------------- the command
@pytest.mark.slow
def test_the_dry_form_needs_nothing_but_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    command = ["make", "gpu", "DEVICE=cpu", "SIZE=tiny", f"REPORT={tmp_path}", f"PYTHON={sys.executable}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpu: not here: pytest; left out" in done.stdout  # it is blocked, as all that is not named
    report = json.loads((tmp_path / "gpu_report.json").read_text())
    without = "" if gpu.program("compute-sanitizer") else "f"
    states = {letter: "left out" if letter in without else "passed" for letter in "abcdefg"}
    assert {letter: found["state"] for letter, found in report["parts"].items()} == states
    assert {"machine", "revision", "date", "python"} <= set(report["environment"])
    text = (tmp_path / "gpu_report.md").read_text()
    for expected in ("cuda, emulated", "BEVPoolv2", "| fp16 | task", "| window | fp32", "shared, 1 runs of 4"):
        assert expected in text, expected


def wheel(folder: Path, name: str) -> None:
    """A wheel of one empty module."""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        about = f"{name}-1.0.dist-info"
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def test_what_is_missing_is_said_first_and_installed_from_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "bevnext_made_up"
    monkeypatch.setattr(gpu, "NEEDED", ("torch", name))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    arguments = ["--device", "cpu", "--parts", "", "--out", str(tmp_path / "out")]
    assert gpu.main(arguments) == 2
    assert f"gpu: missing: {name}; WHEELS=FOLDER" in capsys.readouterr().err
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", name)
    assert gpu.main([*arguments, "--wheels", str(tmp_path / "wheels")]) == 0
    assert importlib.util.find_spec(name) is not None
    assert str(tmp_path / "out" / "gpu_packages") in os.environ["PYTHONPATH"]


def test_a_part_that_fails_or_takes_too_long_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "x": gpu.Part("has no such function", "kernels:nothing", 100),
        "y": gpu.Part("takes too long", "kernels:right", 6),
        "z": gpu.Part("has no time left", "kernels:right", 6),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "TOTAL", 1e6)
    ended = gpu.run_part

    def run(letter: str, part: gpu.Part, limit: float, arguments: list[str], out: Path) -> dict[str, Any]:
        # a limit that no process keeps, and from then on the time is up
        if letter == "y":
            limit = 0.3
            monkeypatch.setattr(gpu.time, "monotonic", lambda now=gpu.time.monotonic: now() + 1e7)
        return ended(letter, part, limit, arguments, out)

    monkeypatch.setattr(gpu, "run_part", run)
    monkeypatch.setenv("PYTHONPATH", "")
    assert gpu.main(["--device", "cpu", "--size", "tiny", "--parts", "xyz", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu_report.json").read_text())["parts"]
    assert found["x"]["state"] == "failed" and "has no attribute 'nothing'" in found["x"]["said"]
    assert found["y"]["state"] == "stopped after 0 s" and found["z"]["state"] == "left out: no time left"
    assert "has no attribute 'nothing'" in (tmp_path / "gpu_report.md").read_text()
    assert "gpu: y: stopped after 0 s" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------- broken on purpose
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, right: str, wrong: str) -> None:
    """The operators' sources with one mistake; what was compiled before is not used."""
    shutil.copytree(ROOT / "bevnext_core" / "ops", tmp_path / "ops")
    source = tmp_path / "ops" / file
    assert source.read_text().count(right) >= 1
    source.write_text(source.read_text().replace(right, wrong))
    operator = {"bev_pool": bev_pool_op, "crf": crf_op}[source.parent.name]
    monkeypatch.setattr(operator.CUDA, "source", source)


@pytest.mark.parametrize(
    ("file", "right", "wrong", "text"),
    [
        ("bev_pool/bev_pool.cu", "points[base + lane]", "points[base]", "BEV pooling, 2 frame(s), float32, forward: '"),
        ("crf/crf.cu", "kernel[tap *", "kernel[(8 - tap) *", "CRF, 2 iterations, forward: 'cuda, emulated' is off"),
    ],
)
def test_a_wrong_index_in_a_kernel(
    part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, right: str, wrong: str, text: str
) -> None:
    broken(monkeypatch, tmp_path, file, right, wrong)
    kernels.compare(part)
    assert part.failures and all("emulated" in failure for failure in part.failures)
    assert any(failure.startswith(text) for failure in part.failures), part.failures


def test_operators_that_fall_back_and_a_resize_that_is_off(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = kernels.resize_and_crop_on_device
    monkeypatch.setattr(kernels, "compare", lambda part: None)
    monkeypatch.setattr(kernels, "mean_field_form", lambda device: "plain")
    monkeypatch.setattr(kernels, "resize_and_crop_on_device", lambda *given: resize(*given) // 2 * 2)
    kernels.right(part)
    assert part.failures == [
        "CRF has no compiled form here: 'plain' is used",
        "the resize on the device is off by 1 grey levels from PIL's",
    ]


def test_gpu_tests_that_fail(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TESTS", ("test_device_resize",))
    kernels.gpu_tests(part)
    assert not part.failures and part.notes[0].startswith("pytest -m gpu: ")
    monkeypatch.setattr(kernels, "TESTS", ("no_such_file",))
    kernels.gpu_tests(part)
    assert part.failures and "no_such_file" in part.failures[0]


def test_a_drift_from_the_reference(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = network.build

    def moved(variant: str) -> Any:
        model = whole(variant)
        with torch.no_grad():
            model.box_head.tasks[0]["reg"][-1].bias += 1.0
        return model

    monkeypatch.setattr(network, "build", moved)
    network.goldens(part)
    assert [failure.split(" drifts by ")[0] for failure in part.failures[::2]] == ["fp32: task0.reg", "fp16: task0.reg"]
    assert "of the reference's boxes are found" in part.failures[1]


def test_a_baseline_that_pools_something_else(part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken(monkeypatch, tmp_path, "bev_pool/bev_pool.cu", "sum += depth[points[i]]", "sum += depth[points[i] + 1]")
    with pytest.raises(AssertionError, match="forward: 'BEVPoolv2' is off by"):
        kernels.speed(part)


def step_failure(part: Part, way: str) -> str:
    """The failure of the fp32 step in one way."""
    model = network.random_network(part.config())
    eager = {"fp32": network.head_maps(part, network.detector(part, model, "fp32", "eager"))}
    part.table("form")
    network.measured_step(part, model, "fp32", way, eager)
    (failure,) = part.failures
    return failure


def test_a_window_that_detects_something_else(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    def older(detector: Detector, frames: list[CameraFrame], published: bool) -> HeadMaps:
        return window(detector, frames[:1] + frames[2:], published)

    window = Detector.window_maps
    monkeypatch.setattr(Detector, "window_maps", older)
    assert step_failure(part, "window").startswith("window, fp32: head maps ")


def test_a_compiled_step_that_detects_something_else(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(program: Any, **_: Any) -> Callable[..., Any]:
        wrong = 1.01 if isinstance(program, DetectProgram) else 1
        return lambda *inputs: tuple(value * wrong for value in program(*inputs))

    monkeypatch.setattr(torch, "compile", compiler)
    assert step_failure(part, "default") == "default, fp32: head maps 1.0e-02 from eager ones, allowed 0.002"


def test_a_step_that_cannot_be_compiled(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(*_: Any, **__: Any) -> Callable[..., Any]:
        def fail(*_: Any) -> None:
            raise RuntimeError("no compiler")

        return fail

    monkeypatch.setattr(torch, "compile", compiler)
    failure = step_failure(part, "default")
    assert "'encode' cannot be compiled" in failure and "'detect' cannot be compiled" in failure


def test_a_loss_that_is_not_finite(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    make = training_benchmark.make

    def broken_network(*given: Any) -> Any:
        step, batch = make(*given)
        with torch.no_grad():
            step.network.box_head.tasks[0]["reg"][-1].bias += float("nan")
        return step, batch

    monkeypatch.setattr(training_benchmark, "make", broken_network)
    with pytest.raises(ArithmeticError, match="the loss of a synthetic batch became nan"):
        training.training(part)


def test_what_the_sanitizer_finds(part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "========= ERROR SUMMARY: 1 error"\ncase "$2" in racecheck) exit 9;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    kernels.sanitizer(part)
    assert part.failures == ["racecheck ended with 9: ERROR SUMMARY: 1 error"]
    assert [row[0] for row in part.tables[0][1:]] == ["memcheck", "racecheck"]


def test_a_package_that_computes_something_else(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    load = network.load_package

    def changed(*given: Any) -> Any:
        package = load(*given)
        detect = package.programs["detect"]
        package.programs["detect"] = lambda *inputs: [value * 1.01 for value in detect(*inputs)]
        return package

    monkeypatch.setattr(network, "load_package", changed)
    network.export(part)
    (failure,) = part.failures
    assert failure.startswith("fp32: the package drifts by 1.0e-02")
