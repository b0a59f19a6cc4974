# SPDX-License-Identifier: Apache-2.0
"""docs/own_data.md: recordings with classes of their own, from the tables to a fine-tuned network's boxes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")

from bevnext_core.checkpoint import load_checkpoint, save_checkpoint
from bevnext_core.config import TaskConfig, dump_config, load_config
from bevnext_core.datasets.nuscenes_tables import load_tables
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_tools.cli.main import main
from bevnext_world.recording.generate import Order, generate
from tests.paths import ROOT
from tests.training.tiny import tiny_config
from training import train
from training.data.index import open_index

OWN = {
    "vehicle.car": "forklift",
    "human.pedestrian.adult": "worker",
    "movable_object.barrier": "rack",
    "movable_object.trafficcone": "marker",
}
"""What the synthetic world's categories are called here; the others keep their names and are nothing to the network."""
TASKS = (TaskConfig(("forklift", "worker")), TaskConfig(("rack", "marker"), nms="circle", threshold=1.0))
VERSION = "v1.0-yard"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three key frames, a configuration with two tasks, and a checkpoint of the ten classes."""
    folder = tmp_path_factory.mktemp("own")
    generate(Order(folder / "data", "mini_train", 3, 1, (400, 225), False, 3), 1)
    (folder / "data" / "v1.0-mini").rename(folder / "data" / VERSION)
    table = folder / "data" / VERSION / "category.json"
    rows = json.loads(table.read_text())
    table.write_text(json.dumps([row | {"name": OWN.get(row["name"], row["name"])} for row in rows]))
    for name in ("attribute", "visibility"):  # as of a rig whose annotations have neither
        (folder / "data" / VERSION / f"{name}.json").write_text("[]")
    ten = tiny_config(folder)
    head = dataclasses.replace(ten.head, score_threshold=0.01)
    (folder / "yard.yaml").write_text(dump_config(dataclasses.replace(ten, name="yard", tasks=TASKS, head=head)))
    torch.manual_seed(0)
    save_checkpoint(folder / "ten.safetensors", BEVNeXt(ten).state_dict(), ten)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    command = ["--stage", "2", "--config", folder / "yard.yaml", "--dataroot", folder / "data", "--version", VERSION]
    command += ["--scenes", next(row["name"] for row in load_tables(folder / "data", VERSION).scene)]
    command += ["--warm-start", folder / "ten.safetensors", "--work-dir", folder / "run"]
    command += ["--index-dir", folder / "index", "--batch", 1, "--workers", 0, "--device", "cpu", "--max-steps", 4]
    assert train.main([str(word) for word in command]) == 0
    return folder / "run" / "step_4.safetensors"


def test_what_fits_is_taken_and_the_rest_is_named(folder: Path, trained: Path) -> None:
    log = (folder / "run" / "log.txt").read_text()
    taken, count = map(int, re.findall(r"(\d+) of (\d+) entries taken", log)[0])
    left = re.findall(r"not there or of another shape: (\S+) \((\d+)\)", log)
    assert {name for name, _ in left} == {"proposal_head.tasks"}, "heat maps have a channel per class"
    assert taken + sum(int(number) for _, number in left) == count > 500
    assert load_checkpoint(trained).config.class_names == ("forklift", "worker", "rack", "marker")


def test_targets_are_of_the_own_classes(folder: Path) -> None:
    config = load_config(folder / "yard.yaml")
    index = open_index(folder / "data", VERSION, folder / "index", False, config)
    found = Counter(config.class_names[int(label)] for label in index.labels)
    tables = load_tables(folder / "data", VERSION)
    expected = Counter(row["category_name"] for row in tables.sample_annotation)
    assert found == {name: number for name, number in expected.items() if name in OWN.values()}
    assert len(found) >= 3 and sum(expected.values()) > sum(found.values()), "other categories are there too"


def test_boxes_come_out_with_their_names(folder: Path, trained: Path, capsys: Any) -> None:
    command = ["detect", "--dataroot", str(folder / "data"), "--version", VERSION, "--checkpoint", str(trained)]
    assert main([*command, "--device", "cpu", "--json-lines", "--score-threshold", "0.01",
                 "--out", str(folder / "found")]) == 0  # fmt: skip
    lines = [json.loads(line) for line in (folder / "found" / "detections.jsonl").read_text().splitlines()]
    names = {box["class"] for line in lines for box in line["boxes"]}
    assert len(lines) == 3 and names and names <= set(OWN.values())
    results = json.loads((folder / "found" / "submission.json").read_text())["results"]
    assert {box["detection_name"] for boxes in results.values() for box in boxes} == names
    assert len(list((folder / "found").glob("frames/*/*.png"))) == 3
    capsys.readouterr()
    evaluated = ["evaluate", *command[1:], "--device", "cpu", "--eval-set", "mini_train"]
    assert main(evaluated) == 2
    error = capsys.readouterr().err
    assert "the official metric knows nuScenes' ten classes, and 'yard' finds forklift, worker" in error


def test_the_page_shows_this_configuration(folder: Path) -> None:
    page = (ROOT / "docs" / "own_data.md").read_text()
    block = page.split("```yaml\n")[1].split("```")[0]
    (folder / "page.yaml").write_text(block)
    assert load_config(folder / "page.yaml").tasks == TASKS
