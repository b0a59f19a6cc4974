"""Configuration files: strict, complete, and the published values."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevnext_core.config import ModelConfig, config_from_mapping, config_to_mapping, dump_config, load_config
from bevnext_core.errors import ConfigError
from tests.paths import ROOT

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
    "impossible input": ("image: {width: 700}", "image: height and width must be positive multiples of 32"),
    "impossible grid": ("bev: {cell: 0.7}", "bev: 2 \\* extent / cell must be a whole number"),
    "impossible depth": ("depth: {min: 60, max: 1}", "depth: needs 0 < min < max"),
    "impossible history": ("history: {frames: 3}", "history: frames must be 0 or 2, 5, 8"),
    "unknown anchor": ("anchor_camera: CAM_TOP", "anchor_camera 'CAM_TOP' is not one of cameras"),
    "camera twice": ("cameras: [CAM_FRONT, CAM_FRONT]", "cameras must not repeat a name"),
    "class twice": ("tasks: [{classes: [car]}, {classes: [car]}]", "a class stands in two tasks"),
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


def test_whole_number_is_a_number(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "depth: {max: 61}")).depth.max == 61.0


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file: .*gone\.yaml"):
        load_config(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        load_config(tmp_path / "binary.yaml")
