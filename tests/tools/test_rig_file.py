# SPDX-License-Identifier: Apache-2.0
"""``rig.yaml``, stamps and poses: what is wrong is one line that names file, camera, key and value."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bevnext_core.config import ModelConfig
from bevnext_core.errors import ConfigError, DatasetError
from bevnext_core.files import Parser
from bevnext_core.geometry import rigid
from bevnext_core.strict import model_fields
from bevnext_tools.cli import registry
from bevnext_tools.cli.main import main
from bevnext_tools.rig.file import (
    PLACEHOLDER,
    Distortion,
    Extrinsics,
    Intrinsics,
    Rig,
    RigCamera,
    load_rig,
    write_rig,
)
from bevnext_tools.rig.stamps import Poses, seconds, stamp_in_name, stamp_ns
from tests.own_rig import rig_mapping
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "own_cameras.md").read_text()


def written(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The rig's file after ``change(its second camera, "left")``."""
    mapping = rig_mapping()
    change(mapping["cameras"][1])
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


def test_values_are_read_exactly(tmp_path: Path) -> None:
    mapping = rig_mapping()
    mapping["cameras"][0]["vehicle_from_camera"]["translation"] = [1 / 3, -1e-5, 1.5]
    mapping["cameras"][0]["distortion"] = {"model": "plumb_bob", "coefficients": [1e-7, -0.25, 0.0, 0.1 + 0.2]}
    write_rig(tmp_path / "rig.yaml", mapping["cameras"], "made")
    rig = load_rig(tmp_path / "rig.yaml")
    first = rig.cameras[0]
    assert first.distortion.coefficients == (1e-7, -0.25, 0.0, 0.1 + 0.2)
    x, y, z, w = mapping["cameras"][0]["vehicle_from_camera"]["quaternion_xyzw"]
    expected = rigid(np.array([w, x, y, z]), np.array([1 / 3, -1e-5, 1.5]))
    assert (first.vehicle_from_camera.matrix == expected).all()
    # the optical axis of the front camera is the vehicle's x, its y points down
    np.testing.assert_allclose(expected[:3, :3] @ [[0, 0], [0, 1], [1, 0]], [[1, 0], [0, 0], [0, -1]], atol=1e-12)
    assert rig.anchor_for(ModelConfig(), "rig.yaml") is first
    assert first.calibration.intrinsics.tolist() == [[126, 0, 80], [0, 127, 45], [0, 0, 1]]


def test_a_matrix_says_the_same_as_a_quaternion(tmp_path: Path) -> None:
    quaternion = load_rig(written(tmp_path, lambda camera: None)).cameras[1].vehicle_from_camera.matrix
    rows = quaternion[:3, :3].tolist()
    placed = {"translation": [1.5, 0.0, 1.5], "rotation": rows}
    path = written(tmp_path, lambda camera: camera.update(vehicle_from_camera=placed))
    np.testing.assert_array_equal(load_rig(path).cameras[1].vehicle_from_camera.matrix, quaternion)


def test_a_quaternion_in_the_order_of_nuscenes(tmp_path: Path) -> None:
    expected = load_rig(written(tmp_path, lambda camera: None)).cameras[1].vehicle_from_camera

    def reorder(camera: dict[str, Any]) -> None:
        x, y, z, w = camera["vehicle_from_camera"].pop("quaternion_xyzw")
        camera["vehicle_from_camera"]["quaternion_wxyz"] = [w, x, y, z]

    found = load_rig(written(tmp_path, reorder)).cameras[1].vehicle_from_camera
    np.testing.assert_array_equal(found.matrix, expected.matrix)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such rig file: .*; make one with bevnext rig template or rig import"):
        load_rig(tmp_path / "rig.yaml")
    with pytest.raises(ConfigError, match=r"detector.yaml is of a ROS node \(ros__parameters\), for --bag"):
        load_rig(ROOT / "config" / "detector.yaml")


