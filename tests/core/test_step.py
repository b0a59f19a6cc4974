# SPDX-License-Identifier: Apache-2.0
"""How a step is done must not change what comes out: lift in one call, resize on the device, uploads, compilation."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevnext_benchmarks.random_network import random_network
from bevnext_core.config import ConfigError
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.errors import BevnextError
from bevnext_core.export.package import ExportedNetwork, example_inputs
from bevnext_core.frame import CameraFrame
from bevnext_core.network.bevnext import BEVNeXt, HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.inference import for_inference
from bevnext_core.network.programs import DetectProgram, EncodeProgram
from bevnext_core.streaming import acceleration
from bevnext_core.streaming.acceleration import Accelerated, AcceleratedNetwork, Graph
from bevnext_core.streaming.rig_state import RigState
from bevnext_core.streaming.upload import Uploader, packed, unpacked
from bevnext_tools.cli import detect as detect_command
from bevnext_tools.export import noise_drive
from bevnext_tools.export.noise_drive import drive_frame, network_inputs
from tests.core.test_export import TINY, uncompiled
from tests.published import build
from tests.rig import drive

LIMIT = 1e-4


@pytest.fixture(scope="module")
def small2() -> BEVNeXt:
    return build("small2")


@pytest.fixture(scope="module")
def tiny() -> Iterator[BEVNeXt]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))
        yield random_network(TINY)


@pytest.fixture
def tiny_drive(monkeypatch: pytest.MonkeyPatch) -> list[CameraFrame]:
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))
    return [drive_frame(TINY, index) for index in range(4)]


def largest_difference(a: HeadMaps, b: HeadMaps) -> float:
    """Largest relative L2 difference over all head maps."""
    return max(
        float((value.cpu() - theirs[name].cpu()).norm() / theirs[name].norm().cpu())
        for ours, theirs in zip(a.tasks, b.tasks, strict=True)
        for name, value in ours.items()
    )


def equal(a: HeadMaps, b: HeadMaps) -> bool:
    return all(torch.equal(v, y[k]) for x, y in zip(a.tasks, b.tasks, strict=True) for k, v in x.items())


# ------------------------------------------------------------------------------- lift
def test_lift_in_one_call_equals_frame_by_frame(small2: BEVNeXt) -> None:
    """And both the window; with a gap, which the present fills, and a camera that is not there for a frame."""
    frames = drive(5)
    images = (None, *frames[3].images[1:])
    frames[3] = dataclasses.replace(frames[3], images=images, valid=np.array([False] + [True] * 5))
    del frames[1]
    streams = [Detector(small2, options=DetectorOptions(batched_lift=form)) for form in (False, True)]
    for index, frame in enumerate(frames):
        one_by_one, together = (stream.step_maps(frame) for stream in streams)
        assert largest_difference(together, one_by_one) <= LIMIT, f"frame {index}"
    window = [frames[-1], frames[-2], frames[-3]]
    assert largest_difference(together, streams[1].window_maps(window, published=False)) <= LIMIT


def test_one_plan_one_pooling_one_pre_process(tiny: BEVNeXt, tiny_drive: list[CameraFrame]) -> None:
    for form, calls in ((True, 1), (False, 3)):
        stream = Detector(tiny, options=DetectorOptions(batched_lift=form))
        frames = tiny_drive[:3]
        for frame in frames[:2]:
            stream.step(frame)
        count: Counter[str] = Counter()

        def hook(name: str, count: Counter[str] = count) -> Callable[..., None]:
            return lambda *_: count.update([name])

        for name in ("view_transform", "pre_process"):
            getattr(stream.model, name).register_forward_hook(hook(name))
        plan = stream.model.view_transform.plan

        def counted(geometry: CameraGeometry, plan: Any = plan, count: Any = count) -> Any:
            count.update(["plan"])
            return plan(geometry)

        stream.model.view_transform.plan = counted  # type: ignore[method-assign]
        detections = stream.step(frames[2])
        assert count == {"plan": calls, "view_transform": calls, "pre_process": calls}
        assert detections.info.history_frames == 2


# ------------------------------------------------------------------------------- images
def test_resize_on_the_device_gives_the_same_boxes(tiny: BEVNeXt, tiny_drive: list[CameraFrame]) -> None:
    """Cameras of two sizes, and a masked one."""
    host, device = (Detector(tiny, options=DetectorOptions(device_resize=form)) for form in (False, True))
    larger = np.random.default_rng(0).integers(0, 256, (240, 400, 3), np.uint8)
    for index, frame in enumerate(tiny_drive):
        if index == 1:
            frame = dataclasses.replace(frame, images=(larger, frame.images[1]), image_sizes=None)
        if index == 2:
            frame = dataclasses.replace(frame, images=(None, larger), image_sizes=None, valid=np.array([False, True]))
        states = [detector._prepare(frame) for detector in (host, device)]
        assert all(map(torch.equal, states[0][2:], states[1][2:]))
        np.testing.assert_array_equal(host.step(frame).boxes, device.step(frame).boxes)


# ------------------------------------------------------------------------------- uploads
def test_a_packed_geometry_comes_out_as_it_went_in(tiny: BEVNeXt, tiny_drive: list[CameraFrame]) -> None:
    state = RigState.of(dataclasses.replace(tiny_drive[0], valid=np.array([True, False])), tiny.config.image)
    geometry = state.geometry_in(tiny_drive[1].global_from_ego)
    both = CameraGeometry(
        **{
            name: torch.cat([value, 2 * value] if name != "valid" else [value, ~value])
            for name, value in vars(geometry).items()
        }
    )
    for whole in (geometry, both):
        found = unpacked(packed(whole), whole)
        for name, value in vars(whole).items():
            assert torch.equal(getattr(found, name), value) and getattr(found, name).dtype == value.dtype, name


class FakeStream:
    """Stands for a CUDA stream; ``log`` gets what happens in which order."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.log.append(f"on {self.name}")

    def __exit__(self, *_: object) -> None:
        self.log.append(f"off {self.name}")


