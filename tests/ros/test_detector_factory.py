# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is missing, damaged or of another model is a clear error before anything is subscribed."""

from __future__ import annotations

import pytest
import torch

from bevnext_core.errors import BevnextError, CheckpointError, ConfigError
from bevnext_ros.node.detector_factory import make_detector
from bevnext_ros.node.parameters import make_options
from tests.paths import ROOT


def test_no_checkpoint_names_the_parameter():
    with pytest.raises(CheckpointError, match="set the parameter 'checkpoint'"):
        make_detector(make_options({}, ""))


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        make_detector(make_options({"checkpoint": str(tmp_path / "none.safetensors")}, ""))
    (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint" * 10)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        make_detector(make_options({"checkpoint": str(tmp_path / "bad.safetensors")}, ""))


def test_parameters_reach_the_detector_and_another_model_is_refused(tmp_path, monkeypatch):
    from bevnext_core.checkpoint import save_checkpoint
    from tests.published import build

    model = build("small1")
    path = tmp_path / "small1.safetensors"
    save_checkpoint(path, model.state_dict(), model.config)
    values = {"checkpoint": str(path), "device": "cpu", "history_max_gap": 7.0}
    values |= {"compile": True, "compile_mode": "graphs", "threads": 3}  # graphs on a CPU: one line in the log
    small1 = str(ROOT / "config" / "model" / "small_stage1.yaml")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    detector = make_detector(make_options({**values, "model": small1}, ""))
    assert torch.get_num_threads() == 3
    assert detector.options.history.max_gap == 7.0
    assert detector.options.compile and detector.options.compile_mode == "graphs"
    assert detector.device.type == "cpu" and detector.config.name == "small_stage1"
    with pytest.raises(CheckpointError, match="small_stage2"):
        make_detector(make_options({**values, "model": small1.replace("stage1", "stage2")}, ""))
    with pytest.raises(ConfigError, match="no such configuration file"):
        make_detector(make_options({**values, "model": "/none.yaml"}, ""))
    with pytest.raises(BevnextError, match="warp9"):
        make_detector(make_options({**values, "device": "warp9"}, ""))