def test_angles_say_where_a_camera_looks(tmp_path: Path) -> None:
    def axes(*angles: float) -> np.ndarray:
        camera = load_rig(written(tmp_path, turned_by(list(angles)))).cameras[1]
        return camera.vehicle_from_camera.matrix[:3, :3].T

    right, down, view = axes(90, 0, 0)
    np.testing.assert_allclose([view, right, down], [[0, 1, 0], [1, 0, 0], [0, 0, -1]], atol=1e-12)
    np.testing.assert_allclose(axes(0, -30, 0)[2], [np.sqrt(0.75), 0, -0.5], atol=1e-12)
    np.testing.assert_allclose(axes(0, 0, 30)[0], [0, -np.sqrt(0.75), 0.5], atol=1e-12)


def placed(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda camera: camera["vehicle_from_camera"].update(values)


def turned(rows: list[list[float]]) -> Callable[[dict[str, Any]], object]:
    place = {"translation": [0, 0, 1.5], "rotation": rows}
    return lambda camera: camera.update(vehicle_from_camera=place)


def turned_by(angles: list[float]) -> Callable[[dict[str, Any]], object]:
    place = {"translation": [0, 0, 1.5], "looks_deg": angles}
    return lambda camera: camera.update(vehicle_from_camera=place)


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown": (lambda c: c.update(fov=90), "unknown key 'fov'; known are: name, slot, size, intrinsics"),
    "typo": (lambda c: c["intrinsics"].update(fX=1), "unknown key 'fX' in 'intrinsics'"),
    "missing": (lambda c: c.pop("size"), "'size' is missing"),
    "missing inside": (lambda c: c["intrinsics"].pop("cy"), "'intrinsics.cy' is missing"),
    "text": (lambda c: c["intrinsics"].update(fx="wide"), "'intrinsics.fx' must be a number, got 'wide'"),
    "nan": (lambda c: c["intrinsics"].update(cx=float("nan")), "'intrinsics.cx' must be a finite number, got nan"),
    "negative": (lambda c: c["intrinsics"].update(fx=-3.0), "'intrinsics.fx' must be above 0, got -3.0"),
    "size": (lambda c: c.update(size=[160]), "size must be [width, height], got [160]"),
    "other size": (lambda c: c["intrinsics"].update(cx=812.0), "(cx 812, cy 45), far outside of an image of 160x90"),
    "model": (lambda c: c.update(distortion={"model": "fov"}), "'distortion.model' must be one of none, plumb_bob"),
    "coefficients": (
        lambda c: c.update(distortion={"model": "equidistant", "coefficients": [0.1, 0.2]}),
        "distortion: coefficients must be 4 numbers for equidistant, got 2",
    ),
    "millimetres": (placed(translation=[1500, 0, 1200]), "translation [1500.0, 0.0, 1200.0] is more than 30 m"),
    "two": (placed(translation=[1, 2]), "translation must be 3 numbers (x, y, z in metres), got [1.0, 2.0]"),
    "quaternion": (placed(quaternion_xyzw=[1, 1, 0, 0]), "must be 4 numbers (x, y, z, w) of norm 1, got [1.0, 1.0,"),
    "both": (placed(rotation=[[1, 0, 0], [0, 1, 0], [0, 0, 1]]), "needs one of quaternion_xyzw (x, y, z, w), quat"),
    "mirror": (turned([[1, 0, 0], [0, 1, 0], [0, 0, -1]]), "is no rotation: its rows must be orthonormal"),
    "scaled": (turned([[2, 0, 0], [0, 1, 0], [0, 0, 1]]), "rotation [[2.0, 0.0, 0.0], "),
    "rows": (turned([[1, 0, 0], [0, 1, 0]]), "rotation must be 3 rows of 3 numbers"),
    "angles": (turned_by([55, 0]), "looks_deg must be 3 angles (left, up, roll in degrees), got [55.0, 0.0]"),
    "place": (lambda c: c.update(vehicle_from_camera=PLACEHOLDER), "'vehicle_from_camera' is still FILL_IN: measure"),
    "slot": (lambda c: c.update(slot=PLACEHOLDER), "'slot' is still FILL_IN: name the network"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line_with_file_camera_key_and_value(kind: str, tmp_path: Path) -> None:
    change, message = MISTAKES[kind]
    path = written(tmp_path, change)
    with pytest.raises(ConfigError) as error:
        load_rig(path)
    text = str(error.value)
    assert text.startswith(f"{path}: camera 'left': ") and message in text and "\n" not in text, text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("cameras"), "'cameras' is missing"),
        (lambda m: m.update(cameras=[]), "cameras must not be empty"),
        (lambda m: m["cameras"][1].update(name="front"), "two cameras have the name 'front'"),
        (lambda m: m["cameras"][1].update(slot="CAM_FRONT"), "two cameras have the slot 'CAM_FRONT'"),
        (lambda m: m["cameras"][1].update(name="../x"), "name '../x' must be of letters, digits"),
        (lambda m: m.update(anchor="top"), "anchor 'top' is no camera; there are front, left, right, back"),
        (lambda m: m["cameras"].append(3), "camera 5: the file must be a mapping, got int"),
    ],
)
def test_a_mistake_in_the_whole(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    mapping = copy.deepcopy(rig_mapping())
    change(mapping)
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump(mapping))
    with pytest.raises(ConfigError) as error:
        load_rig(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value), error.value


