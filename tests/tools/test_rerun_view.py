# SPDX-License-Identifier: Apache-2.0
"""What Rerun's own reader finds in the file is what was detected, annotated and driven; live it is the same."""

from __future__ import annotations

import inspect
import io
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bevnext_core.classes import CAMERAS, CLASSES
from bevnext_core.config import ModelConfig
from bevnext_core.datasets.ground_truth import GroundTruth
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.detections import Detections, StepInfo
from bevnext_core.errors import BevnextError
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import project
from bevnext_tools.cli.detect import detect
from bevnext_tools.cli.main import main
from bevnext_tools.draw import rerun_view
from bevnext_tools.draw.cameras import camera_from_ego
from bevnext_tools.draw.colors import TRUTH_COLOR, class_color
from tests.nuscenes_dataroot import color_of, write_dataroot


@pytest.fixture
def rr():
    rerun = pytest.importorskip("rerun", reason="needs rerun-sdk (Python 3.11, numpy 2)")
    with_strict = rerun.strict_mode()
    rerun.set_strict_mode(True)  # a wrong value is an error and no warning
    yield rerun
    rerun.set_strict_mode(with_strict)


class Row(dict):
    """The components of an entity at one time, by name without the archetype's; ``stamp`` in ns and ``frame``."""


def read(path: Path, blueprint: bool = False) -> dict[str, list[Row]]:
    """All rows of a recording, or of its blueprint, by entity, in time order; static ones have no ``frame``."""
    from rerun.chunk import RrdReader

    reader, entities = RrdReader(path), dict[str, list[Row]]()
    for chunk in reader.stream(store=reader.blueprints()[0] if blueprint else None):
        batch = chunk.to_record_batch()
        for index in range(batch.num_rows):
            row = Row()
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                value = column[index]
                row[name.rpartition(":")[2]] = getattr(value, "value", None) or value.as_py()  # whole nanoseconds
            entities.setdefault(chunk.entity_path, []).append(row)
    return {name: sorted(rows, key=lambda row: row.get("frame", -1)) for name, rows in entities.items()}


def received(path: Path) -> dict[str, list[Row]]:
    """As :func:`read`, of a file that is being written."""
    try:
        return read(path)
    except (OSError, RuntimeError, ValueError):
        return {}