def test_uploads_use_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of events with streams and pinned memory played by the CPU; the gpu tests have the real ones."""
    log: list[str] = []
    current = FakeStream("current", log)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: log.append("pinned") or tensor.clone())
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: log.append(f"kept for {stream.name}"))
    empty = torch.empty

    def without_pinning(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        log.extend(["pinned"] * pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", without_pinning)
    upload = Uploader(torch.device("cpu"))
    upload._stream = FakeStream("side", log)  # type: ignore[assignment]
    expected = ["pinned", "on side", "off side", "current waits for side", "kept for current"]
    values = torch.arange(12.0)
    assert torch.equal(upload(values), values) and log == expected
    log.clear()
    images = list(np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8))
    assert torch.equal(upload.images(images), torch.from_numpy(np.stack(images))) and log == expected
    shapes = ((3, 3), (3,), (3, 3), (3, 3), (3,))
    geometry = CameraGeometry(*(torch.randn(1, 2, 3, *shape) for shape in shapes), torch.eye(3)[None])
    log.clear()
    assert torch.equal(upload.geometry(geometry).intrinsics, geometry.intrinsics) and log == expected


# ------------------------------------------------------------------------------- compiled, recorded
@pytest.fixture
def warnings(said: Any) -> list[str]:
    return said(acceleration.__name__)


def test_without_a_compiler_the_network_runs_as_it_is(
    tiny: BEVNeXt, tiny_drive: list[CameraFrame], monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler found\nat length")

    def compiler(program: Any, **_: object) -> Callable[..., None]:
        return fail

    monkeypatch.setattr(torch, "compile", compiler)
    plain, wanted = Detector(tiny), Detector(tiny, options=DetectorOptions(compile=True))
    for frame in tiny_drive[:3]:
        assert equal(wanted.step_maps(frame), plain.step_maps(frame))
    assert warnings == [
        f"'{name}' cannot be compiled, and runs without (RuntimeError: no compiler found)"
        for name in ("encode", "detect")
    ]


def test_without_a_gpu_there_are_no_graphs(
    tiny: BEVNeXt, tiny_drive: list[CameraFrame], warnings: list[str]
) -> None:
    plain, wanted = Detector(tiny), Detector(tiny, options=DetectorOptions(compile=True, compile_mode="graphs"))
    for frame in tiny_drive[:2]:
        assert equal(wanted.step_maps(frame), plain.step_maps(frame))
        np.testing.assert_array_equal(wanted.step(frame).boxes, plain.step(frame).boxes)
    assert warnings == ["no CUDA graphs on cpu: the network runs without"]


def recorded_on_the_cpu(
    program: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """A recording as a GPU makes it: what it reads and writes are these tensors."""
    outputs = program(*inputs)

    def replay() -> None:
        for output, value in zip(outputs, program(*inputs), strict=True):
            output.copy_(value)

    return outputs, replay


def test_a_recording_is_replayed_on_later_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "record", recorded_on_the_cpu)
    graph = Graph(lambda a, b: (a + b, a * b), (torch.ones(3), torch.ones(3)))
    a, b = torch.arange(3.0), torch.full((3,), 5.0)
    first = graph(a, b)
    second = graph(b, b)
    # The first result is the caller's own: the second replay has not changed it.
    assert torch.equal(first[0], a + b) and torch.equal(first[1], a * b) and torch.equal(second[0], 2 * b)
    with pytest.raises(ValueError, match=r"recorded for torch.float32\[3\]"):
        graph(torch.ones(4), b)


def test_a_network_that_is_recorded_has_fixed_shapes(
    tiny: BEVNeXt, tiny_drive: list[CameraFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense attention, and the same maps; the network that it came from keeps its own."""
    monkeypatch.setattr(acceleration, "record", recorded_on_the_cpu)
    plain, stream = Detector(tiny), Detector(tiny)
    stream.model = model = AcceleratedNetwork(stream.model, "fp32", "graphs")
    for frame in tiny_drive:
        assert largest_difference(stream.step_maps(frame), plain.step_maps(frame)) <= LIMIT
    assert all(part._graph is not None for part in model._programs)
    assert not plain.model.refinement.attention.dense and not tiny.refinement.attention.dense


