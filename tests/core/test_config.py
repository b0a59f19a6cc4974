# SPDX-License-Identifier: Apache-2.0
"""Configuration files: strict, complete, and the published values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path

import pytest
import yaml

from bevnext_core.config import (
    ImageConfig,
    ModelConfig,
    config_from_mapping,
    config_to_mapping,
    dump_config,
    load_config,
)
from bevnext_core.errors import ConfigError
from tests.paths import ROOT

# of the plain dataclasses that stood here before pydantic
DUMPED = "2cb4334858133afaccaa931bd088eb801dc4590a8fa9a431d0761d20df63427b"
IN_A_CHECKPOINT = "ed411d3c9730d512a3ef1804f280cac889d38798b1695285367f0781a661b0b9"
# keys that are newer than these texts, by part
ADDED = {
    "training": "augmentation class_balanced repeat missing_lidar max_unreadable max_skipped channels_last head_scale "
    "perspective_weight shared_run depth_dropout decay optimizer muon_learning_rate "
    "image_augmentation bev_augmentation largest_width part",
    "history": "group_width split_width",
    "depth": "lift_to",
}
FILES = sorted((ROOT / "config" / "model").glob("*.yaml"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid_and_survives_a_dump(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert load_config(written(tmp_path, dump_config(config))) == config
    assert config_from_mapping(config_to_mapping(config), "test") == config


def test_the_published_configurations_are_there() -> None:
    names = {path.stem for path in FILES}
    assert {
        "bevnext_r50_stage1",
        "bevnext_r50_stage2",
        "bevnext_r50_perspective_stage1",
        "bevnext_r50_perspective_stage2",
        "small_stage1",
        "small_stage2",
    } <= names


@pytest.mark.parametrize(
    ("name", "channels", "frames", "epochs", "rate", "velocity", "ratio"),
    [
        ("bevnext_r50_stage1", 80, 0, 2, 2e-4, 0.2, 1.0),
        ("bevnext_r50_stage2", 160, 8, 12, 4e-4, 1.0, 1.0),
        ("bevnext_r50_perspective_stage1", 80, 0, 2, 2e-4, 0.2, 0.75),
        ("bevnext_r50_perspective_stage2", 160, 8, 12, 4e-4, 1.0, 0.75),
    ],
)
def test_published_values(
    name: str, channels: int, frames: int, epochs: int, rate: float, velocity: float, ratio: float
) -> None:
    config = load_config(ROOT / "config" / "model" / f"{name}.yaml")
    training = config.training
    assert (config.channels, config.history.frames, training.epochs) == (channels, frames, epochs)
    assert (training.learning_rate, training.velocity_weight, training.backbone_lr_ratio) == (
        rate,
        velocity,
        ratio,
    )
    assert (config.image.height, config.image.width, config.image.feature_size) == (256, 704, (32, 88))
    assert (config.depth.bins, config.depth.values[0], config.depth.values[-1]) == (118, 1.0, 59.5)
    assert config.bev.size == 128
    assert config.class_names == (
        "car", "truck", "construction_vehicle", "bus", "trailer",
        "barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone",
    )  # fmt: skip


def test_empty_file_is_the_published_stage_2(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == ModelConfig()
    assert load_config(ROOT / "config/model/bevnext_r50_stage2.yaml") == ModelConfig()


WRONG = {
    "unknown key": ("chanels: 80", r"unknown key 'chanels'; known are: name, cameras"),
    "unknown key inside": (
        "image: {hight: 256}",
        r"unknown key 'hight' in 'image'; known are: height, width",
    ),
    "unknown key in a list": ("tasks: [{classes: [car], nsm: circle}]", r"unknown key 'nsm' in 'tasks\[0\]'"),
    "key that is no string": ("7: 80", "unknown key '7'"),
    "text for a number": ("channels: many", "'channels' must be an integer, got 'many'"),
    "number for a text": ("name: 7", "'name' must be a string, got 7"),
    "truth for a number": ("channels: true", "'channels' must be an integer, got True"),
    "fraction for an integer": ("image: {width: 704.5}", "'image.width' must be an integer, got 704.5"),
    "text for a fraction": ("bev: {cell: wide}", "'bev.cell' must be a number"),
    "number for a list": ("cameras: 6", "'cameras' must be a list"),
    "text for a list": ("cameras: CAM_FRONT", "'cameras' must be a list"),
    "not a choice": ("tasks: [{classes: [car], nms: soft}]", "must be one of rotated, circle, got 'soft'"),
    "required key": ("tasks: [{nms: circle}]", r"'tasks\[0\].classes' is missing"),
    "list for the file": ("[1, 2]", "the file must be a mapping, got list"),
    "number for a part": ("image: 256", "image must be a mapping, got int"),
    "impossible input": (
        "image: {width: 700}",
        "'image.width' must be above 0 and a multiple of 32, got 700",
    ),
    "negative size": ("image: {height: -32}", "'image.height' must be above 0 .*, got -32"),
    "impossible grid": ("bev: {cell: 0.7}", "bev: 2 \\* extent / cell must be a whole number"),
    "impossible depth": ("depth: {min: 60, max: 1}", "depth: needs 0 < min < max"),
    "no width": ("{channels: 8, history: {split_width: 8}}", "8 channels leave no width to history.group_width"),
    "impossible history": ("history: {frames: 3}", "history: frames must be 0 or 2, 5, 8"),
    "unknown anchor": ("anchor_camera: CAM_TOP", "anchor_camera 'CAM_TOP' is not one of cameras"),
    "camera twice": ("cameras: [CAM_FRONT, CAM_FRONT]", "cameras must not repeat a name"),
    "class twice": ("tasks: [{classes: [car]}, {classes: [car]}]", "a class stands in two tasks"),
    "below its range": ("bev: {cell: 0}", "'bev.cell' must be above 0, got 0"),
    "outside its range": (
        "head: {score_threshold: 1}",
        "'head.score_threshold' must be at least 0 and below 1, got 1",
    ),
    "in a list": (
        "tasks: [{classes: [car], scales: [-1]}]",
        r"'tasks\[0\].scales\[0\]' must be greater than 0, got -1",
    ),
    "empty list": ("cameras: []", r"'cameras' must be a list that is not empty, got \[\]"),
    "wrong item": ("cameras: [1]", r"model.yaml: 'cameras\[0\]' must be a string, got 1$"),
    "choice of numbers": ("training: {stage: '2'}", "'training.stage' must be one of 1, 2, got '2'"),
    "no number": ("depth: {max: .nan}", "'depth.max' must be a finite number, got nan"),
    "infinite": ("depth: {max: .inf}", "'depth.max' must be a finite number, got inf"),
    "typing error": ("chanels: 80", "did you mean 'channels'[?]$"),
    "two mistakes": (
        "image: {width: 1, hight: 1}",
        "unknown key 'hight' in 'image'; .*; 'image.width' must be",
    ),
    "bytes": ("name: !!binary aGk=", "'name' must be a string"),
    "itself": ("tasks: &a [*a]", "refers to itself"),
    "too deep": ("name: " + "[" * 5000, "cannot be read as YAML"),
    "scales": ("tasks: [{classes: [car], scales: [1, 2]}]", "scales must be empty or one per class"),
    "no YAML": ("image: {", "cannot be read as YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistake_is_named_with_file_and_key(case: str, tmp_path: Path) -> None:
    text, message = WRONG[case]
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("61", 61.0), ("6.1e1", 61.0), ("61e0", 61.0), ("+.61E+2", 61.0)]
)
def test_a_number_may_be_written_in_any_way(text: str, value: float, tmp_path: Path) -> None:
    read = load_config(written(tmp_path, f"depth: {{max: {text}}}")).depth.max
    assert read == value and isinstance(read, float)


def test_a_part_without_lines_is_the_published_one_and_null_stays_null(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "image:\ntraining:\n")) == ModelConfig()
    assert load_config(written(tmp_path, "training: {sync_bn_epoch: null}")).training.sync_bn_epoch is None


def test_made_in_python_it_is_checked_alike() -> None:
    with pytest.raises(ConfigError, match=r"^'width' must be above 0 and a multiple of 32, got 700$"):
        ImageConfig(width=700)
    with pytest.raises(ConfigError, match=r"^channels \(7\) must be even"):
        dataclasses.replace(ModelConfig(), channels=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().channels = 80  # type: ignore[misc]
    config = ModelConfig()
    assert pickle.loads(pickle.dumps(config)) == config and hash(config) == hash(ModelConfig())


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "channels: 80")
    assert load_config("~/model.yaml").channels == 80
    with pytest.raises(ConfigError, match=r"no such configuration file: .*/gone\.yaml"):
        load_config("~/gone.yaml")
    with pytest.raises(ConfigError, match=r"no such configuration file: ~nobody-of-that-name/model.yaml"):
        load_config("~nobody-of-that-name/model.yaml")


def test_a_dump_is_the_same_text_as_ever_but_for_added_keys() -> None:
    """Files and checkpoints of before are read by this version: the text decides."""
    mapping = config_to_mapping(ModelConfig())
    assert yaml.safe_load(dump_config(ModelConfig())) == mapping
    for part, names in ADDED.items():
        for name in names.split():
            del mapping[part][name]
    text = yaml.safe_dump(mapping, sort_keys=False, default_flow_style=None, width=110)
    assert hashlib.sha256(text.encode()).hexdigest() == DUMPED
    assert hashlib.sha256(json.dumps(mapping).encode()).hexdigest() == IN_A_CHECKPOINT


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file: .*gone\.yaml"):
        load_config(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        load_config(tmp_path / "binary.yaml")
