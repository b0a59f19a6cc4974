"""Checkpoints: import of the published files, refusal of damaged, foreign and malicious ones."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bevnext_core.checkpoint import import_published, load_checkpoint, safe_torch_load, save_checkpoint
from bevnext_core.config import config_to_mapping, load_config, published_config
from bevnext_core.decode import boxes_from_maps
from bevnext_core.detector import Detector
from bevnext_core.errors import CheckpointError
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.published_names import published_names
from tests.core.test_end_to_end import compare_boxes
from tests.paths import BUNDLED, ROOT
from tests.published import build, config_of, geometry_from, load_reference, published_state, window_inputs

SMALL2 = ROOT / "config" / "model" / "small_stage2.yaml"


@pytest.fixture(scope="module")
def entries() -> dict[str, Tensor]:
    """The synthetic official checkpoint of the small stage-2 network, under the published names."""
    return published_state(BEVNeXt(config_of("small2")), "small2")


def wrap(entries: dict[str, Tensor], kind: str) -> object:
    ordered = OrderedDict(entries)
    if kind == "bare":
        return ordered
    if kind == "module":
        return {
            "state_dict": OrderedDict(("module." + k, v) for k, v in entries.items()),
            "meta": {"epoch": 12},
        }
    if kind == "ema":
        return {"epoch": 12, "state_dict": ordered, "updates": 31_234}
    meta = {
        "env_info": "sys.platform: linux",
        "epoch": 12,
        "iter": 1000,
        "CLASSES": ["car", "truck"],
        "lr": 1e-4,
    }
    return {"meta": meta, "state_dict": ordered, "optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]}}


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("prefix", ["", "_perspective"])
def test_names_and_shapes_are_the_published_ones(stage: int, prefix: str) -> None:
    config = load_config(ROOT / "config" / "model" / f"bevnext_r50{prefix}_stage{stage}.yaml")
    with torch.device("meta"):
        own = BEVNeXt(config).state_dict()
    names = published_names(own)
    manifest = json.loads((BUNDLED / f"manifest_stage{stage}.json").read_text())["entries"]
    assert {names[k]: list(v.shape) for k, v in own.items()} == {e["key"]: e["shape"] for e in manifest}


@pytest.mark.parametrize("stage", [1, 2])
def test_published_config_is_the_file(stage: int) -> None:
    file = load_config(ROOT / "config" / "model" / f"bevnext_r50_stage{stage}.yaml")
    assert config_to_mapping(published_config(stage)) == config_to_mapping(file)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bare", "module", "ema", "meta"])
def test_import_gives_the_reference_boxes(kind: str, entries: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(wrap(entries, kind), tmp_path / "published.pth")
    line = import_published(tmp_path / "published.pth", tmp_path / "own.safetensors", SMALL2)
    assert "small_stage2" in line
    model = load_checkpoint(tmp_path / "own.safetensors")
    assert model.config == config_of("small2")
    arrays, description = load_reference(BUNDLED, "small_stage2")
    images, colors = window_inputs(model.config)
    with torch.no_grad():
        maps = model(images, colors, geometry_from(arrays, 3))
    compare_boxes(boxes_from_maps(maps.tasks, model.config)[0], {**arrays, "nms": description["nms"]})


def test_full_size_stage_is_recognised(tmp_path: Path) -> None:
    state = published_state(BEVNeXt(published_config(1)), "full1")
    torch.save({"state_dict": state}, tmp_path / "stage1.pth")
    assert "bevnext_r50_stage1" in import_published(tmp_path / "stage1.pth", tmp_path / "out.safetensors")


def test_damaged_entries_are_listed_and_nothing_is_written(
    entries: dict[str, Tensor], tmp_path: Path
) -> None:
    state = dict(entries)
    del state["crf.ws.0" if "crf.ws.0" in state else "img_view_transformer.crf.ws.0"]
    state["depth_emb.0.bias"] = state["depth_emb.0.bias"][:-1]
    state["img_backbone.fc.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(CheckpointError) as caught:
        import_published(tmp_path / "damaged.pth", tmp_path / "out.safetensors", SMALL2)
    for name in (
        "missing: img_view_transformer.crf.ws.0",
        "unknown: img_backbone.fc.weight",
        "depth_emb.0.bias (58,)",
    ):
        assert name in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_values_that_are_not_finite_are_refused(entries: dict[str, Tensor], tmp_path: Path) -> None:
    state = {**entries, "depth_emb.0.bias": torch.full_like(entries["depth_emb.0.bias"], float("nan"))}
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"not finite: depth_emb\.0\.bias"):
        import_published(tmp_path / "nan.pth", tmp_path / "out.safetensors", SMALL2)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04garbage", b"\x80\x02garbage", b"text"])
def test_files_that_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        import_published(tmp_path / "bad.pth", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        Detector.from_checkpoint(tmp_path / "bad.pth")


def test_truncated_files(entries: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(entries, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        import_published(tmp_path / "cut.pth", tmp_path / "out.safetensors", SMALL2)
    model = build("small2")
    save_checkpoint(tmp_path / "own.safetensors", model.state_dict(), model.config)
    data = (tmp_path / "own.safetensors").read_bytes()
    (tmp_path / "own.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "own.safetensors")


def test_missing_files(tmp_path: Path) -> None:
    for call in (load_checkpoint, safe_torch_load):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            call(tmp_path / "nowhere")


def test_own_checkpoint_round_trip_and_other_configuration(tmp_path: Path) -> None:
    model = build("small2")
    save_checkpoint(tmp_path / "own.safetensors", model.state_dict(), model.config)
    again = load_checkpoint(tmp_path / "own.safetensors", expected=model.config)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(CheckpointError, match=r"small_stage2.*history differ"):
        load_checkpoint(tmp_path / "own.safetensors", expected=config_of("small1"))


def test_a_pytorch_file_is_pointed_to_the_importer(entries: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(entries, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="bevnext import-checkpoint"):
        Detector.from_checkpoint(tmp_path / "published.pth")


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_malicious_pickles_do_not_run(form: str, entries: dict[str, Tensor], tmp_path: Path) -> None:
    victim, file = tmp_path / "victim", tmp_path / "evil.pth"
    payload = {"state_dict": entries, "meta": Malicious(victim)}
    if form == "torch":
        torch.save(payload, file)
    else:
        file.write_bytes(pickle.dumps({"meta": Malicious(victim)}))
    with pytest.raises(CheckpointError) as caught:
        import_published(file, tmp_path / "out.safetensors", SMALL2)
    if form == "torch":
        assert "pathlib" in str(caught.value) or "getattr" in str(caught.value)
    with pytest.raises(CheckpointError):
        safe_torch_load(file)
    with pytest.raises(CheckpointError):
        Detector.from_checkpoint(file)
    with pytest.raises(CheckpointError):
        load_checkpoint(file)
    for command in (
        ["import-checkpoint", str(file), "--out", str(tmp_path / "out.safetensors")],
        [
            "detect",
            "--dataroot",
            str(tmp_path),
            "--checkpoint",
            str(file),
            "--out",
            str(tmp_path / "results"),
        ],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "bevnext_core.cli", *command], capture_output=True, text=True
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not victim.exists()
    # The same bytes do run when unpickled freely: the test would notice.
    if form == "pickle":
        pickle.loads(file.read_bytes())
        assert victim.exists()


def test_numpy_scalars_in_meta_are_refused_by_name(entries: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": entries, "meta": {"best": np.float64(0.5)}}, tmp_path / "numpy.pth")
    with pytest.raises(CheckpointError, match="type numpy"):
        import_published(tmp_path / "numpy.pth", tmp_path / "out.safetensors", SMALL2)
