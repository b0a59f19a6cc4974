# SPDX-License-Identifier: Apache-2.0
"""Calibrations of ROS, kalibr and nuScenes as ``rig.yaml``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pyquaternion import Quaternion

from bevnext_core.errors import ConfigError
from bevnext_core.geometry import invert_rigid, rigid
from bevnext_tools.cli.main import main
from bevnext_tools.rig.file import load_rig
from tests.own_rig import OPTICAL

# as camera_calibration 1.x writes it: OpenCV's matrices, the keys in this order
CAMERA_INFO = """\
image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: [430.15433, 0.     , 311.71339,
           0.     , 430.60920, 221.06824,
           0.     ,   0.     ,   1.     ]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.337586, 0.111612, -0.000218, -0.000030, 0.000000]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1., 0., 0., 0., 1., 0., 0., 0., 1.]
projection_matrix:
  rows: 3
  cols: 4
  data: [345.3, 0., 310.5, 0., 0., 388.6, 217.6, 0., 0., 0., 1., 0.]
"""
PLACE = "1.7 0.1 1.5 -0.5 0.5 -0.5 0.5"


def rig_import(out: Path, *options: object) -> int:
    return main(["rig", "import", *map(str, options), "--out", str(out)])


@pytest.fixture
def info(tmp_path: Path) -> Path:
    path = tmp_path / "ost.yaml"
    path.write_text(CAMERA_INFO)
    return path


def test_camera_info_with_extrinsics(info: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rig.yaml"
    assert rig_import(out, "--camera-info", f"front={info}", "--vehicle-from-camera", f"front={PLACE}") == 0
    assert capsys.readouterr().out == f"1 camera -> {out}\n"
    (camera,) = load_rig(out).cameras
    assert (camera.name, camera.slot, camera.size) == ("front", "CAM_FRONT", (640, 480))
    k = camera.intrinsics
    assert (k.fx, k.fy, k.cx, k.cy) == (430.15433, 430.60920, 311.71339, 221.06824)
    assert camera.distortion.model == "plumb_bob"
    assert camera.distortion.coefficients == (-0.337586, 0.111612, -0.000218, -0.00003, 0.0)
    expected = rigid(np.array([0.5, -0.5, 0.5, -0.5]), np.array([1.7, 0.1, 1.5]))
    np.testing.assert_allclose(camera.vehicle_from_camera.matrix, expected, atol=1e-12)
    np.testing.assert_allclose(expected[:3, :3] @ [0, 0, 1], [1, 0, 0], atol=1e-12)  # it looks ahead


def test_angles_in_place_of_a_quaternion(info: Path, tmp_path: Path) -> None:
    out = tmp_path / "rig.yaml"
    assert rig_import(out, "--camera-info", f"front={info}", "--vehicle-from-camera", "front=1.7 0.1 1.5 0 0 0") == 0
    expected = rigid(np.array([0.5, -0.5, 0.5, -0.5]), np.array([1.7, 0.1, 1.5]))
    np.testing.assert_allclose(load_rig(out).cameras[0].vehicle_from_camera.matrix, expected, atol=1e-12)


def test_what_camera_info_does_not_tell_is_refused_by_name(
    info: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rig.yaml"
    assert rig_import(out, "--camera-info", info) == 0
    said = capsys.readouterr().out
    assert said == f"1 camera -> {out}; fill in " + ", ".join(
        f"narrow_stereo: {key}" for key in ("slot", "vehicle_from_camera.translation", "vehicle_from_camera.looks_deg")
    ) + "\n"
    assert "#   looks_deg: [left of straight ahead" in out.read_text()
    with pytest.raises(ConfigError, match="camera 'narrow_stereo': 'slot' is still FILL_IN"):
        load_rig(out)
    before = out.read_text()
    assert rig_import(out, "--camera-info", info, "--slot", "narrow_stereo=CAM_BACK") == 2
    assert "is there already: it may have been filled in" in capsys.readouterr().err and out.read_text() == before
    out.unlink()
    assert rig_import(out, "--camera-info", info, "--slot", "narrow_stereo=CAM_BACK") == 0
    with pytest.raises(ConfigError, match=r"'vehicle_from_camera.translation' is still FILL_IN: measure"):
        load_rig(out)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_width: 640\n", "", "'image_width' is missing; it has image_height, camera_name"),
        ("[430.15433, 0. ", "[430.15433, 0.5 ", "'camera_matrix' is not fx 0 cx, 0 fy cy, 0 0 1"),
        ("[430.15433", "[.nan", "'camera_matrix' must be 9 finite numbers"),
        ("430.60920, 221.06824,", "430.60920,", "'camera_matrix' must be 9 finite numbers"),
        ("plumb_bob", "thin_prism", "'distortion.model' must be one of none, plumb_bob"),
        ("-0.000030, 0.000000]", "]", "coefficients must be 4 or 5 numbers for plumb_bob, got 3"),
        ("image_width: 640", "image_width: [640]", "'size[0]' must be an integer, got [640]"),
        ("[430.15433", "[1000000000000000000000000000000", "'camera_matrix' must be 9 finite numbers"),
        ("distortion_model: plumb_bob", "distortion_model: [a]", "'distortion_model' must be a text, got ['a']"),
        ("image_width: 640", "image_width: 64", "(cx 311.713, cy 221.068), far outside of an image of 64x480"),
    ],
)
def test_wrong_camera_info(
    old: str, new: str, message: str, info: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in CAMERA_INFO
    info.write_text(CAMERA_INFO.replace(old, new))
    assert rig_import(tmp_path / "rig.yaml", "--camera-info", f"front={info}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and ("front" in line or str(info) in line)
    assert not (tmp_path / "rig.yaml").exists()


# ---------------------------------------------------------------------------------------------- kalibr
def chain_of(poses: list[np.ndarray]) -> dict[str, Any]:
    """A camchain of cameras at ``vehicle_from_camera`` poses."""
    chain: dict[str, Any] = {}
    for number, pose in enumerate(poses):
        camera: dict[str, Any] = {
            "cam_overlaps": [],
            "camera_model": "pinhole",
            "distortion_coeffs": [-0.28, 0.07, 0.0002, 1.7e-05],
            "distortion_model": ["radtan", "equidistant"][number % 2],
            "intrinsics": [461.6, 460.3 + number, 362.7, 248.1],
            "resolution": [752, 480],
            "rostopic": f"/cam{number}/image_raw",
        }
        if number:
            camera["T_cn_cnm1"] = (invert_rigid(pose) @ poses[number - 1]).tolist()
        chain[f"cam{number}"] = camera
    return chain


@pytest.fixture
def poses() -> list[np.ndarray]:
    """Front, left, back: turned about all axes."""
    turns = [(0.0, 0.02), (55.0, -0.1), (175.0, 0.05)]
    turned = [Quaternion(axis=[0, 0, 1], degrees=a) * Quaternion(axis=[0, 1, 0], radians=b) * OPTICAL for a, b in turns]
    return [rigid(q.elements, np.array([1.5 - n, 0.4 * n, 1.5])) for n, q in enumerate(turned)]


def kalibr(tmp_path: Path, chain: dict[str, Any], *options: str) -> int:
    (tmp_path / "camchain.yaml").write_text(yaml.safe_dump(chain))
    return rig_import(tmp_path / "rig.yaml", "--kalibr", tmp_path / "camchain.yaml", *options)


def cam0(poses: list[np.ndarray]) -> str:
    w, x, y, z = Quaternion(matrix=poses[0][:3, :3], atol=1e-6, rtol=0).elements
    return " ".join(map(str, (*poses[0][:3, 3], x, y, z, w)))


def test_a_camchain_is_followed_from_camera_to_camera(tmp_path: Path, poses: list[np.ndarray]) -> None:
    options = ("--vehicle-from-cam0", cam0(poses), "--names", "front,front_left,rear", "--slot", "rear=CAM_BACK")
    assert kalibr(tmp_path, chain_of(poses), *options) == 0
    cameras = load_rig(tmp_path / "rig.yaml").cameras
    assert [(c.name, c.slot) for c in cameras] == [
        ("front", "CAM_FRONT"),
        ("front_left", "CAM_FRONT_LEFT"),
        ("rear", "CAM_BACK"),
    ]
    for number, (camera, pose) in enumerate(zip(cameras, poses)):
        np.testing.assert_allclose(camera.vehicle_from_camera.matrix, pose, atol=1e-9)
        assert camera.intrinsics.fy == 460.3 + number and camera.size == (752, 480)
        assert camera.distortion.model == ("equidistant" if number == 1 else "plumb_bob")
        assert camera.distortion.coefficients == (-0.28, 0.07, 0.0002, 1.7e-05)


KALIBR_MISTAKES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c["cam1"].pop("T_cn_cnm1"), "camera 'cam1': 'T_cn_cnm1' is missing; it has cam_overlaps,"),
    (lambda c: c["cam2"]["T_cn_cnm1"][0].__setitem__(0, 7.0), "camera 'cam2': 'T_cn_cnm1' is no transform: its upper"),
    (lambda c: c["cam1"].update(T_cn_cnm1="none"), "camera 'cam1': 'T_cn_cnm1' must be four rows of four numbers"),
    (lambda c: c["cam0"].update(camera_model="omni"), "camera 'cam0': 'camera_model' is 'omni'; only pinhole"),
    (lambda c: c["cam1"].update(distortion_model="fov"), "'distortion_model' is 'fov'; known are radtan"),
    (lambda c: c["cam1"].update(resolution=[752]), "camera 'cam1': size must be [width, height], got [752]"),
    (lambda c: c.update({"cam1": 3}), "camera 'cam1': must be a mapping, got int"),
    (lambda c: c["cam1"]["T_cn_cnm1"][3].pop(), "camera 'cam1': 'T_cn_cnm1' must be 4 finite numbers, got [0.0, 0.0"),
    (lambda c: c.clear(), "holds no cam0: it is no camchain of kalibr"),
]


@pytest.mark.parametrize(("change", "message"), KALIBR_MISTAKES)
def test_wrong_camchains(
    change: Callable[[dict[str, Any]], object],
    message: str,
    tmp_path: Path,
    poses: list[np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    chain = chain_of(poses)
    change(chain)
    assert kalibr(tmp_path, chain, "--vehicle-from-cam0", cam0(poses)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "camchain.yaml" in line and message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--kalibr needs --vehicle-from-cam0 'x y z qx qy qz qw'"),
        (("--vehicle-from-cam0", "1 2 3"), "or the 6 'x y z left up roll' (degrees), got '1 2 3'"),
        (("--vehicle-from-cam0", "0 0 0 1 1 1 1"), "needs finite numbers and a quaternion of norm 1"),
        (("--vehicle-from-cam0", PLACE, "--names", "a,b"), "has 3 cameras (cam0, cam1, cam2), --names gives 2"),
        (("--vehicle-from-cam0", PLACE, "--slot", "top=CAM_FRONT"), "--slot names 'top', which is no camera"),
        (("--vehicle-from-cam0", PLACE, "--slot", "cam0"), "--slot must be NAME=VALUE, each name once, got 'cam0'"),
    ],
)
def test_wrong_options(
    options: tuple[str, ...], message: str, tmp_path: Path, poses: list[np.ndarray], capsys: Any
) -> None:
    assert kalibr(tmp_path, chain_of(poses), *options) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- nuScenes
def test_a_scene_of_nuscenes(tmp_path: Path) -> None:
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    from bevnext_core.datasets.nuscenes import NuScenesReader
    from tests.nuscenes_dataroot import write_dataroot

    root = write_dataroot(tmp_path / "data", {"scene-0103": 1})
    assert rig_import(tmp_path / "rig.yaml", "--dataroot", root) == 0
    (frame,) = NuScenesReader(root, "v1.0-mini").frames("scene-0103")
    for index, camera in enumerate(load_rig(tmp_path / "rig.yaml").cameras):
        assert camera.slot == frame.cameras[index] and camera.name == camera.slot[4:].lower()
        assert (camera.vehicle_from_camera.matrix == frame.ego_from_camera[index]).all()
        assert (camera.calibration.intrinsics == frame.intrinsics[index]).all()
        assert camera.size == tuple(frame.image_sizes[index])