def test_the_rig_must_fit_the_network(tmp_path: Path) -> None:
    rig = load_rig(written(tmp_path, lambda camera: camera.update(slot="LEFT")))
    with pytest.raises(ConfigError, match="camera 'left': slot 'LEFT' is none of the network's cameras: CAM_"):
        rig.anchor_for(ModelConfig(), "rig.yaml")
    mapping = rig_mapping()
    mapping["cameras"].pop(0)
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(mapping))
    with pytest.raises(ConfigError, match=r"no camera has the slot CAM_FRONT, .* with the key 'anchor'"):
        load_rig(tmp_path / "rig.yaml").anchor_for(ModelConfig(), "rig.yaml")
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump({**mapping, "anchor": "back"}))
    assert load_rig(tmp_path / "rig.yaml").anchor_for(ModelConfig(), "rig.yaml").name == "back"


def test_stamps_are_exact_in_every_unit() -> None:
    exact = 1_533_151_603_512_404_123
    for text in ("1533151603512404123", "1533151603.512404123"):
        assert stamp_ns(text) == exact
    assert stamp_ns("1533151603512404") == 1_533_151_603_512_404_000
    assert stamp_ns("1533151603512") == 1_533_151_603_512_000_000
    assert stamp_ns("1533151603") == 1_533_151_603_000_000_000
    assert stamp_ns("12.5") == 12_500_000_000 and stamp_ns("12") == 12_000_000_000
    assert stamp_ns(seconds(exact)) == exact and seconds(12_000_000_001) == "12.000000001"
    for wrong in ("", "front", "nan", "-1", "15331516035", "1e30"):
        assert stamp_ns(wrong) is None, wrong


def test_stamps_in_names() -> None:
    nuscenes = "n008-2018-08-01-15-16-36-0400__CAM_FRONT__1533151603512404"
    assert stamp_in_name(nuscenes) == 1_533_151_603_512_404_000
    assert stamp_in_name("1305031102.175304") == 1_305_031_102_175_304_000
    assert stamp_in_name("12.500000000") == 12_500_000_000
    for number in ("000001", "0000000001", "frame_12", "v1.2_0003"):
        assert stamp_in_name(number) is None, number


POSES = "# a comment\n1700000000.0 0 0 0 0 0 0 1\n\n1700000001.0,10,2,0,0,0,0.7071067811865476,0.7071067811865476\n"


