# SPDX-License-Identifier: Apache-2.0
"""Every field of every nuScenes table missing, null or of another kind, through every command that reads them.

Data sets of this format come from many tools. What a command does not need may be missing; what it needs is named in
one line: table, field, row. Never a traceback. In one process, with stand-ins for the network, drawing and bags.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")

from bevnext_core.config import load_config
from bevnext_core.datasets.nuscenes_tables import load_tables
from bevnext_core.detections import Detections
from bevnext_core.detector import Detector, DetectorOptions
from bevnext_core.errors import DatasetError
from bevnext_ros.bags import nuscenes_to_bag
from bevnext_ros.bags.types import make_typestore
from bevnext_ros.messages.factory import RosbagsFactory
from bevnext_tools.cli.main import main
from bevnext_tools.evaluation.submission import META
from tests.nuscenes_dataroot import START, edit_table, write_dataroot
from tests.training.tiny import arguments, tiny_file
from training import train
from training.data.dataset import SampleRequest, TrainingDataset
from training.data.index import open_index

VERSION = "v1.0-mini"
SCENE = "scene-0061"
PROGRESS = ("bevnext: detecting", "bevnext: writing")
"""Beginnings of lines that are no complaints."""


class NoNetwork:
    """Finds one car in every frame."""

    def __init__(self, config):
        self.config, self.options, self.device = config, DetectorOptions(), torch.device("cpu")
        self.precision = "fp32"

    def step(self, frame):
        box = np.array([[10.0, 0, 1, 4, 2, 1.5, 0, 1, 0]])
        found = (box, np.array([0.5]), np.array([0]), self.config.class_names)
        return Detections(*found, frame.stamp_ns, frame.global_from_ego, frame.token)

    def window(self, frames):
        return self.step(frames[0])

    def reset(self, reason=""):
        pass


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A data set to damage, and the commands on it: ``bench(changes) -> {command: (code, lines on stderr)}``."""
    root = write_dataroot(tmp_path / "data", {SCENE: 2}, sweeps=1)
    config = load_config(tiny_file(tmp_path))
    monkeypatch.setattr(Detector, "from_checkpoint", classmethod(lambda cls, *a, **k: NoNetwork(config)))
    small = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr("bevnext_tools.draw.cameras.draw_frame", lambda *a, **k: small)
    monkeypatch.setattr("bevnext_tools.rig.check.check_pictures", lambda *a, **k: (small, small))
    monkeypatch.setattr("bevnext_tools.draw.video.write_video", lambda path, *a: path)
    monkeypatch.setattr(train, "describe", lambda *a, **k: ())
    monkeypatch.setattr(nuscenes_to_bag, "BagWriter", NoBag)
    monkeypatch.setattr(nuscenes_to_bag, "verify", lambda done: None)
    return Bench(root, tmp_path)


class Bench:
    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.tables = {path.stem: path.read_text() for path in (root / VERSION).glob("*.json")}
        samples = [row["token"] for row in json.loads(self.tables["sample"])]
        content = {"meta": META, "results": {token: [] for token in samples}}
        (folder / "submission.json").write_text(json.dumps(content))

    def restore(self) -> None:
        for name, text in self.tables.items():
            (self.root / VERSION / f"{name}.json").write_text(text)

    def commands(self) -> dict[str, list]:
        data, out = ["--dataroot", self.root, "--version", VERSION], self.folder / "out"
        (network := self.folder / "x").touch()  # nobody reads it
        detect = ["detect", *data, "--scene", SCENE, "--checkpoint", network, "--out", out, "--force"]
        evaluate = ["evaluate", *data, "--eval-set", "mini_train"]
        return {
            "detect": detect,
            "detect --sweeps": [*detect, "--sweeps", "--no-pictures"],
            "check-calibration": ["check-calibration", *data, "--scene", SCENE, "--out", out, "--force"],
            "nuscenes-to-bag": ["nuscenes-to-bag", *data, "--out", self.folder / "bags"],
            "nuscenes-to-bag, all": [
                *(
                    "nuscenes-to-bag",
                    *data,
                    "--out",
                    self.folder / "bags",
                    "--lidar",
                    "--sweeps",
                    "--ground-truth",
                )
            ],
            "evaluate --submission": [*evaluate, "--submission", self.folder / "submission.json"],
            "evaluate --checkpoint": [*evaluate, "--checkpoint", network, "--device", "cpu"],
        }

    def run(self, capsys, wanted=None) -> dict[str, tuple[int, str]]:
        """{command: (exit code, the last line on stderr)} of all commands."""
        found = {}
        for name, command in self.commands().items():
            if wanted is None or name in wanted:
                shutil.rmtree(self.folder / "bags", ignore_errors=True)
                code, lines = main([str(part) for part in command]), capsys.readouterr().err.splitlines(keepends=True)
                # the cameras of this data set sit where no vehicle has them
                doubts = ("bevnext: warning: CAM_",) if name == "check-calibration" else ()
                found[name] = code, "".join(line for line in lines if not line.startswith((*PROGRESS, *doubts)))
        if wanted is None or "train" in wanted:
            found["train"] = (self.train(), capsys.readouterr().err)
        return found

    def train(self) -> int:
        """The index, the schedule and a sample."""
        code = train.main(arguments(self.folder, "run", "--dry-run"))
        if code == 0:
            index = open_index(self.root, VERSION, self.folder / "cache", False)
            data = TrainingDataset(index, load_config(self.folder / "tiny_stage2.yaml"), "mini_train")
            try:
                data[SampleRequest((0,), 0, 0, 0)]
            except DatasetError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
        return code


