# SPDX-License-Identifier: Apache-2.0
"""The drive that the package carries: the one that is rendered, and played only where that cannot be."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bevnext_core.errors import DatasetError
from bevnext_core.images import read_image
from bevnext_core.ops.native import NativeBuildError
from bevnext_tools.cli.main import main
from bevnext_world.demo.drive import IMAGE_SIZE, PACKED, PACKED_KEY_FRAMES, SEED, SPLIT, prepare_drive
from bevnext_world.recording.generate import Order, generate
from bevnext_world.renderer import renderer


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def library() -> None:
        raise NativeBuildError("no C++ compiler found")

    monkeypatch.setattr(renderer, "library", library)


def test_images_are_those_that_are_rendered_now(tmp_path: Path) -> None:
    """At its first instant; scripts/pack_demo_drive.py makes the archive anew."""
    made = Order(tmp_path / "made", SPLIT, SEED, 1, IMAGE_SIZE, sweeps=False, key_frames=1)
    generate(made)
    with zipfile.ZipFile(PACKED) as archive:
        archive.extractall(tmp_path / "packed")
    images = sorted(path.relative_to(made.out) for path in made.out.glob("samples/CAM_*/*.jpg"))
    assert len(images) == 6
    for name in images:
        rendered, packed = (read_image(folder / name, "") for folder in (made.out, tmp_path / "packed"))
        # another version of the JPEG library may round otherwise
        assert np.abs(rendered.astype(int) - packed).max() <= 3, name


def test_it_is_played_where_nothing_can_be_rendered(
    no_compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    monkeypatch.setenv("BEVNEXT_CACHE_DIR", str(tmp_path))
    drive = prepare_drive()
    said = capsys.readouterr().err.splitlines()
    assert said[1].startswith(f"bevnext: the drive is the package's own, {PACKED_KEY_FRAMES} key frames: no C++")
    from nuscenes.nuscenes import NuScenes

    tables = NuScenes(drive.version, str(drive.dataroot), verbose=False)
    assert len(tables.sample) == PACKED_KEY_FRAMES and not drive.made
    cameras = [row for row in tables.sample_data if row["channel"].startswith("CAM")]
    assert cameras and all((drive.dataroot / row["filename"]).is_file() for row in cameras)

    damaged = drive.dataroot / cameras[0]["filename"]
    damaged.write_bytes(b"half")
    shutil.rmtree(drive.dataroot / "parts")
    assert prepare_drive().dataroot == drive.dataroot and read_image(damaged, "").shape == (*IMAGE_SIZE[::-1], 3)


def test_it_is_the_example_of_a_rig_and_gives_the_same_boxes(
    no_compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bevnext rig example`, and the command that it names, against the drive read as nuScenes."""
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    monkeypatch.setenv("BEVNEXT_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["rig", "example", "--out", str(tmp_path / "example")]) == 0
    command = capsys.readouterr().out.split("detect: bevnext ")[1].split(" --checkpoint")[0].split()
    drive = prepare_drive(key_frames=PACKED_KEY_FRAMES)
    found = []
    for number, source in enumerate((command, ["detect", "--dataroot", str(drive.dataroot), "--json-lines"])):
        out = tmp_path / str(number)
        assert main([*source, "--checkpoint", "demo", "--no-pictures", "--device", "cpu", "--out", str(out)]) == 0
        said = capsys.readouterr()
        assert "Detector(demo_stage2, cpu, fp32; trained on this project's synthetic world" in said.out
        real = "bevnext: note: the demo's weights know the synthetic world only: real photos take --checkpoint bev"
        assert (real in said.err) == (number == 0)  # of images nobody knows whether they are
        lines = (out / "detections.jsonl").read_text().splitlines()
        found.append([[row[key] for key in ("stamp_ns", "boxes")] for row in map(json.loads, lines)])
    assert found[0] == found[1] and len(found[0]) == PACKED_KEY_FRAMES and all(boxes for _, boxes in found[0])


def test_a_folder_of_something_else_is_left_alone(no_compiler: None, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DatasetError, match="not empty"):
        prepare_drive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_drive_that_is_complete_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(PACKED) as archive:
        archive.extractall(tmp_path)

    def library() -> None:
        raise AssertionError("nothing is to be rendered")

    monkeypatch.setattr(renderer, "library", library)
    assert prepare_drive(tmp_path, PACKED_KEY_FRAMES).dataroot == tmp_path
