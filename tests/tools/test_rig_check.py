# SPDX-License-Identifier: Apache-2.0
"""``bevnext rig check``: the picture shows where calibration says that the ground is; a wrong axis is named too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pyquaternion import Quaternion

from bevnext_core.config import ModelConfig, dump_config
from bevnext_core.frame import CameraFrame
from bevnext_tools.cli.main import main
from bevnext_tools.rig.check import AXES, GROUND, HORIZON, check_pictures, describe, doubts, draw_rig
from bevnext_tools.rig.images import RigReader
from tests.own_rig import HEIGHT, OPTICAL, SLOT, WIDTH, rig_mapping, stamp_of, write_recording


def turned_left(quaternion: Quaternion) -> list[float]:
    w, x, y, z = quaternion.elements.tolist()
    return [x, y, z, w]


def frame_of(root: Path, **front: Any) -> CameraFrame:
    """The recording's first frame, the front camera's extrinsics changed; cameras by their own names."""
    mapping = rig_mapping()
    mapping["cameras"][0]["vehicle_from_camera"].update(front)
    (root / "rig.yaml").write_text(yaml.safe_dump(mapping))
    reader = RigReader(root / "rig.yaml", root / "images", ModelConfig())
    return reader.load(reader.refs("images")[0]).with_cameras(tuple(SLOT.values()))


SCALE = 8


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "rec")


def drawn(frame: CameraFrame, color: tuple[int, int, int]) -> np.ndarray:
    """``[P, 2]`` (row, column) in pixels of the front camera's image: what is drawn in this colour."""
    picture = np.zeros((SCALE * HEIGHT, SCALE * WIDTH, 3), np.uint8)
    draw_rig(picture, frame, 0)
    brightest = picture.max(-1, keepdims=True)
    # lines are blended with the black below them
    found = np.argwhere((np.abs(picture - brightest * (np.array(color) / max(color))) < 0.1 * brightest).all(-1))
    return (found - (SCALE - 1) / 2) / SCALE  # pixel centres are at whole coordinates


def test_a_level_camera_has_the_horizon_at_its_centre_and_the_ground_below(recording: Path) -> None:
    frame = frame_of(recording)
    line = drawn(frame, HORIZON)
    assert len(np.unique(line[:, 1])) > 0.95 * SCALE * WIDTH  # it crosses the picture
    np.testing.assert_allclose(np.median(line[:, 0]), 45, atol=0.3)
    ground = drawn(frame, GROUND)
    assert ground[:, 0].min() > 44.5
    for ahead in (10, 20):  # lines across, so far from the origin; the camera is 1.5 m ahead of it and 1.5 m high
        row = 45 + 127 * 1.5 / (ahead - 1.5)
        on_line = ground[np.abs(ground[:, 0] - row) < 0.3]
        assert len(np.unique(on_line[:, 1])) > 0.7 * SCALE * WIDTH
        beside = ground[np.abs(ground[:, 0] - row - 2) < 0.3]
        assert len(np.unique(beside[:, 1])) < 0.5 * SCALE * WIDTH


def test_a_camera_that_looks_down_has_the_horizon_higher(recording: Path) -> None:
    down = Quaternion(axis=[0, 1, 0], degrees=10) * OPTICAL
    line = drawn(frame_of(recording, quaternion_xyzw=turned_left(down)), HORIZON)
    np.testing.assert_allclose(np.median(line[:, 0]), 45 - 127 * np.tan(np.deg2rad(10)), atol=0.3)


def test_axes_point_where_the_vehicle_says(recording: Path) -> None:
    """Red (x) away from the camera and so up in the picture, green (y) to the left, blue (z) up."""
    frame = frame_of(recording)
    x, y, z = (np.median(drawn(frame, color), 0) for _, color in AXES)
    # they begin 6 m before the camera and 1.5 m to its left
    row, column = 45 + 127 * 1.5 / 6, 80 - 126 * 1.5 / 6
    np.testing.assert_allclose(y, (row, column - 126 * 0.5 / 6), atol=2)
    np.testing.assert_allclose(z, (row - 127 * 0.5 / 6, column), atol=2)
    assert x[0] < row - 1 and x[1] > column + 0.5  # towards the vanishing point


def test_other_cameras_are_seen_where_they_are(recording: Path) -> None:
    """The left camera's view begins at the left edge of the front camera's picture."""
    from bevnext_tools.rig.check import color_of

    found = drawn(frame_of(recording), color_of(1))
    assert len(found) > 20 and found[:, 1].max() < WIDTH / 2
    found = drawn(frame_of(recording), color_of(2))
    assert len(found) > 20 and found[:, 1].min() > WIDTH / 2


