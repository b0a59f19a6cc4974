# SPDX-License-Identifier: Apache-2.0
"""The main job on real data: frames in; submission, pictures and a score out. Weights by the recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bevnext_core.checkpoint import save_checkpoint
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.detector import Detector
from bevnext_tools.evaluation.submission import submission_records
from tests.published import build

pytestmark = pytest.mark.sample


def bevnext(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bevnext_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small2.safetensors"
    model = build("small2")
    save_checkpoint(path, model.state_dict(), model.config)
    return path


@pytest.fixture(scope="module")
def results(checkpoint: Path, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    done = bevnext("detect", "--dataroot", sample, "--checkpoint", checkpoint, "--out", out, "--json-lines")
    assert done.returncode == 0, done.stderr
    assert "5 frames" in done.stdout
    return out


def test_pictures_and_videos(results: Path) -> None:
    pytest.importorskip("av")
    names = sorted(str(p.relative_to(results)) for p in results.rglob("*.png"))
    assert len([n for n in names if "scene-0103" in n]) == 4
    assert len([n for n in names if "scene-0061" in n]) == 1
    assert (results / "scene-0103.mp4").stat().st_size > 10_000
    assert not (results / "scene-0061.mp4").exists()


def test_submission_is_what_the_detector_says(results: Path, checkpoint: Path, sample: Path) -> None:
    submission = json.loads((results / "submission.json").read_text())
    reader = NuScenesReader(sample, "v1.0-mini")
    assert set(submission["results"]) == set(reader.sample_tokens())
    detector = Detector.from_checkpoint(checkpoint)
    boxes = 0
    for scene in reader.scenes:
        detector.reset()
        for frame in reader.frames(scene):
            detections = detector.step(frame)
            expected = submission_records(detections)
            written = submission["results"][frame.token]
            boxes += len(written)
            assert len(written) == len(expected) == len(detections)
            for a, b in zip(written, expected):
                assert a["detection_name"] == b["detection_name"]
                np.testing.assert_allclose(a["translation"], b["translation"], atol=1e-3)
                np.testing.assert_allclose(a["detection_score"], b["detection_score"], atol=1e-4)
    assert boxes > 20


def test_lines_of_json_are_the_submission_in_the_ego_frame(results: Path, sample: Path) -> None:
    lines = [json.loads(line) for line in (results / "detections.jsonl").read_text().splitlines()]
    submission = json.loads((results / "submission.json").read_text())["results"]
    reader = NuScenesReader(sample, "v1.0-mini")
    assert [line["scene"] for line in lines] == [scene for scene in reader.scenes for _ in reader.refs(scene)]
    for line in lines:
        records = submission[line["token"]]
        assert [box["class"] for box in line["boxes"]] == [record["detection_name"] for record in records]
        pose = np.array(line["global_from_ego"])
        for box, record in zip(line["boxes"], records, strict=True):
            np.testing.assert_allclose(pose[:3, :3] @ box["center"] + pose[:3, 3], record["translation"], atol=1e-3)
            width, length, height = record["size"]
            np.testing.assert_allclose(box["size"], (length, width, height), atol=1e-3)
            assert len(box["velocity"]) == 2 and 0 < box["score"] < 1 and abs(box["yaw"]) < 4


@pytest.mark.parametrize("split", ["mini_val", "mini_train"])
def test_the_official_evaluation_takes_it(results: Path, sample: Path, tmp_path: Path, split: str) -> None:
    done = bevnext(
        *("evaluate", "--dataroot", sample, "--eval-set", split),
        *("--submission", results / "submission.json", "--out", tmp_path / "scores.json"),
    )
    assert done.returncode == 0, done.stderr
    assert "mAP" in done.stdout and "NDS" in done.stdout
    assert (tmp_path / "scores.json").exists() or any(tmp_path.rglob("*.json"))


def test_a_broken_image_costs_one_frame(checkpoint: Path, sample: Path, tmp_path: Path) -> None:
    """A dataroot of links in which one camera file is cut: the others go on, and the run says so."""
    root = tmp_path / "data"
    root.mkdir()
    for part in ("v1.0-mini", "maps"):
        (root / part).symlink_to(sample / part)
    cut = None
    for file in sorted(sample.glob("samples/*/*.jpg")):
        target = root / file.relative_to(sample)
        target.parent.mkdir(parents=True, exist_ok=True)
        if cut is None and "CAM_BACK_LEFT" in str(file) and "n008" in file.name:
            cut = target
            target.write_bytes(file.read_bytes()[:20_000])
        else:
            target.symlink_to(file)
    assert cut is not None
    done = bevnext(
        *("detect", "--dataroot", root, "--checkpoint", checkpoint, "--out", tmp_path / "out"),
        *("--scene", "scene-0103", "--no-pictures"),
    )
    assert done.returncode == 0, done.stderr
    assert cut.name in done.stderr and "CAM_BACK_LEFT" in done.stderr
    assert "1 of 4 frames" in done.stderr
    submission = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert sorted(len(v) > 0 for v in submission["results"].values()) == [False, True, True, True]
