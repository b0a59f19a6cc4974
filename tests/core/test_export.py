# SPDX-License-Identifier: Apache-2.0
"""Compiled packages and ONNX files compute what the network does, and are refused where they do not fit."""

from __future__ import annotations

import copy
import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevnext_benchmarks.measure import Case, measure
from bevnext_benchmarks.random_network import TINY, random_network
from bevnext_core.checkpoint import load_checkpoint, save_checkpoint
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.export.package import (
    ExportedNetwork,
    ExportError,
    Package,
    describe,
    example_inputs,
    load_package,
    read_description,
)
from bevnext_core.frame import CameraFrame
from bevnext_core.network.bevnext import BEVNeXt, HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.programs import GEOMETRY, DetectProgram, EncodeProgram, ProgramNetwork
from bevnext_tools.cli.export import inputs, largest_difference
from bevnext_tools.cli.main import main
from bevnext_tools.export import noise_drive
from bevnext_tools.export.noise_drive import drive_frame
from tests.paths import ROOT

LIMIT = 1e-4
"""Relative L2 difference of a program's outputs for the same inputs."""
STREAM_LIMIT = 5e-4
"""The same after a stream: the history is as different as its own encodings were."""


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))


@pytest.fixture(scope="module")
def model() -> BEVNeXt:
    return random_network(TINY)


def uncompiled(model: BEVNeXt) -> Package:
    """A package whose programs are those that would be compiled."""
    examples = example_inputs(model, *inputs(model, 0))
    programs = {"encode": EncodeProgram(model), "detect": DetectProgram(model)}
    return Package(describe(model, examples, "fp32"), programs)


def masked(frame: CameraFrame) -> CameraFrame:
    return dataclasses.replace(frame, images=(frame.images[0], None), valid=np.array([True, False]))


def same_detections(a: Detector, b: Detector) -> None:
    """Step both along a drive, one camera masked in its third frame; head maps, then boxes must be the same."""
    for index in range(5):
        frame = drive_frame(TINY, index)
        ours, theirs = (part.step_maps(masked(frame) if index == 2 else frame) for part in (a, b))
        assert_same(ours, theirs)
    boxes, expected = (part.step(drive_frame(TINY, 5)) for part in (a, b))
    assert len(boxes) == len(expected) > 10
    np.testing.assert_array_equal(boxes.labels, expected.labels)
    np.testing.assert_allclose(boxes.boxes, expected.boxes, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(boxes.scores, expected.scores, atol=1e-3)


def assert_same(ours: HeadMaps, theirs: HeadMaps) -> None:
    for a, b in zip(ours.tasks, theirs.tasks, strict=True):
        for name, value in b.items():
            assert float((a[name] - value).norm() / value.norm()) <= STREAM_LIMIT, name


# -------------------------------------------------------------------------------------------- without a compiler
def test_the_programs_stand_in_for_the_network(model: BEVNeXt) -> None:
    network = ExportedNetwork(model, uncompiled(model))
    assert largest_difference(model, network, "fp32") == 0
    same_detections(Detector(network), Detector(model))
    frames = [drive_frame(TINY, index) for index in (2, 1, 0)]
    assert_same(*(Detector(part).window_maps(frames) for part in (network, model)))


def test_the_compiled_code_gets_the_layout_it_was_made_for(model: BEVNeXt) -> None:
    package = uncompiled(model)
    seen: list[tuple[int, ...]] = []
    encode = package.programs["encode"]

    def recorded(*values: torch.Tensor) -> Any:
        seen.extend(value.stride() for value in values)
        return encode(*values)

    package.programs["encode"] = recorded
    network = ExportedNetwork(model, package)
    images, colors, geometry = inputs(model, 1)
    parameters = geometry.camera_parameters().flatten(0, 2)
    with torch.no_grad():
        turned = images.contiguous(memory_format=torch.channels_last)
        assert turned.stride() != images.stride()
        torch.testing.assert_close(
            network.encode(turned, colors, parameters).depth, model.encode(images, colors, parameters).depth
        )
    assert seen == [images.stride(), colors.stride(), parameters.stride()]
    for wrong in (images[:1], images.double(), images[..., :-32]):
        with pytest.raises(ValueError, match="input 0 of 'encode'"):
            network.encode(wrong, colors, parameters)


def test_a_package_of_other_weights_or_another_network_is_refused(model: BEVNeXt) -> None:
    package = uncompiled(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.box_head.tasks[0]["reg"][-1].bias[0] += 1e-3  # type: ignore[index, union-attr, operator]
    with pytest.raises(ExportError, match="other weights"):
        ExportedNetwork(other, package)
    changed = dataclasses.replace(TINY, history=dataclasses.replace(TINY.history, frames=0))
    with pytest.raises(ExportError, match="history differ"):
        ExportedNetwork(BEVNeXt(changed), package)


def test_files_that_are_no_package_are_refused(model: BEVNeXt, tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    with pytest.raises(ExportError, match="no such package"):
        read_description(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(ExportError, match="is not a package"):
        read_description(path)
    good = uncompiled(model).description
    for text, names in (("{", 2), ("{}", 2), (json.dumps(good), 1)):
        write_package(path, text, names)
        with pytest.raises(ExportError, match="is not a package"):
            read_description(path)
    write_package(path, json.dumps(good), 2)
    assert read_description(path) == good
    write_package(path, json.dumps({**good, "format": "bevnext-package-1"}), 2)
    with pytest.raises(ExportError, match="'bevnext-package-1', needed is 'bevnext-package-2': run"):
        read_description(path)


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("torch", "1.0", "for PyTorch 1.0"),
        ("device", "cuda", "for device cuda"),
        ("precision", "bf16", "for precision bf16"),
    ],
)
def test_a_package_for_something_else_is_refused(
    model: BEVNeXt, tmp_path: Path, name: str, value: str, text: str
) -> None:
    path = tmp_path / "x.pt2"
    write_package(path, json.dumps({**uncompiled(model).description, name: value}), 2)
    with pytest.raises(ExportError, match=text):
        load_package(path, "cpu")


def write_package(path: Path, description: str, programs: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bevnext.json", description)
        for name in ("encode", "detect")[:programs]:
            archive.writestr(f"{name}.pt2", b"")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--out", "x.zip"], "must end in .pt2 or .onnx"),
        (["--out", "x.onnx", "--precision", "bf16"], "in fp32 or fp16, on the CPU"),
        (["--out", "x.pt2", "--fixed-shapes"], "--fixed-shapes is for ONNX files"),
        (["--out", "x.pt2"], "no such checkpoint"),
    ],
)
def test_mistakes_cost_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--checkpoint", "nowhere.safetensors", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


# -------------------------------------------------------------------------------------------- compiled
@pytest.mark.slow
def test_a_compiled_package_detects_what_the_network_does(
    model: BEVNeXt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, package = tmp_path / "tiny.safetensors", tmp_path / "tiny.pt2"
    save_checkpoint(checkpoint, model.state_dict(), TINY)
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(package)]) == 0
    assert "largest relative difference" in capsys.readouterr().out
    compiled = Detector.from_checkpoint(checkpoint, compiled=package)
    assert isinstance(compiled.model, ExportedNetwork)
    difference = largest_difference(model, compiled.model, "fp32")
    assert 0 < difference <= LIMIT  # exactly 0 would mean that the network itself had run
    same_detections(compiled, Detector(model))
    result = measure(Case("streaming", TINY, checkpoint=str(checkpoint), compiled=str(package), seconds=0))
    assert result["forms"]["convolutions"] == "package"
    assert min(result["components_s"]["encode"]) > 0 and "backbone, neck" not in result["components_s"]


