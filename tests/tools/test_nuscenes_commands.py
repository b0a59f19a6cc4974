# SPDX-License-Identifier: Apache-2.0
"""Commands on a data set in the nuScenes format: results on disk, and one line for every mistake of the user."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevnext_core.classes import CLASSES
from bevnext_core.config import ModelConfig
from bevnext_core.detections import Detections
from bevnext_core.errors import BevnextError
from bevnext_core.frame import CameraFrame
from bevnext_tools.cli.main import main
from tests.command_line import error_line, run_command
from tests.published import save_small

VERSION = "v1.0-mini"

nuscenes = pytest.mark.skipif(
    not any((Path(folder) / "nuscenes").is_dir() for folder in sys.path if folder),
    reason="needs nuscenes-devkit",
)


class StandIn:
    """A detector that finds one car in each frame, where the frame's token says nothing."""

    config = ModelConfig()

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.resets: list[int] = []

    def reset(self, reason: str = "") -> None:
        self.resets.append(len(self.steps))

    def step(self, frame: CameraFrame) -> Detections:
        self.steps.append(frame.stamp_ns)
        box = np.array([[12.0, 2.0, 0.8, 4.6, 1.9, 1.7, 0.1, 1.0, 0.0]], np.float32)
        score, label = np.array([0.9], np.float32), np.array([0])
        return Detections(box, score, label, CLASSES, frame.stamp_ns, frame.global_from_ego, frame.token)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    from tests.nuscenes_dataroot import write_dataroot

    return write_dataroot(tmp_path / "data", {"scene-0103": 3, "scene-0061": 1})


def detect_with(detector: StandIn, dataroot: Path, out: Path, **choice: Any) -> Any:
    from bevnext_core.datasets.nuscenes import NuScenesReader
    from bevnext_tools.cli.detect import detect

    options = {key: choice.pop(key) for key in ("pictures", "score_threshold") if key in choice}
    return detect(NuScenesReader(dataroot, VERSION, **choice), detector, out, **options)


@nuscenes
def test_detect_writes_submission_pictures_and_videos(made: Path, tmp_path: Path) -> None:
    from bevnext_core.datasets.nuscenes_tables import load_tables
    from bevnext_tools.evaluation.metric import evaluate
    from bevnext_tools.evaluation.submission import read_submission

    detector, out = StandIn(), tmp_path / "out"
    summary = detect_with(detector, made, out)
    assert (summary.frames, summary.boxes, summary.failed) == (4, 4, [])
    assert detector.resets == [0, 3], "once before each scene"
    results = read_submission(out / "submission.json")["results"]
    assert list(results) == [f"scene-0103-sample{i}" for i in range(3)] + ["scene-0061-sample0"]
    assert all(len(records) == 1 for records in results.values())
    pictures = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert pictures == ["frames/scene-0061/000.png"] + [f"frames/scene-0103/{i:03d}.png" for i in range(3)]
    assert [video.stem for video in summary.videos] == ["scene-0103"], "one frame alone is no video"
    assert all(video.stat().st_size > 1000 for video in summary.videos)
    assert evaluate(load_tables(made, VERSION), out / "submission.json", "mini_train").samples == 1


@nuscenes
def test_detect_on_sweeps_submits_key_frames_only(tmp_path: Path) -> None:
    from tests.nuscenes_dataroot import write_dataroot

    root = write_dataroot(tmp_path / "data", {"scene-0103": 2}, sweeps=2)
    detector = StandIn()
    summary = detect_with(detector, root, tmp_path / "out", sweeps=True)
    assert summary.frames == len(detector.steps) == 4
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4
    results = json.loads((tmp_path / "out" / "submission.json").read_text())["results"]
    assert [len(records) for records in results.values()] == [1, 1]


