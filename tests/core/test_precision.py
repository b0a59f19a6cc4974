# SPDX-License-Identifier: Apache-2.0
"""How far half precision drifts from fp32 on the reference's inputs, and what it must not touch.

The weights are the reference's, which are random: they magnify rounding far more than trained ones do (a change of
1e-6 of the input comes out as 1e-3), and their boxes are decided by little. The bounds are about one and a half times
what was measured (2026-11-27, torch 2.15.0, Intel Xeon with AVX-512, small_stage2, relative L2; bf16 / fp16):

    heatmap 0.166 / 0.045, reg 0.174 / 0.041, height 0.306 / 0.070, dim 0.114 / 0.027, rot 0.330 / 0.079,
    vel 0.374 / 0.086; context 0.151 / 0.021; depth distribution (total variation) 0.084 / 0.012;
    of 275 boxes 80 / 221 have one of the same class within 0.5 m

With the matrices of the geometry in bf16, as autocast would have them, the maps were up to a quarter further off
(heatmap 0.202), and 48 boxes were left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.network import view_transform
from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras, HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.inference import DTYPES, for_inference
from bevnext_core.precision import (
    AnyPrecision,
    Precision,
    bf16_unit,
    ieee_fp32,
    precision_text,
    resolve_precision,
)
from bevnext_core.streaming.decode import BoxSet, boxes_from_maps
from tests.paths import BUNDLED
from tests.published import build, geometry_from, load_reference, window_inputs
from tests.rig import drive

MEASURED = {
    torch.bfloat16: {
        "heatmap": 0.166,
        "reg": 0.174,
        "height": 0.306,
        "dim": 0.114,
        "rot": 0.330,
        "vel": 0.374,
    },
    torch.float16: {
        "heatmap": 0.045,
        "reg": 0.041,
        "height": 0.070,
        "dim": 0.027,
        "rot": 0.079,
        "vel": 0.086,
    },
}
ENCODED = {torch.bfloat16: (0.084, 0.151), torch.float16: (0.012, 0.021)}
"""Depth, context."""
MATCHED = {torch.bfloat16: 80 / 275, torch.float16: 221 / 275}
ROOM = 1.5


@dataclass
class Run:
    encoded: EncodedCameras
    maps: HeadMaps
    boxes: BoxSet


@pytest.fixture(scope="module")
def trained() -> BEVNeXt:
    return build("small2")


@pytest.fixture(scope="module")
def network(trained: BEVNeXt) -> BEVNeXt:
    return for_inference(trained, packed=False)


@pytest.fixture(scope="module")
def geometry(network: BEVNeXt) -> CameraGeometry:
    arrays, _ = load_reference(BUNDLED, "small_stage2")
    return geometry_from(arrays, network.config.history.frames + 1)


def run(network: BEVNeXt, geometry: CameraGeometry, dtype: torch.dtype | None) -> Run:
    images, colors = window_inputs(network.config)
    parameters = geometry.frame(0).camera_parameters().flatten(0, 2)
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        encoded = network.encode(images[0, 0], colors[0, 0], parameters)
        maps = network(images, colors, geometry)
    return Run(encoded, maps, boxes_from_maps(maps.tasks, network.config)[0])


@pytest.fixture(scope="module")
def single(network: BEVNeXt, geometry: CameraGeometry) -> Run:
    return run(network, geometry, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_drift_is_bounded(
    network: BEVNeXt, geometry: CameraGeometry, single: Run, dtype: torch.dtype
) -> None:
    half = run(network, geometry, dtype)
    depth = float((half.encoded.depth - single.encoded.depth).abs().sum(1).mean() / 2)
    context = relative(half.encoded.context, single.encoded.context)
    # Something must have been rounded, and not more than was measured and a half.
    for found, measured in zip((depth, context), ENCODED[dtype], strict=True):
        assert measured / 10 < found <= ROOM * measured
    for name, measured in MEASURED[dtype].items():
        found = max(
            relative(ours[name], theirs[name])
            for ours, theirs in zip(half.maps.tasks, single.maps.tasks, strict=True)
        )
        assert measured / 10 < found <= ROOM * measured, name
    assert matched(half.boxes, single.boxes) >= MATCHED[dtype] / ROOM


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs).norm() / theirs.norm())


def matched(ours: BoxSet, theirs: BoxSet) -> float:
    """Share of ``theirs`` that have one of ``ours`` of the same class within 0.5 m."""
    apart = np.linalg.norm(ours.boxes[:, None, :2] - theirs.boxes[None, :, :2], axis=2)
    apart[ours.labels[:, None] != theirs.labels[None]] = np.inf
    return float((apart.min(0) <= 0.5).mean())


class Casts(TorchDispatchMode):
    """Counts the weights that are brought into another precision."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::to", "aten::_to_copy") and isinstance(args[0], nn.Parameter):
            self.count += result.dtype != args[0].dtype
        return result


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_are_rounded_once(
    geometry: CameraGeometry, trained: BEVNeXt, network: BEVNeXt, precision: Precision
) -> None:
    """And nothing else changes: the maps are those of weights that are rounded at every call, bit for bit."""
    results = []
    for model, casts in ((network, True), (for_inference(trained, precision=precision), False)):
        with Casts() as counted:
            results.append(run(model, geometry, DTYPES[precision]))
        assert (counted.count > 100) == casts and (counted.count == 0) != casts
    for ours, theirs in zip(results[0].maps.tasks, results[1].maps.tasks, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(results[0].encoded.depth, results[1].encoded.depth)


@pytest.mark.parametrize(("precision", "fused"), [("bf16", True), ("fp16", True), ("bf16", False)])
def test_a_step_casts_no_weights(trained: BEVNeXt, precision: Precision, fused: bool) -> None:
    detector = Detector(trained, options=DetectorOptions(precision=precision, fused=fused))
    first, second = drive(2)
    detector.step(first)
    with Casts() as counted:
        detector.step(second)
    assert (counted.count == 0) == fused  # the plain network's are cast at every call


@pytest.mark.parametrize("form", ["c++", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_plans_and_distributions_stay_in_fp32(
    network: BEVNeXt, geometry: CameraGeometry, dtype: torch.dtype, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 every 23rd point would go to another cell."""
    if form == "plain":
        monkeypatch.setattr(view_transform, "bev_pool_form", lambda _: "plain")
    expected = network.plan(geometry)
    with torch.autocast("cpu", dtype=dtype):
        found = network.plan(geometry)
        logits = torch.randn(1, 59, 4, 6).to(dtype)
        depth = network.crf(logits, torch.zeros(1, 3, 4, 6))
    assert torch.equal(found.cells, expected.cells) and found.depth_shape == expected.depth_shape
    assert depth.dtype == torch.float32


# -------------------------------------------------------------------------------------------- auto
@pytest.mark.parametrize(
    ("units", "expected", "text"),
    [
        (("_is_amx_tile_supported", "_is_avx512_bf16_supported"), "bf16", "bf16 (auto: AMX)"),
        (("_is_avx512_bf16_supported",), "bf16", "bf16 (auto: AVX512-BF16)"),
        ((), "fp32", "fp32 (auto: no AVX512-BF16, no AMX)"),
    ],
)
def test_auto_is_what_the_processor_computes_in(
    units: tuple[str, ...], expected: str, text: str, trained: BEVNeXt, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda has=name in units: has)
    assert resolve_precision("auto", "cpu") == expected and precision_text("auto", "cpu") == text
    assert resolve_precision("auto", "cuda:0") == "fp16" and precision_text("auto", "cuda:0") == "fp16 (auto: CUDA)"
    detector = Detector(trained, options=DetectorOptions(precision="auto"))
    assert detector.precision == expected and repr(detector) == f"Detector(small_stage2, cpu, {text})"
    assert {weight.dtype for weight in detector.model.backbone.parameters()} == {DTYPES[expected]}


def test_what_is_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    precisions: tuple[AnyPrecision, ...] = ("fp32", "bf16", "fp16")
    for precision in precisions:
        assert resolve_precision(precision, "cpu") == resolve_precision(precision, "cuda") == precision
        assert precision_text(precision, "cpu") == precision
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert bf16_unit() == "" and resolve_precision("auto", "cpu") == "fp32"


# -------------------------------------------------------------------------------------------- fp32 is IEEE fp32
def tf32_settings() -> tuple[str, ...]:
    backends = torch.backends
    return tuple(b.fp32_precision for b in (backends.cuda.matmul, backends.cudnn.conv))


def test_fp32_on_a_gpu_is_ieee_and_the_programs_own_settings_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    before = tf32_settings()
    assert "tf32" in before
    with pytest.raises(RuntimeError, match="in between"), ieee_fp32("cuda"):
        assert tf32_settings() == ("ieee", "ieee")
        raise RuntimeError("in between")
    assert tf32_settings() == before
    with ieee_fp32("cpu"):
        assert tf32_settings() == before


def test_the_detector_computes_so(trained: BEVNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, seen = Detector(trained), []
    detector.device = torch.device("cuda")  # only said: the network and its inputs are on the CPU
    for name in ("encode", "lift", "detect"):
        whole = getattr(detector.model, name)
        monkeypatch.setattr(
            detector.model, name, lambda *given, whole=whole: (seen.append(tf32_settings()), whole(*given))[1]
        )
    detector.step(drive(1)[0])
    detector.window(drive(2))
    assert len(seen) >= 6 and set(seen) == {("ieee", "ieee")}
