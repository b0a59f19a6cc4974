# SPDX-License-Identifier: Apache-2.0
"""The functions behind `bevnext detect --bag`: a parameter file, overrides, the report."""

from __future__ import annotations

import pytest

from bevnext_core.datasets.nuscenes_tables import load_tables
from bevnext_core.errors import ConfigError
from bevnext_ros.bags.detect import run_detect_bag
from bevnext_ros.bags.nuscenes_to_bag import convert_scene
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.node import detector_factory
from tests.nuscenes_dataroot import write_dataroot
from tests.ros.stand_in import StandIn

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")


def test_file_and_overrides_reach_the_detector_and_drops_are_reported(tmp_path, monkeypatch, capsys):
    tables = load_tables(write_dataroot(tmp_path / "root", {"scene-0103": 2}), "v1.0-mini")
    convert_scene(tables, "scene-0103", tmp_path / "bag")
    asked = []

    def make(options, checkpoint, device):
        asked.append((options.max_detections, options.precision, checkpoint, device))
        return StandIn()

    monkeypatch.setattr(detector_factory, "make_detector", make)
    params = tmp_path / "params.yaml"
    params.write_text(
        "driver:\n  ros__parameters: {fps: 10}\n"
        "/car/detector:\n  ros__parameters: {max_detections: 2, precision: fp32, score_threshold: 0}\n"
        "/truck/detector:\n  ros__parameters: {max_detections: 3}\n"
    )
    code = run_detect_bag(
        *(tmp_path / "bag", "net.safetensors", tmp_path / "out"),
        params=params,
        node="/car/detector",
        device="cpu",
        overrides={"precision": "bf16"},
        pictures=False,
    )
    assert code == 0 and asked == [(2, "bf16", "net.safetensors", "cpu")]
    output = capsys.readouterr()
    assert "2 frames, 4 boxes" in output.out and "warning" not in output.err
    with BagReader(tmp_path / "out" / "detections") as reader:
        assert reader.counts["/detector/boxes"] == 2
    with pytest.raises(ConfigError, match=r"the command line: 'max_spread' must be between 0 and 1"):
        run_detect_bag(tmp_path / "bag", "net", tmp_path / "other", overrides={"max_spread": 3.0})