@nuscenes
def test_detect_without_pictures(made: Path, tmp_path: Path) -> None:
    detect_with(StandIn(), made, tmp_path / "out", split="mini_val", pictures=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["submission.json"]


@nuscenes
def test_unreadable_image_costs_its_frame_only(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "samples/CAM_BACK/scene-0103_001.jpg").write_bytes(b"no image")
    detector, out = StandIn(), tmp_path / "out"
    summary = detect_with(detector, made, out)
    assert summary.frames == 3 and len(detector.steps) == 3
    (line,) = summary.failed
    assert line.startswith("scene-0103, frame 1: CAM_BACK (") and "scene-0103_001.jpg" in line
    assert f"bevnext: warning: {line}" in capsys.readouterr().err
    results = json.loads((out / "submission.json").read_text())["results"]
    assert [len(records) for records in results.values()] == [1, 0, 1, 1]
    assert not (out / "frames/scene-0103/001.png").exists() and summary.videos[0].stem == "scene-0103"


@nuscenes
def test_nothing_usable_is_an_error_and_writes_nothing(made: Path, tmp_path: Path) -> None:
    for path in made.glob("samples/CAM_BACK/*.jpg"):
        path.unlink()
    with pytest.raises(
        BevnextError, match="none of the 4 frames could be used; the first: scene-0103, frame 0: CAM_B"
    ):
        detect_with(StandIn(), made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@nuscenes
def test_old_pictures_of_a_scene_do_not_stay(made: Path, tmp_path: Path) -> None:
    stale = tmp_path / "out/frames/scene-0061/077.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    detect_with(StandIn(), made, tmp_path / "out", scenes=["scene-0061"])
    assert [path.name for path in stale.parent.iterdir()] == ["000.png"]


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("checkpoint") / "small.safetensors")


@nuscenes
def test_commands_from_images_to_score(
    made: Path, tmp_path: Path, small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--dataroot", made, "--version", VERSION)
    (made / "samples/CAM_BACK/scene-0103_001.jpg").unlink()
    out = tmp_path / "out"
    choice = ("--split", "mini_val", "--checkpoint", small_checkpoint, "--out", out, "--device", "cpu")
    result = run_command("detect", *data, *choice)
    assert result.returncode == 0, result.stderr
    assert "2 frames, " in result.stdout and str(out / "scene-0103.") in result.stdout
    assert "bevnext: warning: 1 of 3 frames could not be used" in result.stderr.splitlines()[-1]
    written = json.loads((out / "submission.json").read_text())["results"]
    assert [len(records) > 0 for records in written.values()] == [True, False, True]

    assert main([str(part) for part in ("detect", *data, *choice)]) == 2
    assert "is not empty; give --force" in capsys.readouterr().err
    assert main([str(part) for part in ("detect", *data, *choice, "--force", "--no-pictures")]) == 0
    again = json.loads((out / "submission.json").read_text())["results"]
    assert {token: len(records) for token, records in again.items()} == {
        token: len(records) for token, records in written.items()
    }

    results = tmp_path / "results.json"
    score = (
        "evaluate",
        *data,
        "--eval-set",
        "mini_val",
        "--submission",
        out / "submission.json",
        "--out",
        results,
    )
    assert main([str(part) for part in score]) == 0
    assert "NDS 0." in capsys.readouterr().out
    assert 0 <= json.loads(results.read_text())["nd_score"] < 0.5


@nuscenes
def test_check_calibration_draws_points_and_boxes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["check-calibration", "--dataroot", str(made), "--version", VERSION, "--scene", "scene-0103"]
    assert main([*arguments, "--frame", "1", "--out", str(tmp_path / "with")]) == 0
    assert "3 boxes and 500 lidar points" in capsys.readouterr().out
    (made / "samples/LIDAR_TOP/scene-0103_001.pcd.bin").unlink()
    assert main([*arguments, "--frame", "1", "--out", str(tmp_path / "without")]) == 0
    captured = capsys.readouterr()
    assert "no lidar points, boxes only: LIDAR_TOP: the file is missing" in captured.err
    assert "3 boxes ->" in captured.out
    names = sorted(path.name for path in (tmp_path / "with").iterdir())
    assert names == ["scene-0103_001_bev.png", "scene-0103_001_images.png"]
    with_points = (tmp_path / "with" / names[1]).read_bytes()
    assert with_points != (tmp_path / "without" / names[1]).read_bytes()
    assert main([*arguments, "--frame", "3", "--out", str(tmp_path / "more")]) == 2
    assert "scene 'scene-0103' has key frames 0 to 2, not 3" in capsys.readouterr().err


@nuscenes
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dataroot", "{data}", "--scene", "scene-9999"), "unknown scene 'scene-9999': "),
        (("--dataroot", "{data}", "--scene", "scene-0103", "--version", "v1.0-test"), "holds v1.0-mini"),
        (("--dataroot", "{data}/samples", "--scene", "scene-0103"), "holds no nuScenes tables"),
        (("--dataroot", "{data}/gone", "--scene", "scene-0103"), "no such dataroot"),
    ],
)
def test_wrong_data_set_is_one_line(
    made: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    given = [option.format(data=made) for option in options]
    line = error_line(run_command("check-calibration", *given, "--out", tmp_path / "out"))
    assert message in line
    assert not (tmp_path / "out").exists()


@nuscenes
def test_empty_scene_is_one_line(tmp_path: Path) -> None:
    from tests.nuscenes_dataroot import write_dataroot

    root = write_dataroot(tmp_path / "data", {"scene-0103": 1, "scene-0061": 0})
    line = error_line(
        run_command("check-calibration", "--dataroot", root, "--scene", "scene-0061", "--out", tmp_path / "o")
    )
    assert "scene 'scene-0061' of" in line and "is empty" in line


def test_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    options = (
        "--dataroot",
        tmp_path,
        "--checkpoint",
        tmp_path / "gone.safetensors",
        "--out",
        tmp_path / "out",
    )
    assert "gone.safetensors" in error_line(run_command("detect", *options))


def test_missing_submission_is_one_line(tmp_path: Path) -> None:
    options = ("--dataroot", tmp_path, "--eval-set", "mini_val", "--submission", tmp_path / "gone.json")
    assert "no such submission file" in error_line(run_command("evaluate", *options))


def test_bad_threshold_and_bad_output_folder_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    options = ["detect", "--dataroot", str(tmp_path), "--checkpoint", "x"]
    assert main([*options, "--out", str(tmp_path / "out"), "--score-threshold", "30"]) == 2
    assert "--score-threshold must be between 0 and 1, got 30" in capsys.readouterr().err
    assert main([*options, "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main([*options, "--out", str(tmp_path)]) == 2
    assert f"the output folder {tmp_path} is not empty; give --force" in capsys.readouterr().err