WRONG: list[tuple[dict[str, Any], str]] = [
    # the camera's axes given for a frame with x forward: the commonest mistake
    ({"quaternion_xyzw": [0.0, 0.0, 0.0, 1.0]}, "looks 90 deg up: is the rotation that of the optical frame"),
    # vehicle to camera in place of camera to vehicle
    ({"quaternion_xyzw": turned_left(OPTICAL.inverse)}, "the rotation looks inverted: it must take camera axes"),
    ({"quaternion_xyzw": turned_left(Quaternion(axis=[0, 0, 1], degrees=90) * OPTICAL)}, "looks 90 deg to the left, "),
    ({"translation": [1.5, 0, -0.2]}, "sits 0.20 m below the ground: the vehicle's origin is on the ground"),
]


@pytest.mark.parametrize(("front", "message"), WRONG)
def test_a_wrong_axis_is_named(front: dict[str, Any], message: str, recording: Path) -> None:
    slots = tuple(SLOT.values())
    assert doubts(frame_of(recording), slots) == []
    (doubt,) = doubts(frame_of(recording, **front), slots)
    assert doubt.startswith("CAM_FRONT: ") and message in doubt


def test_the_angles_of_the_file_are_those_told(recording: Path) -> None:
    mapping = rig_mapping()
    mapping["cameras"][0]["vehicle_from_camera"] = {"translation": [1, 2, 3], "looks_deg": [-20, -7, 3]}
    (recording / "rig.yaml").write_text(yaml.safe_dump(mapping))
    reader = RigReader(recording / "rig.yaml", recording / "images", ModelConfig())
    front = reader.load(reader.refs("images")[0]).with_cameras(("CAM_FRONT",))
    assert "at x 1.00, y 2.00, z 3.00 m; looks 20 deg to the right, 7.0 deg down, rolled 3.0 deg" in describe(front, 0)


def test_the_rig_from_above(recording: Path) -> None:
    frame = frame_of(recording)
    right = [[-1, 0, 0], [0, -1, 0], [0, 0, 1]] @ frame.ego_from_camera[0][:3, :3]
    back = frame_of(recording, quaternion_xyzw=turned_left(Quaternion(matrix=right)))
    first, second = (check_pictures(f, [], width=320)[1] for f in (frame, back))
    assert first.shape == second.shape and (first != second).any()
    half = first.shape[0] // 2
    changed = (first != second).any(-1)
    assert changed[:half].sum() > 50 and changed[half:].sum() > 50  # from the front to the back


def test_the_command(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recording / "images" / "left" / f"{stamp_of('left', 1)}.png").write_bytes(b"no image")
    command = ["rig", "check", "--images", str(recording / "images"), "--rig", str(recording / "rig.yaml")]
    assert main([*command, "--frame", "1", "--out", str(tmp_path / "look")]) == 0
    said = capsys.readouterr()
    assert "front (CAM_FRONT): at x 1.50, y 0.00, z 1.50 m; looks straight ahead, level" in said.out
    assert "masked: left in 1 frame; the first: left (" in said.err
    with Image.open(tmp_path / "look" / "images_001_images.png") as picture:
        assert picture.size == (2880, 1080)
    assert (tmp_path / "look" / "images_001_bev.png").is_file()
    # its own pictures are replaced, other files are not put in their company
    assert main([*command, "--out", str(tmp_path / "look")]) == 0
    assert len(list((tmp_path / "look").iterdir())) == 4
    (tmp_path / "look" / "notes.txt").touch()
    assert main([*command, "--out", str(tmp_path / "look")]) == 2
    assert "is not empty; give --force" in capsys.readouterr().err
    assert main([*command, "--frame", "3", "--out", str(tmp_path / "more")]) == 2
    assert "has frames 0 to 2, not 3" in capsys.readouterr().err
    assert main([*command[:4], "--out", str(tmp_path / "more")]) == 2
    assert "--images needs --rig" in capsys.readouterr().err


def test_a_slot_that_no_network_has(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (recording / "rig.yaml").read_text().replace("slot: CAM_FRONT\n", "slot: FRONT\n")
    (recording / "rig.yaml").write_text(text)
    command = ["rig", "check", "--images", str(recording / "images"), "--rig", str(recording / "rig.yaml")]
    command += ["--out", str(tmp_path / "look")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "camera 'front': slot 'FRONT' is none of the network's cameras: CAM_FRONT_LEFT, " in said
    assert said.endswith("; did you mean 'CAM_FRONT'?\n")
    own = ModelConfig(cameras=("FRONT", *SLOT.values()), anchor_camera="FRONT")
    (tmp_path / "own.yaml").write_text(dump_config(own))
    assert main([*command, "--config", str(tmp_path / "own.yaml")]) == 0
    said = capsys.readouterr()
    assert "front (FRONT): at x 1.50" in said.out and said.err == ""


def test_nuscenes_by_the_same_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    from tests.nuscenes_dataroot import write_dataroot

    root = str(write_dataroot(tmp_path / "data", {"scene-0103": 1}))
    assert main(["rig", "check", "--dataroot", root, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "CAM_BACK: at x -1.50" in said and "3 boxes and 500 lidar points" in said
    assert main(["check-calibration", "--dataroot", root, "--scene", "scene-0103", "--out", str(tmp_path / "b")]) == 0
    names = ["scene-0103_000_bev.png", "scene-0103_000_images.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