@pytest.mark.slow
def test_onnx_files_compute_what_the_network_does(model: BEVNeXt, tmp_path: Path) -> None:
    found = onnx_files(model, tmp_path)
    assert [Path(path).name for path in found] == [f"tiny.{name}.onnx" for name in ("encode", "lift", "detect")]
    assert all(difference is not None and difference <= LIMIT for difference in found.values())
    same_detections(Detector(in_onnxruntime(model, tmp_path), options=DetectorOptions(fused=False)), Detector(model))


def in_onnxruntime(model: BEVNeXt, folder: Path) -> BEVNeXt:
    """The network with its two programs run by another runtime, as docs/deployment.md has it."""
    import onnxruntime

    def program(name: str) -> Callable[..., list[torch.Tensor]]:
        session = onnxruntime.InferenceSession(str(folder / f"tiny.{name}.onnx"), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]

        def run(*values: torch.Tensor) -> list[torch.Tensor]:
            given = {name: value.contiguous().numpy() for name, value in zip(names, values, strict=True)}
            return [torch.from_numpy(value) for value in session.run(None, given)]

        return run

    encode, run_detect = program("encode"), program("detect")

    def detect(bev: torch.Tensor, depth: torch.Tensor, context: torch.Tensor, *geometry: torch.Tensor) -> Any:
        cameras = CameraGeometry(**dict(zip(GEOMETRY, geometry, strict=True)))
        assert model.refinement.attention is not None
        return run_detect(bev, depth, context, *model.refinement.attention.project(cameras))

    return ProgramNetwork(model, encode, detect)


@pytest.mark.slow
def test_onnx_files_for_tensorrt(tmp_path: Path) -> None:
    """In fp16, with named inputs, fixed shapes, and no operator that TensorRT lacks in what it gets."""
    network = load_checkpoint(ROOT / "weights" / "demo_stage2.safetensors").eval()
    found = onnx_files(network, tmp_path, "fp16", fixed_shapes=True)
    assert all(difference is not None and 0 < difference <= 1e-2 for difference in found.values())
    import onnx

    half, single, boolean = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    wanted = {
        "encode": {"images": single, "colors": single, "camera_parameters": single},
        "detect": {"bev": half, "depth": single, "context": half, "pixels": single, "seen": boolean},
    }
    for name, types in wanted.items():
        graph = onnx.load(tmp_path / f"tiny.{name}.onnx").graph
        assert {value.name: value.type.tensor_type.elem_type for value in graph.input} == types
        for value in (*graph.input, *graph.output):
            assert all(size.dim_value > 0 for size in value.type.tensor_type.shape.dim), value.name
        assert not {node.op_type for node in graph.node} & {"NonZero", "ScatterND", "DeformConv", "If", "Loop"}
        assert {node.domain for node in graph.node} == {""}
        weights = [tensor for tensor in graph.initializer if tensor.name.endswith(".weight") and len(tensor.dims) == 4]
        assert {tensor.data_type for tensor in weights} == {half}


def onnx_files(network: BEVNeXt, folder: Path, *options: Any, **more: Any) -> dict[str, float | None]:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: the ONNX export is not tested")
    from bevnext_tools.export.onnx import export_onnx

    return export_onnx(network, folder / "tiny.onnx", *options, **more)
