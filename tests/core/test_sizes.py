# SPDX-License-Identifier: Apache-2.0
"""Other sizes than the published ones, by configuration alone; a checkpoint of before has the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from bevnext_core.checkpoint import load_checkpoint, save_checkpoint
from bevnext_core.config import config_from_mapping, config_to_mapping, load_config, network_differences
from bevnext_core.detector import Detector
from bevnext_core.errors import ConfigError
from bevnext_core.network.bevnext import BEVNeXt
from tests.paths import ROOT
from tests.rig import drive

DEMO = ROOT / "config" / "model" / "demo_stage2.yaml"


def sized(**parts: dict) -> BEVNeXt:
    mapping = config_to_mapping(load_config(DEMO))
    for name, values in parts.items():
        mapping[name] |= values
    torch.manual_seed(0)
    return BEVNeXt(config_from_mapping(mapping, "test"))


def test_base_widths_of_the_fusion() -> None:
    """Of 16 channels a group of the fusion has 16 / 2 * 192 / 64, a split of the first level 32 / 4 * 128 / 64."""
    state = sized(history={"group_width": 192, "split_width": 128}).state_dict()
    assert state["bev_backbone.fusion.branches.0.0.weight"].shape == (24, 24, 3, 3)
    assert state["bev_backbone.stages.0.0.branches.0.0.weight"].shape == (16, 16, 3, 3)
    published = sized().state_dict()
    assert published["bev_backbone.fusion.branches.0.0.weight"].shape == (6, 6, 3, 3)
    assert published["bev_backbone.stages.0.0.branches.0.0.weight"].shape == (4, 4, 3, 3)


def test_dropout_of_the_depth_network_is_no_part_of_the_network(tmp_path: Path) -> None:
    half, none = sized(training={"depth_dropout": 0.5}), sized(training={"depth_dropout": 0})
    features, parameters = torch.randn(4, 64, 16, 44), torch.randn(4, 27)
    first, second = (net.depth_net.train()(features, parameters)[0] for net in (half, none))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(none.depth_net(features, parameters)[0], second, rtol=0, atol=0)
    save_checkpoint(tmp_path / "half.safetensors", half.state_dict(), half.config)
    load_checkpoint(tmp_path / "half.safetensors", none.config)


def test_another_suppression_is_the_same_network_and_other_classes_are_not() -> None:
    config = load_config(DEMO)
    trained = config_to_mapping(load_checkpoint(ROOT / "weights" / "demo_stage2.safetensors").config)
    assert config_to_mapping(config)["tasks"] != trained["tasks"]
    load_checkpoint(ROOT / "weights" / "demo_stage2.safetensors", config)
    trained["tasks"][0]["classes"] = ["van"]
    assert network_differences(config_from_mapping(trained, "test"), config) == ["tasks"]


@pytest.mark.parametrize(("extent", "cell", "size"), [(48.0, 1.0, 96), (51.2, 1.6, 64)])
def test_a_stream_on_another_grid(extent: float, cell: float, size: int, tmp_path: Path) -> None:
    network = sized(bev={"extent": extent, "cell": cell}, history={"frames": 2}, head={"score_threshold": 0.0})
    save_checkpoint(tmp_path / "c.safetensors", network.state_dict(), network.config)
    detector = Detector.from_checkpoint(tmp_path / "c.safetensors", "cpu")
    assert detector.config.bev.size == size
    found = [detector.step(frame) for frame in drive(3)]
    assert all(len(boxes) for boxes in found)
    assert float(abs(found[-1].boxes[:, :2]).max()) > 0.8 * extent, "cells up to the edge"


def test_a_checkpoint_from_before_these_keys_is_read(tmp_path: Path) -> None:
    network = sized()
    save_checkpoint(tmp_path / "new.safetensors", network.state_dict(), network.config)
    with safetensors.safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    for part, names in {"history": ("group_width", "split_width"), "training": ("depth_dropout",)}.items():
        for name in names:
            del config[part][name]
    old = metadata | {"config": json.dumps(config)}
    save_file(network.state_dict(), tmp_path / "old.safetensors", old)
    read = load_checkpoint(tmp_path / "old.safetensors").config
    assert (read.history.group_width, read.history.split_width, read.training.depth_dropout) == (48, 32, 0.5)
    config["history"]["width"] = 7
    save_file(network.state_dict(), tmp_path / "old.safetensors", metadata | {"config": json.dumps(config)})
    with pytest.raises(ConfigError, match="unknown key 'width' in 'history'"):
        load_checkpoint(tmp_path / "old.safetensors")