def frame_of(stamp_ns: int, x: float, cameras: tuple[str, ...] = ("left", "a b"), masked: bool = False) -> CameraFrame:
    """Two cameras, the second wide and moved since the anchor's stamp; a pose far from the origin."""
    pose = np.eye(4)
    pose[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    pose[:3, 3] = (5e6 + x, 4e5, 3)
    moved = pose.copy()
    moved[0, 3] += 0.5
    optical = np.array([[0.0, 0, 1, 1.5], [-1, 0, 0, 0.2], [0, -1, 0, 1.6], [0, 0, 0, 1]])
    images = [np.full((90, 160, 3), (200, 40, 90), np.uint8), np.full((480, 1600, 3), 77, np.uint8)]
    intrinsics = [[[100.0, 0, 80], [0, 110, 45], [0, 0, 1]], [[1000.0, 0, 800], [0, 1000, 240], [0, 0, 1]]]
    return CameraFrame(
        cameras=cameras,
        images=(images[0], None if masked else images[1]),
        intrinsics=np.array(intrinsics),
        ego_from_camera=np.stack([optical, optical]),
        global_from_camera_ego=np.stack([pose, moved]),
        global_from_ego=pose,
        stamp_ns=stamp_ns,
        valid=np.array([True, not masked]),
    )


def found_in(frame: CameraFrame, count: int, reason: str = "") -> Detections:
    rng = np.random.default_rng(count)
    boxes = rng.uniform(0.5, 20, (count, 9)).astype(np.float32)
    boxes[:, 6] = rng.uniform(-3, 3, count)
    scores, labels = rng.uniform(0.3, 1, count).astype(np.float32), rng.integers(0, 10, count)
    info = StepInfo(reset_reason=reason)
    return Detections(boxes, scores, labels, CLASSES, frame.stamp_ns, frame.global_from_ego, info=info)


def truth_of(count: int) -> GroundTruth:
    boxes = np.random.default_rng(9).uniform(1, 30, (count, 9))
    boxes[:, 7:] = np.nan
    blank = np.array([""] * count)
    return GroundTruth(boxes, np.arange(count), CLASSES, blank, blank, np.zeros(count, int))


def assert_boxes(row: Row, boxes: np.ndarray, labels: np.ndarray) -> None:
    assert len(row["centers"] or []) == len(boxes)
    np.testing.assert_allclose(np.reshape(row["centers"], (-1, 3)), boxes[:, :3], rtol=1e-6)
    np.testing.assert_allclose(np.reshape(row["half_sizes"], (-1, 3)) * 2, boxes[:, 3:6], rtol=1e-6)
    turns = np.reshape(row["quaternions"], (-1, 4))  # x y z w
    yaw = 2 * np.arctan2(turns[:, 2], turns[:, 3])
    np.testing.assert_allclose(np.exp(1j * yaw), np.exp(1j * boxes[:, 6].astype(float)), atol=1e-6)
    assert not np.any(turns[:, :2]) and row["class_ids"] == labels.tolist()


FRAMES = [(10**18 + 7, 0.0, 3, ""), (10**18 + 500_000_009, 4.0, 0, ""), (10**18 + 1_000_000_001, 8.0, 5, "gap")]


def show(view: rerun_view.RerunView) -> None:
    """Three frames: with truth, with nothing, and after a gap, where a camera is masked."""
    for number, (stamp, x, count, reason) in enumerate(FRAMES):
        frame = frame_of(stamp, x, masked=number == 2)
        view(frame, found_in(frame, count, reason), truth_of(4) if number == 0 else None)


def check(path: Path) -> None:
    """That a file holds what :func:`show` gave."""
    rows = read(path)
    stamps = [(number, stamp) for number, (stamp, *_) in enumerate(FRAMES)]
    always = ["/world/ego", "/world/ego/detections", "/world/ego/velocities", "/world/cameras/left", "/counts/bus"]
    for name in always:
        timed = [row for row in rows[name] if "frame" in row]
        assert [(row["frame"], row["stamp"]) for row in timed] == stamps, name
    for row, (stamp, x, count, _) in zip(rows["/world/ego/detections"], FRAMES, strict=True):
        found = found_in(frame_of(stamp, x), count)
        assert_boxes(row, found.boxes, found.labels)
        assert row["labels"] == [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores)]
        np.testing.assert_array_equal(np.array(row.get("score") or [], np.float32), found.scores)
        (arrows,) = (r for r in rows["/world/ego/velocities"] if r["frame"] == row["frame"])
        np.testing.assert_array_equal(np.reshape(arrows["origins"], (-1, 3)), found.boxes[:, :3])
        np.testing.assert_array_equal(np.reshape(arrows["vectors"], (-1, 3))[:, :2], found.boxes[:, 7:9])
        for label, name in enumerate(CLASSES):
            (number,) = (r["scalars"] for r in rows[f"/counts/{name}"] if r.get("frame") == row["frame"])
            assert number == [np.sum(found.labels == label)]
    # the pose is exact in 32 bits although it is 5000 km away
    places = [row["translation"][0] for row in rows["/world/ego"]]
    assert places == [[0, 0, 0], [4, 0, 0], [8, 0, 0]]
    (piece,) = rows["/world/path"]
    assert piece["frame"] == 1 and piece["strips"] == [[[0, 0, 0], [4, 0, 0]]], "a gap ends the path"
    shown, cleared = rows["/world/ego/truth"]
    assert shown["frame"] == 0 and cleared["frame"] == 1 and cleared["is_recursive"] == [False]
    assert_boxes(shown, truth_of(4).boxes, truth_of(4).labels)
    assert shown["colors"] == [int.from_bytes([*TRUTH_COLOR, 255], "big")]
    (context,) = (row["context"] for row in rows["/world"] if "context" in row)
    classes = {entry["class_id"]: entry["class_description"]["info"] for entry in context[0]}
    assert {label: info["label"] for label, info in classes.items()} == dict(enumerate(CLASSES))
    colors = {info["label"]: info["color"] for info in classes.values()}
    assert colors == {name: int.from_bytes([*class_color(name), 255], "big") for name in CLASSES}
    check_cameras(rows)