class NoBag:
    """Takes a bag's place: makes and serialises every message, writes nothing."""

    def __init__(self, path, distro, storage):
        self.factory = RosbagsFactory(make_typestore())
        self.counts = {}

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        pass

    def write(self, topic, kind, message, stamp, latched=False):
        self.counts[topic] = self.counts.get(topic, 0) + 1
        return bytes(self.factory.typestore.serialize_cdr(message, kind))


TRUTH = ("category", "attribute", "instance", "sample_annotation")
UNUSED = {
    *(("scene", field) for field in ("log_token", "nbr_samples", "last_sample_token", "description")),
    *(
        ("instance", field)
        for field in ("nbr_annotations", "first_annotation_token", "last_annotation_token")
    ),
    *(
        ("category", "description"),
        ("attribute", "description"),
        ("sample", "prev"),
        ("sample_data", "fileformat"),
    ),
    *(
        ("ego_pose", "timestamp"),
        ("sample_annotation", "visibility_token"),
        ("sample_annotation", "num_radar_pts"),
    ),
}
RADAR = ("sample_annotation", "num_radar_pts", "rubbish in one row")  # none is 0, anything else must be a number
SOME = ("detect", "nuscenes-to-bag, all", "evaluate --submission", "train")


def judge(found, names: list[str], case: str) -> list[str]:
    """What is wrong with the ends of commands: more than one line, or one that does not name what is at fault."""
    wrong = []
    for command, (code, errors) in found.items():
        lines = [line for line in errors.splitlines() if " note: " not in line and " warning: " not in line]
        if code == 0 and not lines:
            continue
        if code not in (1, 2) or len(lines) != 1 or not all(f"'{name}'" in lines[0] for name in names):
            wrong.append(f"{case}, {command}: {code} {errors!r}")
    return wrong


def test_the_whole_data_set_passes_everywhere(bench, capsys):
    assert {command: result for command, result in bench.run(capsys).items() if result != (0, "")} == {}


@pytest.mark.parametrize("change", ["dropped", "null", "rubbish in one row"])
def test_every_field_is_not_needed_or_named_with_its_table_and_row(bench, capsys, change):
    wrong, runs = [], 0
    for table, text in bench.tables.items():
        for field in json.loads(text)[0]:
            rows = json.loads(text)
            for row in rows if change != "rubbish in one row" else rows[-1:]:
                row[field] = "?" if change == "rubbish in one row" else None
                if change == "dropped":
                    del row[field]
            (bench.root / VERSION / f"{table}.json").write_text(json.dumps(rows))
            found = bench.run(capsys, SOME if change == "rubbish in one row" else None)
            runs += len(found)
            named = [] if change == "rubbish in one row" else [table, field]
            wrong += judge(found, named, f"{table}.{field} {change}")
            if table in TRUTH and found["detect"][0]:
                wrong.append(f"{table}.{field} {change}: detect needs no truth")
            unused = (table, field) in UNUSED and (table, field, change) != RADAR
            if unused or table in ("visibility", "log", "map"):
                wrong += [
                    f"{table}.{field} {change}: {name} needs it?" for name, (code, _) in found.items() if code
                ]
        bench.restore()
    assert not wrong, "\n".join(wrong)
    assert runs > 200


@pytest.mark.parametrize("change", ["missing", "empty", "[null]", "{}", "["])
def test_every_table_is_not_needed_or_named(bench, capsys, change):
    wrong = []
    for table in bench.tables:
        path = bench.root / VERSION / f"{table}.json"
        path.unlink()
        if change != "missing":
            path.write_text("[]" if change == "empty" else change)
        found = bench.run(capsys, SOME)
        if table == "scene" and change == "missing":
            assert all("holds no nuScenes tables" in errors for _, errors in found.values())
        else:
            wrong += judge(found, [] if change == "empty" else [table], f"{table} {change}")
        if table in TRUTH and found["detect"][0]:
            wrong.append(f"{table} {change}: detect needs no truth")
        if table in ("visibility", "log", "map"):
            wrong += [f"{table} {change}: {name} needs it?" for name, (code, _) in found.items() if code]
        bench.restore()
    assert not wrong, "\n".join(wrong)


