# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: import of the published files, refusal of damaged, foreign and malicious ones."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bevnext_core.checkpoint import import_published, load_checkpoint, safe_torch_load, save_checkpoint
from bevnext_core.config import config_to_mapping, load_config, published_config
from bevnext_core.detector import Detector
from bevnext_core.errors import CheckpointError
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.published_names import published_names
from bevnext_core.streaming.decode import boxes_from_maps
from bevnext_tools.cli.main import main
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


def test_damaged_entries_are_all_listed_and_nothing_is_written(
    entries: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, however many there are, also on the command line's one line."""
    state = dict(entries)
    missing = [name for name in state if name.startswith("img_view_transformer.")][:20]
    misshapen = [name for name in state if name.startswith("img_backbone.") and state[name].dim()][:20]
    unknown = [f"img_backbone.fc{number}.weight" for number in range(20)]
    for name in missing:
        del state[name]
    for name in misshapen:
        state[name] = state[name][:-1]
    state |= dict.fromkeys(unknown, torch.zeros(3))
    torch.save(state, tmp_path / "damaged.pth")
    command = ["import-checkpoint", tmp_path / "damaged.pth", "--out", tmp_path / "out.safetensors", "--config", SMALL2]
    assert main([str(part) for part in command]) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert f"20 missing: {', '.join(missing)}; 20 unknown: {', '.join(unknown)}; 20 misshapen: {misshapen[0]} (" in text
    for name in misshapen:
        assert f"{name} {tuple(state[name].shape)} instead of {tuple(entries[name].shape)}" in text
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


def test_a_checkpoint_may_begin_with_any_byte(tmp_path: Path) -> None:
    """The first byte is the low one of the header's length: it may be that of a pickle."""
    model, path = build("small2"), tmp_path / "own.safetensors"
    save_checkpoint(path, model.state_dict(), model.config)
    more = (0x80 - path.read_bytes()[0]) % 256
    config = dataclasses.replace(model.config, name=model.config.name + "x" * more)
    save_checkpoint(path, model.state_dict(), config)
    assert path.read_bytes()[0] == 0x80
    assert load_checkpoint(path).config == config


def test_a_pytorch_file_is_pointed_to_the_importer(entries: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(entries, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="bevnext import-checkpoint"):
        Detector.from_checkpoint(tmp_path / "published.pth")
