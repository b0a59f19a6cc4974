# SPDX-License-Identifier: Apache-2.0
"""The demo: what it shows is what was detected, what it says is what was measured, and its page stands alone."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")

from bevnext_core.classes import CAMERAS, CLASSES
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.detections import Detections, StepInfo
from bevnext_core.frame import CameraFrame
from bevnext_core.images import read_image
from bevnext_ros.messages.conversions import transform_boxes
from bevnext_tools.cli.main import main
from bevnext_tools.draw.colors import class_color
from bevnext_tools.draw.video import h264_encoder
from bevnext_world.demo import drive as drive_module
from bevnext_world.demo.display import THRESHOLDS, drawn
from bevnext_world.demo.page import write_page
from bevnext_world.demo.picture import Status, contact_sheet, draw_demo
from bevnext_world.demo.show import Shown, show, write_numbers
from bevnext_world.demo.truth import TrueBoxes, true_boxes
from tests.nuscenes_dataroot import edit_table, object_at, write_dataroot
from tests.paths import ROOT

VERSION, SCENE = "v1.0-mini", "scene-0103"
KEYS, SWEEPS = 3, 3


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataroot(tmp_path_factory.mktemp("demo") / "data", {SCENE: KEYS}, sweeps=SWEEPS)


def reader_of(dataroot: Path) -> NuScenesReader:
    return NuScenesReader(dataroot, VERSION, scenes=[SCENE], sweeps=True)


@pytest.fixture(scope="module")
def reader(dataroot: Path) -> NuScenesReader:
    return reader_of(dataroot)


# ------------------------------------------------------------------------------------------------- truth
def test_truth_at_a_key_frame_is_what_is_annotated(reader: NuScenesReader) -> None:
    ref = reader.refs(SCENE)[SWEEPS + 1]
    expected, found = reader.ground_truth(ref), true_boxes(reader, ref)
    assert ref.is_key and list(found.names) == expected.names == ["car", "pedestrian", "traffic_cone"]
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-9)


def test_truth_between_key_frames_is_where_the_objects_are(reader: NuScenesReader) -> None:
    refs = reader.refs(SCENE)
    for ref in refs:
        found = true_boxes(reader, ref)
        places = transform_boxes(found.boxes, reader.global_from_ego(ref))
        start = refs[0].stamp_ns // 1000
        for index, name in enumerate(("car", "pedestrian", "traffic_cone")):
            where, rotation = object_at(index, ref.stamp_ns // 1000, start)
            assert found.names[index] == name
            np.testing.assert_allclose(places[index, :3], where, atol=1e-6)
            assert places[index, 6] == pytest.approx(rotation.yaw_pitch_roll[0], abs=0.02)
    assert np.hypot(*true_boxes(reader, refs[1]).boxes[0, 7:9]) == pytest.approx(5.0, abs=0.01)


def test_object_that_appears_later_or_was_never_hit_is_not_shown(dataroot: Path, tmp_path: Path) -> None:
    """The car is annotated from the second key frame on; the cone has no lidar or radar point."""
    copy = tmp_path / "data"
    shutil.copytree(dataroot, copy)

    def change(rows: list[dict]) -> None:
        rows[:] = [row for row in rows if row["token"] != f"{SCENE}-vehicle.car-0"]
        for row in rows:
            if row["token"] == f"{SCENE}-vehicle.car-1":
                row["prev"] = ""
            if row["token"].startswith(f"{SCENE}-movable"):
                row["num_lidar_pts"] = row["num_radar_pts"] = 0

    edit_table(copy, "sample_annotation", change)
    reader = reader_of(copy)
    shown = [true_boxes(reader, ref).names for ref in reader.refs(SCENE)[: SWEEPS + 2]]
    assert shown == [*[("pedestrian",)] * (SWEEPS + 1), ("car", "pedestrian")]


# ------------------------------------------------------------------------------------------------- picture
STATUS = Status("Mill Road", 3, 10, 1.5, True, 8.0, 0.2, 2)


def pixels(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """``[P, 2]`` rows and columns of pixels of about this colour."""
    return np.argwhere((np.abs(picture.astype(int) - color) < 14).all(-1))


def box(x: float, y: float) -> np.ndarray:
    return np.array([[x, y, 0.8, 4.6, 1.9, 1.7, 0.0, 0.0, 0.0]])


def found_in(frame: CameraFrame, boxes: np.ndarray, label: int = 0) -> Detections:
    scores, labels = np.full(len(boxes), 0.9, np.float32), np.full(len(boxes), label)
    return Detections(boxes, scores, labels, CLASSES, frame.stamp_ns, frame.global_from_ego, frame.token)


def test_detections_are_in_images_and_views_and_truth_in_the_views_only(reader: NuScenesReader) -> None:
    ref = reader.refs(SCENE)[0]
    frame = replace_images(reader.load(ref), (0, 0, 0))
    width, tile = 200, 112
    none = TrueBoxes(np.zeros((0, 9)), ())
    empty = draw_demo(frame, found_in(frame, np.zeros((0, 9))), none, STATUS, width)
    assert empty.shape == (2 * tile + round(600 * 0.393), 600, 3)
    picture = draw_demo(frame, found_in(frame, box(12, 0), label=8), none, STATUS, width)
    changed = np.argwhere((picture != empty).any(-1))
    car = pixels(picture, class_color("pedestrian"))
    front = car[(car[:, 0] < tile) & (car[:, 1] >= width) & (car[:, 1] < 2 * width)]
    assert len(front) > 20, "in the front camera"
    assert not ((changed[:, 0] < tile) & (abs(changed[:, 1] - 300) > 100)).any(), "in no other front camera"
    assert not (changed[:, 0] >= empty.shape[0] - tile).any(), "in no rear camera"
    size = round(600 * 0.393)
    middle = tile + size / 2
    for left, extent in ((0, 54), (600 - size, 22)):
        inside = car[(car[:, 0] >= tile) & (car[:, 1] >= left) & (car[:, 1] < left + size)]
        rear = (12 - 2.3) * size / 2 / extent
        assert middle - inside[:, 0].max() == pytest.approx(rear, abs=3), "12 m ahead"
    truth = draw_demo(
        frame, found_in(frame, np.zeros((0, 9))), TrueBoxes(box(12, 0), ("car",)), STATUS, width
    )
    changed = (truth != empty).any(-1)
    assert not changed[:tile].any() and not changed[-tile:].any(), "ground truth is in no image"
    for view in (slice(0, size), slice(600 - size, 600)):
        drawn = truth[tile:-tile, view][changed[tile:-tile, view]].astype(int)
        assert len(drawn) > 5 and (np.ptp(drawn, axis=1) < 16).all(), "an outline in white"


def replace_images(frame: CameraFrame, color: tuple[int, int, int]) -> CameraFrame:
    plain = np.empty((90, 160, 3), np.uint8)
    plain[:] = color
    return replace(frame, images=(plain,) * len(CAMERAS))


def test_nothing_is_drawn_twice_and_each_class_has_its_lowest_score(reader: NuScenesReader) -> None:
    frame = reader.load(reader.refs(SCENE)[0])
    boxes = np.concatenate([box(12, 0), box(13, 0.5), box(20, 0), box(12, 8), box(12, 9.2), box(12, 11)])
    boxes[3:, 3:5] = 0.6  # people: seen twice a step apart, and one by himself
    found = replace(
        found_in(frame, boxes),
        scores=np.float32([0.9, 0.95, THRESHOLDS["car"] - 0.01, 0.5, 0.6, 0.5]),
        labels=np.array([0, 1, 0, 8, 8, 8]),
    )
    np.testing.assert_array_equal(drawn(found).boxes, boxes[[1, 4, 5]])
    assert drawn(found).names == ["truck", "pedestrian", "pedestrian"]
    np.testing.assert_array_equal(drawn(found, 0.0).boxes[:, 0], [13, 12, 12, 20])
    assert set(THRESHOLDS) == set(CLASSES) and len(found) == 6


def test_contact_sheet_holds_the_pictures_in_order() -> None:
    shades = (10, 80, 150, 220)
    sheet = contact_sheet([np.full((60, 100, 3), shade, np.uint8) for shade in shades])
    assert sheet.shape == (60, 100, 3)
    assert [int(sheet[y, x, 0]) for y in (15, 45) for x in (25, 75)] == list(shades)


# ------------------------------------------------------------------------------------------------- a whole run
class Knowing:
    """Gives the true boxes, ``shift`` metres beside, and some that must not be drawn."""

    def __init__(self, reader: NuScenesReader, shift: float = 0.0) -> None:
        self.truth = {ref.stamp_ns: true_boxes(reader, ref) for ref in reader.refs(SCENE)}
        self.shift = shift
        self.resets = 0

    def reset(self, reason: str = "") -> None:
        self.resets += 1

    def step(self, frame: CameraFrame) -> Detections:
        truth = self.truth[frame.stamp_ns]
        boxes = np.concatenate([truth.boxes, truth.boxes + (9, 9, 0, 0, 0, 0, 0, 0, 0)]).astype(np.float32)
        boxes[:, 1] += self.shift
        labels = np.array([CLASSES.index(name) for name in truth.names] * 2)
        scores = np.repeat([0.8, 0.1], len(truth)).astype(np.float32)
        info = StepInfo((1, 0), "", {"encode": 0.01, "detect": 0.02})
        return Detections(
            boxes, scores, labels, CLASSES, frame.stamp_ns, frame.global_from_ego, frame.token, info
        )


@pytest.fixture(scope="module")
def shown(reader: NuScenesReader, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    detector = Knowing(reader)
    out = tmp_path_factory.mktemp("out")
    result = show(reader, detector, out, name="Mill Road", eval_set="mini_val", camera_width=160)
    assert detector.resets == 1
    return result


def test_score_is_that_of_the_detections(reader: NuScenesReader, shown: Shown, tmp_path: Path) -> None:
    aps = shown.evaluation.summary["mean_dist_aps"]
    assert all(aps[name] > 0.99 for name in ("car", "pedestrian", "traffic_cone"))
    assert shown.evaluation.boxes == 6 * KEYS, "all boxes of the key frames, also those that are not drawn"
    assert shown.objects == {"car": KEYS, "pedestrian": KEYS, "traffic_cone": KEYS}
    beside = show(
        reader, Knowing(reader, shift=3.0), tmp_path, name="Mill Road", eval_set="mini_val", camera_width=160
    )
    assert beside.evaluation.mean_ap < 0.5 * shown.evaluation.mean_ap


def test_every_frame_is_streamed_shown_and_timed(shown: Shown) -> None:
    count = (KEYS - 1) * (SWEEPS + 1) + 1
    assert (shown.frames, shown.key_frames) == (count, KEYS) and shown.boxes == 3 * count
    assert shown.fps == 8.0
    assert {len(values) for values in shown.seconds.values()} == {count}
    assert shown.times("detect") == (0.02, 0.02, 0.02)
    total = sum(shown.seconds["detector"])
    assert shown.frames_per_second == pytest.approx(count / total)
    assert read_image(shown.sheet, "sheet").shape == read_image(shown.picture, "picture").shape
    with Image.open(shown.animation) as animation:
        assert animation.format == "WEBP" and animation.n_frames == -(-count // 2)
        assert animation.size[0] == 240
    if av := h264_encoder():
        with av.open(str(shown.video)) as video:
            assert len(list(video.decode(video=0))) == count
    else:
        assert shown.video is None


def test_the_readme_begins_with_a_small_animation() -> None:
    path = ROOT / "docs/images/demo.webp"
    assert path.stat().st_size < 3_000_000
    with Image.open(path) as animation:
        assert animation.format == "WEBP" and animation.n_frames > 20
    text = (ROOT / "README.md").read_text()
    assert "docs/images/demo.webp" in text[: text.index("\n\n", text.index("![")) + 1]


def test_page_holds_everything_and_loads_nothing(shown: Shown, tmp_path: Path) -> None:
    about = {"weights": "a <b> & c.safetensors", "machine": "two cores"}
    write_page(shown, about, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    addresses = re.findall(r"(?:src|href|poster)\s*=\s*['\"]([^'\"]*)", text)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"url\(|@import|<script|<link|https?://", re.sub(r"base64,[^'\"]*", "", text))
    for path in filter(None, (shown.video, shown.sheet, shown.picture)):
        assert base64.b64encode(path.read_bytes()).decode() in text
    assert "Mill Road" in text and SCENE not in text
    assert "a &lt;b&gt; &amp; c.safetensors" in text and "two cores" in text
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text)]
    rows = {re.sub("<[^>]*>", "", row[0]): row[1:] for row in cells if row}
    aps = shown.evaluation.summary["mean_dist_aps"]
    for name in CLASSES:
        row = rows[name.replace("_", " ")]
        assert row[:2] == [str(shown.objects[name]), f"{aps[name]:.3f}"] and len(row) == 7
    assert rows["mean"][1] == f"{shown.evaluation.mean_ap:.3f}"
    assert f"<b>{shown.evaluation.nd_score:.3f}</b><span>NDS" in text
    assert "no truck" in text and "no car" not in text
    assert rows["fuse, encode the view, propose, refine, regress"] == ["20.0"] * 3


def test_numbers_are_written(shown: Shown, tmp_path: Path) -> None:
    write_numbers(shown, {"weights": "x"}, tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["mean_ap"] == shown.evaluation.mean_ap and numbers["nd_score"] == shown.evaluation.nd_score
    assert numbers["seconds"]["encode"]["median"] == 0.01 and numbers["about"] == {"weights": "x"}


# ------------------------------------------------------------------------------------------------- the command
def test_drive_is_made_once_and_short_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bevnext_world.recording import generate
    from bevnext_world.recording.splits import FINAL, TRAINING, VALIDATION

    assert drive_module.SPLIT not in {split for split, _ in (TRAINING, VALIDATION, FINAL)}
    asked = []

    def made(order: generate.Order, workers: int, progress: object) -> tuple[int, int]:
        asked.append(order)
        return (1, 0) if len(asked) == 1 else (0, 1)

    monkeypatch.setattr(generate, "generate", made)
    monkeypatch.setenv("BEVNEXT_CACHE_DIR", str(tmp_path))
    drives = [drive_module.prepare_drive(), drive_module.prepare_drive()]
    assert [drive.made for drive in drives] == [True, False]
    assert drives[0].dataroot == drives[1].dataroot and tmp_path in drives[0].dataroot.parents
    assert (asked[0].key_frames, asked[0].sweeps, asked[0].scenes) == (20, True, 1)
    assert drive_module.prepare_drive(tmp_path / "x", 5).dataroot == tmp_path / "x"
    (tmp_path / "weights").touch()
    assert main(["demo", "--checkpoint", str(tmp_path / "weights"), "--key-frames", "1"]) == 2
    assert "bevnext: error: " in capsys.readouterr().err


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--score-threshold", "3"], "--score-threshold must be between 0 and 1, got 3"),
        (["--out", str(tmp_path / "file")], "is a file"),
        (["--checkpoint", str(tmp_path / "gone")], f"no such checkpoint: {tmp_path / 'gone'}"),
    ):
        assert main(["demo", *arguments]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr("bevnext_tools.checkpoints.DEMO_FILE", "weights/none.safetensors")
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "'weights/none.safetensors' of bevnext_ros is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