def test_a_camera_only_rig_is_detected_and_drawn_and_others_say_what_they_lack(bench, capsys):
    """No lidar, no radar, no attributes: as tools for cameras write it."""

    def strip(rows):
        for row in rows:
            for field in ("num_lidar_pts", "num_radar_pts", "attribute_tokens", "visibility_token"):
                row.pop(field)

    edit_table(bench.root, "sample_annotation", strip)
    edit_table(
        bench.root,
        "sample_data",
        lambda rows: rows.__setitem__(
            slice(None), [row for row in rows if row["calibrated_sensor_token"] != "LIDAR_TOP"]
        ),
    )
    for table in ("visibility", "log", "map"):
        (bench.root / VERSION / f"{table}.json").unlink()
    shutil.rmtree(bench.root / "maps")
    found = bench.run(capsys)
    assert [name for name, (code, _) in found.items() if code == 0] == [
        *("detect", "detect --sweeps", "check-calibration", "nuscenes-to-bag", "nuscenes-to-bag, all")
    ]
    assert found["detect"][1] == "" and "no lidar points, boxes only" in found["check-calibration"][1]
    for command, purpose in (("evaluate --submission", "scoring"), ("train", "training")):
        assert (
            "table 'sample_annotation', row 'scene-0061-vehicle.car-0': the field 'num_lidar_pts' is missing; it is "
            f"needed here; {purpose} needs it, bevnext detect does without the truth" in found[command][1]
        )
    edit_table(
        bench.root,
        "sample_annotation",
        lambda rows: [row.update(num_lidar_pts=1, attribute_tokens=[]) for row in rows],
    )
    found = bench.run(capsys, ("evaluate --submission", "train"))
    assert (
        "no record of LIDAR_TOP, from whose ego pose the official metric" in found["evaluate --submission"][1]
    )
    assert "the frame has no LIDAR_TOP record" in found["train"][1]


def test_truth_that_cannot_be_used_is_told_once_and_the_pictures_are_drawn_without(bench, capsys):
    edit_table(bench.root, "instance", lambda rows: rows[1].update(category_token="gone"))
    code, errors = bench.run(capsys, ("detect",))["detect"]
    assert code == 0 and errors.count("\n") == 1
    assert "note: pictures without annotated boxes: table 'instance', row 'scene-0061-human" in errors
    code, errors = bench.run(capsys, ("check-calibration",))["check-calibration"]
    assert code == 0 and "note: no boxes, lidar points only: table 'instance'" in errors


def test_a_null_in_one_row_costs_its_frame_only(bench, capsys):
    edit_table(bench.root, "ego_pose", lambda rows: rows[0].update(rotation=None))
    code, errors = bench.run(capsys, ("detect",))["detect"]
    assert code == 0 and "1 of 2 frames could not be used" in errors
    assert "table 'ego_pose', row 'scene-0061-CAM_FRONT_LEFT-0': the field 'rotation' is null" in errors


UNITS = {"seconds": 1e-6, "milliseconds": 1e-3, "nanoseconds": 1e3}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("tables", [("sample",), ("sample_data",), ("sample", "sample_data", "ego_pose")])
@pytest.mark.parametrize("kind", [int, float])
def test_stamps_in_another_unit_are_refused_with_its_name(bench, capsys, unit, tables, kind):
    def change(rows):
        for row in rows:
            row["timestamp"] = kind(row["timestamp"] * UNITS[unit])

    for table in tables:
        edit_table(bench.root, table, change)
    for code, errors in bench.run(capsys, ("detect", "evaluate --submission")).values():
        assert code == 2 and errors.count("\n") == 1
        assert f"table '{tables[0]}': the field 'timestamp' is in {unit} (" in errors
        assert "nuScenes has microseconds since 1970" in errors


@pytest.mark.parametrize("start_s", [0, 100, 950, 1500, 3000, 100_000])
def test_microseconds_from_the_start_of_a_simulation_are_microseconds(bench, start_s):
    def change(rows):
        for row in rows:
            row["timestamp"] = row["timestamp"] - START + start_s * 1_000_000

    for table in ("sample", "sample_data", "ego_pose"):
        edit_table(bench.root, table, change)
    assert len(load_tables(bench.root, VERSION).sample) == 2


def test_stamps_that_are_no_times_are_named(bench, capsys):
    for rubbish in ("now", 1e40, True, [1]):
        edit_table(bench.root, "sample_data", lambda rows, value=rubbish: rows[1].update(timestamp=value))
        code, errors = bench.run(capsys, ("detect --sweeps",))["detect --sweeps"]
        assert code == 2 and errors.count("\n") == 1, errors
        assert "the field 'timestamp' is" in errors and "it must be a time in microseconds" in errors
        bench.restore()