def check_cameras(rows: dict[str, list[Row]]) -> None:
    left, wide = rows["/world/cameras/left"], rows[r"/world/cameras/a\ b"]
    assert wide[2]["is_recursive"] == [False] and not wide[2].get("blob"), "a masked camera shows nothing"
    for camera, row, size in ((0, left[1], (160, 90)), (1, wide[1], (800, 240))):
        image = np.asarray(Image.open(io.BytesIO(bytes(row["blob"][0]))))
        assert row["media_type"] == ["image/jpeg"] and image.shape == (size[1], size[0], 3)
        assert row["resolution"] == [[*map(float, size)]]
        expected = ((200, 40, 90), (77, 77, 77))[camera]
        np.testing.assert_allclose(image.reshape(-1, 3).mean(0), expected, atol=2)
        # a point of the ego frame falls on the pixel where pictures have it, by way of Rerun's transforms
        frame = frame_of(FRAMES[1][0], FRAMES[1][1])
        point = np.array([12.0, 1.0, 0.5])
        through = camera_from_ego(frame)[camera]
        pixel, _ = project((through[:3, :3] @ point + through[:3, 3])[None], frame.intrinsics[camera])
        world = frame.global_from_ego[:3, :3] @ point + np.array(rows["/world/ego"][1]["translation"][0])
        rotation = np.reshape(row["mat3x3"][0], (3, 3)).T  # columns first
        seen = rotation.T @ (world - row["translation"][0])
        shown = np.reshape(row["image_from_camera"][0], (3, 3)).T @ seen
        scale = size[0] / frame.images[camera].shape[1]
        np.testing.assert_allclose((shown[:2] / shown[2] + 0.5) / scale - 0.5, pixel[0], atol=0.02)


def test_a_file_holds_what_was_shown(rr, tmp_path):
    with rerun_view.RerunView(tmp_path / "new" / "x.rrd") as view:
        assert not (tmp_path / "new").exists(), "nothing before the first frame"
        show(view)
    check(tmp_path / "new" / "x.rrd")
    rows = [row for its in read(tmp_path / "new" / "x.rrd", blueprint=True).values() for row in its]
    views = {(row["class_identifier"][0], row["space_origin"][0]) for row in rows if "class_identifier" in row}
    cameras = {("2D", "world/cameras/left"), ("2D", r"world/cameras/a\ b")}
    assert views == {("3D", "world"), ("TimeSeries", "counts"), *cameras}
    assert [row["timeline"] for row in rows if "timeline" in row] == [["stamp"]]
    queries = [row["query"] for row in rows if "query" in row]
    assert queries.count(["$origin/**", "world/ego/detections", "world/ego/truth"]) == 2


def test_what_came_before_an_error_is_kept_and_an_old_file_replaced(rr, tmp_path):
    path = tmp_path / "x.rrd"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), rerun_view.RerunView(path) as view:
        show(view)
        raise ZeroDivisionError
    check(path)


