# SPDX-License-Identifier: Apache-2.0
"""training/evaluate.py and ``bevnext evaluate``: modes, several processes; and the pictures of training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevnext_benchmarks.synthetic_batches import synthetic_batch
from bevnext_core.checkpoint import save_checkpoint
from bevnext_core.datasets.nuscenes import NuScenesReader
from bevnext_core.detector import Detector
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_tools.cli.main import main
from bevnext_tools.evaluation.inference import ShuffledImages, detect_scenes
from bevnext_tools.evaluation.submission import read_submission, submission_records
from scripts import compare_submissions
from tests.paths import ROOT
from tests.training.tiny import environment, tiny_config, tiny_dataroot, torchrun
from training import evaluate as script
from training.run.tensorboard import sample_pictures
from training.run.training_forward import TrainingForward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_dataroot(folder)
    torch.manual_seed(0)
    network = BEVNeXt(tiny_config(folder))
    with torch.no_grad():  # enough boxes to compare
        for task in network.proposal_head.tasks:
            task[1].bias.fill_(-1.0)
    save_checkpoint(folder / "c.safetensors", network.state_dict(), network.config)
    return folder


def options(folder: Path, out: str, *more: str) -> list[str]:
    values = ["--checkpoint", folder / "c.safetensors", "--dataroot", folder / "data", "--version", "v1.0-mini"]
    values += ["--split", "mini_train", "--out", folder / out, "--device", "cpu"]
    return [str(value) for value in values] + list(more)


def test_window_mode_is_the_published_one_and_says_so(folder: Path, capsys: Any) -> None:
    assert script.main(options(folder, "window")) == 0
    text = capsys.readouterr().out
    assert "mode window (as published), fp32" in text and "mAP" in text and "pedestrian" in text
    results = json.loads((folder / "window" / "results.json").read_text())
    assert results["inference"]["mode"] == "window"
    assert results["samples"] == 8 and "mean_ap" in results
    submission = read_submission(folder / "window" / "submission.json")["results"]
    assert len(submission) == 8 and sum(map(len, submission.values())) > 20

    reader = NuScenesReader(folder / "data", "v1.0-mini", scenes=["scene-0061"])
    frames = [reader.load(ref) for ref in reader.refs("scene-0061")]
    detector = Detector.from_checkpoint(folder / "c.safetensors", "cpu")
    expected = submission_records(detector.window([frames[4], frames[3], frames[2]]))
    assert submission["scene-0061-sample4"] == json.loads(json.dumps(expected))
    alone = submission_records(detector.window([frames[4]]))
    assert submission["scene-0061-sample4"] != json.loads(json.dumps(alone))


def test_streaming_mode_is_what_the_detector_streams(folder: Path, capsys: Any) -> None:
    assert script.main(options(folder, "streaming", "--mode", "streaming")) == 0
    assert "mode streaming, fp32" in capsys.readouterr().out
    submission = read_submission(folder / "streaming" / "submission.json")["results"]
    reader = NuScenesReader(folder / "data", "v1.0-mini", scenes=["scene-0553"])
    detector = Detector.from_checkpoint(folder / "c.safetensors")
    for frame in reader.frames("scene-0553"):
        assert submission[frame.token] == json.loads(json.dumps(submission_records(detector.step(frame))))


# ---------------------------------------------------------------------------------------------- bevnext evaluate
def command(folder: Path, *more: str) -> list[str]:
    values = ["evaluate", "--checkpoint", folder / "c.safetensors", "--dataroot", folder / "data", "--split"]
    return [str(value) for value in [*values, "mini_train", "--device", "cpu"]] + list(more)


@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_the_command_gives_what_the_script_gives(folder: Path, mode: str, capsys: Any) -> None:
    script.main(options(folder, f"as_{mode}", "--mode", mode))
    expected = capsys.readouterr().out
    out, kept = folder / f"{mode}.json", folder / f"{mode}_submission.json"
    more = ["--out", str(out), "--submission-out", str(kept)]
    assert main(command(folder, *more, *(["--mode", mode] if mode == "streaming" else []))) == 0
    assert capsys.readouterr().out == expected
    results = [json.loads(path.read_text()) for path in (out, folder / f"as_{mode}" / "results.json")]
    for result in results:
        del result["eval_time"]
    assert results[0] == results[1]
    assert kept.read_text() == (folder / f"as_{mode}" / "submission.json").read_text()
    inference = json.loads(out.read_text())["inference"]
    assert inference["mode"] == mode


def test_the_command_takes_the_detectors_options_and_scenes(folder: Path, capsys: Any) -> None:
    more = ["--scene", "scene-0553", "--precision", "bf16", "--out", str(folder / "part.json")]
    assert main(command(folder, *more)) == 0
    text = capsys.readouterr().out
    assert "mode window (as published), bf16" in text and "scenes scene-0553 only" in text
    results = json.loads((folder / "part.json").read_text())
    assert results["samples"] == 3 and results["inference"]["precision"] == "bf16"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scene", "scene-0103"], "the split 'mini_train' has no scene 'scene-0103'"),
        (["--split", "nothing"], "unknown split 'nothing'"),
        (["--checkpoint", "gone.safetensors"], "gone.safetensors"),
    ],
)
def test_mistakes_are_one_line(folder: Path, capsys: Any, more: list[str], message: str) -> None:
    assert main(command(folder, *more)) == 2
    assert message in capsys.readouterr().err


def test_a_mode_belongs_to_a_checkpoint(folder: Path, capsys: Any) -> None:
    data = ["evaluate", "--dataroot", str(folder / "data"), "--eval-set", "mini_train"]
    assert main([*data, "--submission", "s.json", "--mode", "window", "--precision", "fp32"]) == 2
    assert "--mode, --precision: only with --checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*data, "--submission", "s.json", "--checkpoint", "c"])


@pytest.mark.slow
def test_two_processes_share_the_scenes_and_give_the_same(folder: Path) -> None:
    script.main(options(folder, "one"))
    command = torchrun(2, str(ROOT / "training" / "evaluate.py"), *options(folder, "two"))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("mAP") == 1
    one, two = (str(folder / name / "submission.json") for name in ("one", "two"))
    assert compare_submissions.main([one, two, "--tolerance", "1e-3"]) == 0  # the number of threads rounds


def test_a_frame_that_cannot_be_read_has_no_boxes_and_is_listed(tmp_path: Path, folder: Path) -> None:
    data = tiny_dataroot(tmp_path)
    (data / "samples" / "CAM_BACK" / "scene-0061_002.jpg").write_bytes(b"x")
    reader = NuScenesReader(data, "v1.0-mini", scenes=["scene-0061"])
    for mode in ("window", "streaming"):
        detector = Detector.from_checkpoint(folder / "c.safetensors", "cpu")
        records, faults = detect_scenes(detector, reader, reader.scenes, mode)  # type: ignore[arg-type]
        assert len(records) == 5 and records["scene-0061-sample2"] == []
        assert [token for token, _ in faults] == ["scene-0061-sample2"] and "CAM_BACK" in faults[0][1]
        assert records["scene-0061-sample3"]


def test_shuffled_images_keep_everything_but_the_images(folder: Path) -> None:
    straight = NuScenesReader(folder / "data", "v1.0-mini", scenes=["scene-0061"])
    shuffled = ShuffledImages(folder / "data", "v1.0-mini", scenes=["scene-0061"])
    refs = straight.refs("scene-0061")
    frame, other, mixed = straight.load(refs[1]), straight.load(refs[2]), shuffled.load(shuffled.refs("scene-0061")[1])
    np.testing.assert_array_equal(mixed.images[0], other.images[0])
    assert mixed.token == frame.token and np.array_equal(mixed.global_from_ego, frame.global_from_ego)


def test_a_wrong_split_ends_with_one_line(folder: Path, capsys: Any) -> None:
    assert script.main([*options(folder, "x"), "--split", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("bevnext: error: unknown split 'nothing'")


def test_pictures_of_a_step(folder: Path) -> None:
    config = tiny_config(folder)
    batch = synthetic_batch(config, 2)
    step = TrainingForward(BEVNeXt(config).eval())
    with torch.no_grad():
        step(batch)
    assert step.maps is not None
    pictures = sample_pictures(batch, step.maps, config)
    assert pictures["heatmap"].shape == (16, 34, 3) and pictures["bev"].shape == (64, 64, 3)
    for task in step.maps.tasks:
        task["heatmap"].fill_(-20.0)
    truth = sample_pictures(batch, step.maps, config)["bev"]
    batch.boxes = [boxes[:0] for boxes in batch.boxes]
    batch.labels = [labels[:0] for labels in batch.labels]
    nothing = sample_pictures(batch, step.maps, config)["bev"]
    drawn_over = (truth != nothing).any(-1)
    assert drawn_over.any() and (truth[drawn_over] > nothing[drawn_over]).all()  # white outlines
    for task in step.maps.tasks:
        task["heatmap"][:, :, ::8, ::8] = 4.0
    assert (sample_pictures(batch, step.maps, config)["bev"] != nothing).any()  # detections
    cameras = [pictures[f"camera/{camera}"] for camera in config.cameras]
    drawn = [not np.array_equal(p, batch.canvas[0, 0, i].numpy()) for i, p in enumerate(cameras)]
    assert any(drawn)


def test_boxes_are_drawn_where_the_augmented_image_has_them(folder: Path) -> None:
    """A world and its mirror image, which the BEV augmentation takes back, look the same to the cameras."""
    config = tiny_config(folder)
    batch, step = synthetic_batch(config, 1), TrainingForward(BEVNeXt(config).eval())
    with torch.no_grad():
        step(batch)
    assert step.maps is not None
    for task in step.maps.tasks:
        task["heatmap"].fill_(-20.0)
    plain = sample_pictures(batch, step.maps, config)
    batch.geometry.bda = torch.diag(torch.tensor([1.0, -1, 1]))[None]
    moved = sample_pictures(batch, step.maps, config)
    batch.boxes = [boxes * torch.tensor([1, -1, 1, 1, 1, 1, -1, 1, -1]) for boxes in batch.boxes]
    mirrored = sample_pictures(batch, step.maps, config)
    for name in (f"camera/{camera}" for camera in config.cameras):
        here, there = (np.abs(plain[name] - other[name].astype(float)).mean() for other in (mirrored, moved))
        assert here < 0.05 and there > 1, name