def test_what_cannot_be_recorded_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(acceleration, "record", refuse)
    program = Accelerated(lambda a: (a + 1,), "encode", "graphs")
    for _ in range(3):
        assert torch.equal(program(torch.ones(2))[0], torch.full((2,), 2.0))
    assert len(warnings) == 1 and "cannot be recorded as a CUDA graph" in warnings[0]


def test_the_command_line_passes_them_on() -> None:
    parser = argparse.ArgumentParser()
    detect_command.add_arguments(parser)
    given = ["--dataroot", "x", "--checkpoint", "y", "--out", "z"]
    assert detect_command._detector_overrides(parser.parse_args(given)) == {}
    for more, mode in (([], "default"), (["reduce-overhead"], "reduce-overhead")):
        options = detect_command._detector_overrides(parser.parse_args([*given, "--compile", *more]))
        assert options == {"compile": True, "compile_mode": mode}
    with pytest.raises(BevnextError, match="--cuda-graphs is gone: give --compile reduce-overhead"):
        detect_command.run(parser.parse_args([*given, "--cuda-graphs"]))


def test_what_comes_out_is_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler with graphs writes into the same memory at every call; the history keeps what it wrote."""
    memory = torch.empty(3)
    asked: list[dict[str, object]] = []

    def compiler(program: Any, **options: object) -> Callable[..., tuple[Tensor, ...]]:
        asked.append(options)
        return lambda *inputs: (memory.copy_(program(*inputs)[0]),)

    monkeypatch.setattr(torch, "compile", compiler)
    program = Accelerated(lambda a: (a + 1,), "encode", "reduce-overhead")
    first, second = program(torch.ones(3)), program(torch.zeros(3))
    assert torch.equal(first[0], torch.full((3,), 2.0)) and torch.equal(second[0], torch.ones(3))
    assert asked == [{"dynamic": False, "mode": "reduce-overhead"}]


def test_a_package_is_not_compiled_again(tiny: BEVNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))
    package = ExportedNetwork(tiny, uncompiled(tiny))
    with pytest.raises(ConfigError, match="compiled already"):
        Detector(package, options=DetectorOptions(compile=True))


def programs(model: BEVNeXt) -> Iterator[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
    """Each program of the folded network with other inputs than zeros."""
    folded = for_inference(model)
    inputs = example_inputs(for_inference(model, packed=False), *network_inputs(TINY))
    for name, program in (("encode", EncodeProgram), ("detect", DetectProgram)):
        yield program(folded), inputs[name]


def worst(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def test_a_compiler_gets_the_network_in_one_piece(tiny: BEVNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the dense attention nothing breaks the graph. The compiler's place is taken by one that runs the graph."""
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))
    for program, inputs in programs(tiny):
        program.model.refinement.attention.dense = True  # type: ignore[union-attr]
        with torch.inference_mode():
            traced = torch.compile(program, fullgraph=True, dynamic=False, backend="eager")(*inputs)
            assert worst(traced, program(*inputs)) <= LIMIT


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
def test_compiled(tiny: BEVNeXt, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    """By PyTorch's own compiler: 'detect'; 'encode' is compiled by the same in tests/core/test_export.py."""
    monkeypatch.setattr(noise_drive, "SOURCE_SIZE", (320, 180))
    _, (program, inputs) = programs(tiny)
    with torch.inference_mode():
        found = Accelerated(program, "detect", "default")(*inputs)
        # Exactly 0 would mean that the network itself had run.
        assert 0 < worst(found, program(*inputs)) <= LIMIT
    assert warnings == []


# ------------------------------------------------------------------------------- on a GPU
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("way", ["plain", "graphs", "default", "reduce-overhead"])
def test_gpu_step(small2: BEVNeXt, warnings: list[str], precision: Any, way: Any) -> None:
    """Every way to run the step on a GPU, against the CPU; nothing may fall back."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    compiled = {} if way == "plain" else {"compile": True, "compile_mode": way}
    options = DetectorOptions(precision=precision, **compiled)
    expected, stream = Detector(small2), Detector(build("small2"), "cuda", options)
    for frame in drive(12):
        difference = largest_difference(stream.step_maps(frame), expected.step_maps(frame))
        assert difference <= (2e-3 if precision == "fp32" else 1.0)
    assert warnings == []