def test_a_viewer_that_listens_gets_the_same(rr, tmp_path, monkeypatch):
    """The viewer's stand-in is Rerun's own receiver, which writes down what comes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(rerun_view, "PORT", port)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform == "linux":
        with pytest.raises(BevnextError, match=r"--view: there is no display here.*take --rrd FILE"):
            rerun_view.RerunView(None, viewer=True)
    live = tmp_path / "live.rrd"
    rerun_cli = pytest.importorskip("rerun_cli")
    program = Path(rerun_cli.__file__).with_name("rerun")
    command = [program, "--save", live, "--port", str(port), "--bind", "127.0.0.1"]
    receiver = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not rerun_view._listens(port):
            assert receiver.poll() is None, "the receiver has ended"
            time.sleep(0.05)
        with rerun_view.RerunView(tmp_path / "x.rrd", viewer=True) as view:
            show(view)
        while len(received(live).get(r"/world/cameras/a\ b", [])) < len(FRAMES):  # logged last
            assert receiver.poll() is None, "the receiver has ended"
            time.sleep(0.05)
    finally:
        receiver.kill()
        receiver.wait()
    check(tmp_path / "x.rrd")
    check(live)


def test_a_viewer_is_opened_where_none_listens(rr, tmp_path, monkeypatch):
    """The environment's own program ``rerun``, as Rerun's function takes it; here it opens nothing."""
    opened, signature = [], inspect.signature(rr.spawn)
    monkeypatch.setattr(rr, "spawn", lambda **options: opened.append(signature.bind(**options).arguments))
    monkeypatch.setattr(rerun_view, "_listens", lambda port: False)
    monkeypatch.setenv("DISPLAY", ":0")
    (tmp_path / "rerun").touch()
    monkeypatch.setattr(rerun_view.sys, "executable", str(tmp_path / "python"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setattr(rerun_view, "PORT", probe.getsockname()[1])
    with pytest.raises(BevnextError, match="viewer does not answer"):
        with rerun_view.RerunView(None, viewer=True) as view:
            show(view)
    (options,) = opened
    assert options["executable_path"] == str(tmp_path / "rerun") and options["port"] == rerun_view.PORT
    assert isinstance(options["recording"], rr.RecordingStream)


class Half:
    """Finds the annotated boxes, the first with a score below what is shown."""

    config = ModelConfig()

    def __init__(self, reader: NuScenesReader) -> None:
        self.truth = {ref.stamp_ns: reader.ground_truth(ref) for scene in reader.scenes for ref in reader.refs(scene)}
        self.reason = ""

    def reset(self, reason: str = "") -> None:
        self.reason = reason

    def step(self, frame: CameraFrame) -> Detections:
        truth = self.truth[frame.stamp_ns]
        boxes, scores = np.nan_to_num(truth.boxes).astype(np.float32), np.full(len(truth), 0.5, np.float32)
        scores[0] = 0.1
        info, self.reason = StepInfo(reset_reason=self.reason), ""
        pose, names = frame.global_from_ego, truth.class_names
        return Detections(boxes, scores, truth.labels, names, frame.stamp_ns, pose, frame.token, info)


def test_a_data_set_is_shown_with_its_truth(rr, tmp_path):
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    root = write_dataroot(tmp_path / "data", {"scene-0103": 3, "scene-0061": 2})
    reader = NuScenesReader(root, "v1.0-mini")
    detector = Half(reader)
    with rerun_view.RerunView(tmp_path / "x.rrd") as view:
        detect(reader, detector, tmp_path / "out", pictures=False, view=view)
    rows = read(tmp_path / "x.rrd")
    stamps = [ref.stamp_ns for scene in reader.scenes for ref in reader.refs(scene)]
    assert [row["stamp"] for row in rows["/world/ego"]] == stamps
    for found, truth in zip(rows["/world/ego/detections"], rows["/world/ego/truth"], strict=True):
        expected = detector.truth[found["stamp"]]
        assert_boxes(truth, expected.boxes, expected.labels)
        assert_boxes(found, expected.boxes[1:], expected.labels[1:])
    assert [row["frame"] for row in rows["/world/path"]] == [1, 2, 4], "each scene has a path of its own"
    shown = np.asarray(Image.open(io.BytesIO(bytes(rows["/world/cameras/CAM_BACK"][0]["blob"][0]))))
    np.testing.assert_allclose(shown[40, 80], color_of("CAM_BACK", 0), atol=6)
    assert {name for name in rows if name.startswith("/world/cameras/")} == {f"/world/cameras/{c}" for c in CAMERAS}


def test_without_the_package_one_line_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "rerun", None)
    wanted = ["--dataroot", "d", "--checkpoint", "demo", "--out", str(tmp_path / "o"), "--rrd", str(tmp_path / "x.rrd")]
    assert main(["detect", *wanted]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bevnext: error: --view and --rrd need the Python package rerun-sdk, which is not in ")
    assert "`make setup` brings it with Python 3.11 or later, or `pip install rerun-sdk`" in line


def test_an_unwritable_file_is_named(rr, tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        with rerun_view.RerunView(tmp_path) as view:
            frame = frame_of(*FRAMES[0][:2])
            view(replace(frame), found_in(frame, 1), None)
