# SPDX-License-Identifier: Apache-2.0
"""A rig's images as frames: stamps, poses, what is missing, and the same boxes as the same scene read as nuScenes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from bevnext_core.classes import CAMERAS
from bevnext_core.errors import BevnextError, ConfigError, DatasetError, FrameError
from bevnext_tools.cli.main import main
from bevnext_tools.draw.cameras import draw_frame
from bevnext_tools.rig.images import WithoutHistory
from tests.own_rig import (
    DELAY,
    HEIGHT,
    SLOT,
    SLOTS,
    WIDTH,
    color_of,
    frames_of,
    reader_of,
    rig_mapping,
    stamp_of,
    write_recording,
)
from tests.paths import ROOT
from tests.published import save_small


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "rec")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("checkpoint") / "small.safetensors")


def change_rig(recording: Path, **values: Any) -> None:
    """Give the camera ``left`` other values."""
    mapping = rig_mapping()
    mapping["cameras"][1].update(values)
    (recording / "rig.yaml").write_text(yaml.safe_dump(mapping))


def detect(recording: Path, checkpoint: Path, out: Path, *options: object) -> int:
    rig = ("--images", recording / "images", "--rig", recording / "rig.yaml")
    command = ("detect", *rig, "--checkpoint", checkpoint, "--out", out, "--device", "cpu", *options)
    return main([str(part) for part in command])


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------- frames
def test_four_cameras_fill_their_slots_and_the_others_are_masked(recording: Path) -> None:
    reader = reader_of(recording)
    frames = frames_of(reader)
    assert len(reader) == len(frames) == 3 and reader.scenes == ("images",) and reader.remarks() == ""
    for number, frame in enumerate(frames):
        assert frame.cameras == CAMERAS and frame.stamp_ns == stamp_of("front", number)
        assert np.flatnonzero(frame.valid).tolist() == sorted(SLOTS)
        for name, slot in zip(SLOT, SLOTS):
            assert tuple(frame.images[slot][0, 0]) == color_of(name, number)  # type: ignore[index]
            assert frame.camera_stamps_ns[slot] == stamp_of(name, number)
            # 10 m/s ahead, at the camera's own stamp
            ahead = 5.0 * number + 10.0 * DELAY[name] / 1e9
            np.testing.assert_allclose(frame.global_from_camera_ego[slot, :3, 3], [ahead, 0, 0], atol=1e-6)
        np.testing.assert_allclose(frame.global_from_ego[:3, 3], [5.0 * number, 0, 0], atol=1e-9)


def test_the_nearest_image_within_the_tolerance_makes_the_frame(recording: Path) -> None:
    folder = recording / "images" / "left"
    (folder / f"{stamp_of('left', 1)}.png").rename(folder / f"{stamp_of('front', 1) + 50_000_000}.png")
    Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(folder / f"{stamp_of('front', 1) - 55_000_000}.png")
    frame = frames_of(reader_of(recording))[1]
    assert frame.camera_stamps_ns[SLOTS[1]] == stamp_of("front", 1) + 50_000_000
    reader = reader_of(recording, max_spread=0.04)
    assert len(reader) == 2 and reader.skipped == {"missing_camera": 1}
    first = "at 1700000000.500000000 s the nearest image of left is 0.050 s away"
    assert reader.remarks() == f"1 of 3 frames was skipped (missing_camera 1); the first: {first}"


@pytest.mark.parametrize("policy", ["skip", "mask"])
def test_missing_and_unreadable_images_follow_the_policy(policy: Any, recording: Path) -> None:
    images = recording / "images"
    (images / "right" / f"{stamp_of('right', 0)}.png").unlink()
    cut = images / "back" / f"{stamp_of('back', 2)}.png"
    cut.write_bytes(cut.read_bytes()[:60])
    reader = reader_of(recording, missing=policy)
    if policy == "skip":
        refs = reader.refs("images")
        assert [ref.stamp_ns for ref in refs] == [stamp_of("front", 1), stamp_of("front", 2)]
        reader.load(refs[0])
        with pytest.raises(FrameError, match=f"back .{cut}.: the image cannot be decoded"):
            reader.load(refs[1])
        assert reader.remarks().startswith("2 of 3 frames were skipped (bad_image 1, missing_camera 1); the first: at ")
        return
    frames = frames_of(reader)
    valid = [[bool(frame.valid[slot]) for slot in SLOTS] for frame in frames]
    assert valid == [[True, True, False, True], [True] * 4, [True, True, True, False]]
    # what is known of a masked camera stays: it is no other rig when it comes back
    assert (frames[0].intrinsics == frames[1].intrinsics).all()
    assert reader.remarks().startswith("masked: back in 1 frame, right in 1 frame; the first: back (")


def test_frames_without_poses_are_skipped(recording: Path) -> None:
    lines = (recording / "poses.tum").read_text().splitlines()
    (recording / "poses.tum").write_text("\n".join(lines[:3]))  # up to the second image of the anchor
    reader = reader_of(recording)
    assert len(reader) == 1 and reader.skipped == {"no_pose": 2}
    (recording / "poses.tum").write_text("5.0 0 0 0 0 0 0 1\n6.0 0 0 0 0 0 0 1")
    with pytest.raises(DatasetError, match=r"none of 3 frames can be used: at 17\S+ s \S+poses.tum goes from 5.0"):
        reader_of(recording)


def test_distortion_is_taken_out(recording: Path) -> None:
    """A straight edge that the lens bends is straight again."""
    k, d = np.array([[126.0, 0, 80], [0, 127, 45], [0, 0, 1]]), np.array([-0.3, 0.05, 0, 0])
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    seen = cv2.undistortPoints(np.stack([columns, rows], -1).reshape(-1, 1, 2), k, d, P=k).reshape(HEIGHT, WIDTH, 2)
    bent = np.repeat(np.where(seen[..., 1] > 8, 255, 0).astype(np.uint8)[..., None], 3, 2)
    for path in (recording / "images" / "left").iterdir():
        Image.fromarray(bent).save(path)
    change_rig(recording, distortion={"model": "plumb_bob", "coefficients": d.tolist()})
    image = frames_of(reader_of(recording))[0].images[SLOTS[1]]
    assert image is not None
    edge = [int(np.argmax(column > 127)) for column in image[..., 0].T[20:-20]]
    assert max(edge) - min(edge) <= 1 and 7 <= min(edge) <= 10
    assert np.ptp([int(np.argmax(column > 127)) for column in bent[..., 0].T[20:-20]]) > 2


def test_sizes_that_do_not_fit_are_one_line(recording: Path) -> None:
    change_rig(recording, size=[320, 180], intrinsics={"fx": 252.0, "fy": 254.0, "cx": 160.0, "cy": 90.0})
    with pytest.raises(ConfigError, match=r"camera 'left': size is \[320, 180\], but .*png is \[160, 90\]: .*scale"):
        reader_of(recording)


# ---------------------------------------------------------------------------------------------- detect
def test_the_command_warns_of_what_a_rig_is_suspected_of(
    recording: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_rig(recording, vehicle_from_camera={"translation": [1.5, 0, 1.5], "looks_deg": [55, 0, 90]})
    assert detect(recording, checkpoint, tmp_path / "out", "--no-pictures") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    (line,) = warned
    assert line.startswith("bevnext: warning: left: its image is rolled by 90 deg against the vehicle: see the axes")


def test_the_command_writes_lines_and_pictures_and_says_what_it_left_out(
    recording: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recording / "images" / "back" / f"{stamp_of('back', 1)}.png").write_bytes(b"no image")
    options = ("--poses", recording / "poses.tum", "--missing-camera", "mask")
    assert detect(recording, checkpoint, tmp_path / "out", *options) == 0
    said = capsys.readouterr()
    (told,) = re.findall(r"3 frames, (\d+) boxes \((\d+) from 0.3 on, no thing twice: those are drawn\) -> ", said.out)
    assert 0 < int(told[1]) <= int(told[0]) == sum(len(line["boxes"]) for line in lines_of(tmp_path / "out"))
    assert "detections.jsonl" in said.out and "the demo's weights" not in said.err
    assert "note: the rig has no CAM_BACK_LEFT, CAM_BACK_RIGHT: the network sees nothing there" in said.err
    assert "warning: masked: back in 1 frame; the first: back (" in said.err
    assert [line["stamp_ns"] for line in lines_of(tmp_path / "out")] == [stamp_of("front", n) for n in range(3)]
    page = (ROOT / "docs" / "own_cameras.md").read_text()
    (shown,) = re.findall(r"^```json\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for line in lines_of(tmp_path / "out"):  # as the page shows them
        assert list(line) == list(json.loads(shown))
        for box in line["boxes"]:
            assert [(key, np.shape(value)) for key, value in box.items()] == [
                (key, np.shape(value)) for key, value in json.loads(shown)["boxes"][0].items()
            ]
    written = {path.name for path in (tmp_path / "out").rglob("*.*")}
    assert {"detections.jsonl", "000.png", "002.png"} <= written and "submission.json" not in written
    assert detect(recording, checkpoint, tmp_path / "skip", "--poses", recording / "poses.tum", "--no-pictures") == 0
    said = capsys.readouterr()
    assert "1 of 3 frames was skipped (bad_image 1)" in said.err and len(lines_of(tmp_path / "skip")) == 2


def test_a_damaged_image_of_the_only_frame_is_told_once(
    recording: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (recording / "images" / "front").iterdir():
        if path.stem != str(stamp_of("front", 1)):
            path.unlink()
    cut = recording / "images" / "left" / f"{stamp_of('left', 1)}.png"
    cut.write_bytes(cut.read_bytes()[:60])
    assert detect(recording, checkpoint, tmp_path / "out", "--no-pictures") == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if str(cut) in line]
    assert said.startswith("bevnext: error: the only frame cannot be used: images, frame 0: left (")


def test_without_poses_each_frame_stands_alone(
    recording: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert detect(recording, checkpoint, tmp_path / "all", "--no-pictures") == 0
    said = capsys.readouterr()
    assert "without history" in said.out
    assert "note: no --poses: each frame is detected by itself, without history" in said.err
    for name in SLOT:  # the last frame alone
        for number in (0, 1):
            (recording / "images" / name / f"{stamp_of(name, number)}.png").unlink()
    titles: list[Any] = []
    made = draw_frame
    monkeypatch.setattr(
        "bevnext_tools.draw.cameras.draw_frame", lambda *a, **k: titles.append(k["titles"]) or made(*a, **k)
    )
    assert detect(recording, checkpoint, tmp_path / "last") == 0
    assert titles == [{slot: f"{name} ({slot})" for name, slot in SLOT.items()}]
    assert (tmp_path / "last" / "frames" / "images" / "000.png").is_file() and not list(tmp_path.rglob("*.mp4"))
    assert "\n1 frame, " in capsys.readouterr().out
    assert lines_of(tmp_path / "last")[0]["boxes"] == lines_of(tmp_path / "all")[2]["boxes"] != []
    line = lines_of(tmp_path / "last")[0]
    assert line["token"] is None and {str(box["velocity"]) for box in line["boxes"]} == {"None"}


def test_the_detector_without_history_is_reset_before_each_frame(recording: Path) -> None:
    from tests.ros.stand_in import StandIn

    stand_in = StandIn()
    detector = WithoutHistory(stand_in)
    detector.reset("new scene")
    found = [detector.step(frame) for frame in frames_of(reader_of(recording))]
    assert stand_in.resets == ["new scene", *["there are no poses"] * 3] and detector.config is stand_in.config
    assert [detections.info.history_frames for detections in found] == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "x"), "--images needs --rig"),
        (("--images", "x", "--rig", "r", "--rate", "0"), "--rate must be above 0 and at most 1000 Hz, got 0"),
        (("--images", "x", "--rig", "r", "--max-spread", "2"), "--max-spread must be between 0 and 1 s, got 2"),
        (("--dataroot", "x", "--poses", "p"), "--poses goes with --images"),
        (("--bag", "x", "--missing-camera", "mask"), "--missing-camera goes with --images"),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", *options, "--checkpoint", "c", "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_scene_cannot_be_chosen(recording: Path, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    assert detect(recording, checkpoint, tmp_path / "out", "--sweeps") == 2
    assert "--sweeps chooses from a data set; a folder of images is taken as a whole" in capsys.readouterr().err


@pytest.mark.parametrize("sweeps", [(), ("--sweeps",)])
def test_a_scene_of_nuscenes_as_files_gives_the_same_boxes(
    sweeps: tuple[str, ...], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly: stamps, poses and calibration are written with all their digits."""
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    from tests.nuscenes_dataroot import write_dataroot

    root = str(write_dataroot(tmp_path / "data", {"scene-0103": 3, "scene-0061": 1}, sweeps=1))
    scene = ("--dataroot", root, "--scene", "scene-0103", *sweeps)
    out = [tmp_path / name for name in ("example", "own", "nuscenes")]
    assert main(["rig", "example", *scene, "--out", str(out[0])]) == 0
    command = capsys.readouterr().out.split("detect: bevnext ")[1].split(" --checkpoint")[0].split()
    common = ["--checkpoint", str(checkpoint), "--device", "cpu", "--no-pictures"]
    assert main([*command, *common, "--out", str(out[1])]) == 0
    assert main(["detect", *scene, *common, "--json-lines", "--out", str(out[2])]) == 0
    own, expected = lines_of(out[1]), lines_of(out[2])
    assert len(own) == len(expected) == (5 if sweeps else 3)
    for line, other in zip(own, expected):
        assert line["boxes"] == other["boxes"] != []
        assert line["stamp_ns"] == other["stamp_ns"] and line["global_from_ego"] == other["global_from_ego"]


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    for missing in ("rig.yaml", "images"):
        with pytest.raises(BevnextError, match="no such"):
            folder = write_recording(tmp_path / missing)
            (folder / missing).rename(folder / "gone")
            reader_of(folder)
