# SPDX-License-Identifier: Apache-2.0
"""The command line: results on disk, and one line instead of a traceback for every mistake of the user."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bevnext_core.classes import CLASSES
from bevnext_core.config import ModelConfig
from bevnext_core.detections import Detections
from bevnext_core.errors import BevnextError, FrameError
from bevnext_core.frame import CameraFrame
from bevnext_tools.cli import registry
from bevnext_tools.cli.main import main
from bevnext_tools.cli.registry import COMMANDS, Command
from tests.paths import ROOT

VERSION = "v1.0-mini"


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bevnext_tools", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a failed command."""
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("bevnext: error: ")
    return line


registry.discover()


# ---------------------------------------------------------------------------------------------- dispatch
def test_help_lists_every_command_without_importing_torch() -> None:
    code = (
        "import sys; from bevnext_tools.cli.main import main; assert main(['--help']) == 0; "
        "slow = {'torch', 'cv2', 'nuscenes', 'matplotlib', 'pydantic'}; "
        "assert not slow & set(sys.modules), 'help must be quick'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    for name, command in COMMANDS.items():
        assert name in result.stdout and command.summary in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: bevnext {name}" in capsys.readouterr().out


def test_no_command_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out
    assert main(["detcet"]) == 2
    assert capsys.readouterr().err == "bevnext: error: unknown command 'detcet'; did you mean 'detect'?\n"
    assert main(["xyz"]) == 2
    err = capsys.readouterr().err
    assert err == f"bevnext: error: unknown command 'xyz'; there are {', '.join(sorted(COMMANDS))}\n"


@pytest.mark.parametrize(
    ("package", "command"),
    [("bevnext_world", "demo"), ("bevnext_ros", "play"), ("bevnext_benchmarks", "benchmark")],
)
def test_packages_add_their_commands_without_being_installed(package: str, command: str) -> None:
    code = (
        "import runpy, sys\n"
        "from bevnext_tools.cli import registry\n"
        "registry.discover = lambda: None\n"
        f"sys.argv = ['bevnext', '--help']\nrunpy.run_module('{package}', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert f"  {command} " in result.stdout and "  detect " in result.stdout


def test_core_alone_has_no_commands_of_others_and_reads_no_bags() -> None:
    code = (
        "import sys\n"
        "from bevnext_tools.cli import registry\n"
        "from bevnext_tools.cli.main import main\n"
        "registry.discover = lambda: None\n"
        "main(['--help'])\n"
        "sys.exit(main(['detect', '--bag', 'b', '--checkpoint', 'demo', '--out', 'o']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "demo" not in result.stdout
    assert "no installed package can read bags" in error_line(result)


def test_a_package_that_cannot_be_loaded_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = importlib.metadata.EntryPoint("broken", "no_such_package_at_all", registry.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    assert main(["config", "--dump"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("bevnext: warning: no commands from 'no_such_package_at_all': No module named")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bevnext_ros ")


def install_command(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    def run(args: argparse.Namespace) -> int:
        if error:
            raise error
        return args.code

    module = types.ModuleType("made_command")
    module.run = run  # type: ignore[attr-defined]
    module.add_arguments = lambda parser: parser.add_argument("--code", type=int)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_command", module)
    monkeypatch.setitem(COMMANDS, "made", Command("made_command", "for the test"))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 7, ""),
        (FrameError("CAM_BACK:\n  bad"), 2, "bevnext: error: CAM_BACK: bad\n"),
        (
            PermissionError(13, "Permission denied", "/out"),
            2,
            "bevnext: error: [Errno 13] Permission denied: '/out'\n",
        ),
        (KeyboardInterrupt(), 130, "bevnext: interrupted\n"),
    ],
)
def test_end_of_a_command_is_an_exit_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any, code: int, line: str
) -> None:
    install_command(monkeypatch, error)
    assert main(["made", "--code", "7"]) == code
    assert capsys.readouterr().err == line


def test_defect_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    install_command(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["made", "--code", "7"])


def test_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "made", Command("no_such_package_here", ""))
    assert main(["made"]) == 2
    assert "'made' needs the Python package 'no_such_package_here'" in capsys.readouterr().err


def test_reader_of_the_output_may_go_away() -> None:
    # `true` ends at once, long before anything is written to it
    command = f"{sys.executable} -m bevnext_tools config --dump | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------ config
def test_config_dump_is_a_complete_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "--dump"]) == 0
    text = capsys.readouterr().out
    assert {"name", "cameras", "channels", "image", "depth", "bev", "head", "tasks", "training"} <= set(
        yaml.safe_load(text)
    )
    path = tmp_path / "model.yaml"
    path.write_text(text.replace("channels: 160", "channels: 80", 1))
    assert main(["config", "--config", str(path)]) == 0
    assert main(["config", "--dump", "--config", str(path)]) == 0
    assert "channels: 80" in capsys.readouterr().out


def test_unknown_config_key_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("chanels: 80\n")
    line = error_line(run_command("config", "--config", path))
    assert f"{path}: unknown key 'chanels'; known are: name," in line


# -------------------------------------------------------------------------------------- nuScenes commands
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
    """The small network; of its made-up boxes only the best are kept, which saves time."""
    from bevnext_core.checkpoint import save_checkpoint
    from tests.published import build, config_of

    config = config_of("small2")
    config = replace(config, head=replace(config.head, max_candidates=40))
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, build("small2").state_dict(), config)
    return path


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