def test_poses_are_exact_at_their_stamps_and_interpolated_between(tmp_path: Path) -> None:
    (tmp_path / "poses.tum").write_text(POSES)
    poses = Poses(tmp_path / "poses.tum")
    start, second = 1_700_000_000 * 10**9, 10**9
    assert poses.at(start - 1) is None and poses.at(start + second + 1) is None
    end = poses.at(start + second)
    assert end is not None
    assert (end == rigid(np.array([0.7071067811865476, 0, 0, 0.7071067811865476]), np.array([10.0, 2, 0]))).all()
    middle = poses.at(start + second // 2)
    assert middle is not None
    c = np.cos(np.pi / 4)
    np.testing.assert_allclose(middle[:3, :3], [[c, -c, 0], [c, c, 0], [0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no poses; each line is: stamp x y z qx qy qz qw"),
        ("1 2 3 4 5 6 7\n", "line 1: expected the 8 numbers stamp x y z qx qy qz qw, got '1 2 3 4 5 6 7'"),
        ("time x y z qx qy qz qw\n", "line 1: expected the 8 numbers"),
        ("#\n1.0 0 0 0 0 0 0 2\n", "line 2: needs finite numbers and a quaternion qx qy qz qw of norm 1, got 0 0 0 0"),
        ("1.0 nan 0 0 0 0 0 1\n", "line 1: needs finite numbers"),
        ("2.0 0 0 0 0 0 0 1\n1.0 0 0 0 0 0 0 1\n", "line 2: the stamp 1.0 is not later than that before"),
    ],
)
def test_wrong_poses(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "poses.tum"
    path.write_text(text)
    with pytest.raises(DatasetError) as error:
        Poses(path)
    assert str(path) in str(error.value) and message in str(error.value)


# ---------------------------------------------------------------------------------------------- a file with gaps
def test_a_template_is_refused_until_it_is_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rig.yaml"
    command = ["rig", "template", "--cameras", "front,rear_left,left", "--size", "400x225", "--out", str(path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said == f"3 cameras -> {path}; replace each FILL_IN; no slot goes by the name of left\n"
    filled = {"fx": "317.0", "fy": "317.0", "translation": "[1.5, 0.0, 1.5]", "looks_deg": "[0.0, 0.0, 0.0]"}
    for key, value in filled.items():
        with pytest.raises(ConfigError, match=rf"camera 'front': '\w+\.{key}' is still FILL_IN: \S"):
            load_rig(path)
        path.write_text(path.read_text().replace(f"{key}: FILL_IN", f"{key}: {value}"))
    with pytest.raises(ConfigError, match="camera 'left': 'slot' is still FILL_IN: name the network's camera"):
        load_rig(path)
    path.write_text(path.read_text().replace("slot: FILL_IN", "slot: CAM_FRONT_LEFT"))
    front, rear_left, left = load_rig(path).cameras
    assert [c.slot for c in (front, rear_left, left)] == ["CAM_FRONT", "CAM_BACK_LEFT", "CAM_FRONT_LEFT"]
    assert front.size == (400, 225) and (front.intrinsics.cx, front.intrinsics.cy) == (200.0, 112.5)
    np.testing.assert_array_equal(front.vehicle_from_camera.matrix[:3, 3], [1.5, 0, 1.5])
    assert main(command) == 2
    assert "is there already: it may have been filled in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cameras", "size", "message"),
    [
        ("front,front", "400x225", "two cameras have the name 'front'"),
        ("front,", "400x225", "name '' must be of letters"),
        ("front", "400", "--size must be WIDTHxHEIGHT in pixels, such as 1600x900, got '400'"),
        ("front", "0x225", "'size[0]' must be greater than 0, got 0"),
    ],
)
def test_a_template_of_what_cannot_be(
    cameras: str, size: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cameras", cameras, "--size", size, "--out", str(tmp_path / "rig.yaml")]
    assert main(["rig", "template", *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- docs/own_cameras.md
def test_the_page_shows_every_key_and_its_example_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for part in (Rig, RigCamera, Intrinsics, Distortion, Extrinsics):
        for key in model_fields(part):
            assert re.search(rf"\b{key}:", example), key
    (tmp_path / "rig.yaml").write_text(example)
    front, left, back = load_rig(tmp_path / "rig.yaml").cameras
    assert left.vehicle_from_camera.matrix[1, 2] == pytest.approx(np.sin(np.deg2rad(55)))
    for camera, ahead in ((front, 1), (back, -1)):
        looks, down = camera.vehicle_from_camera.matrix[:3, :3] @ [0, 0, 1], [0, 1, 0]
        np.testing.assert_allclose(looks, [ahead, 0, 0], atol=1e-12)
        np.testing.assert_allclose(camera.vehicle_from_camera.matrix[:3, :3] @ down, [0, 0, -1], atol=1e-12)


def test_the_pages_commands_have_these_options() -> None:
    registry.discover()
    commands = re.findall(r"^bevnext (.*?)(?:\s+#.*)?$", PAGE.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) >= 9
    for command in commands:
        name, *options = shlex.split(command)
        parser = Parser()
        importlib.import_module(registry.COMMANDS[name].module).add_arguments(parser)
        parser.parse_args(options)
