# SPDX-License-Identifier: Apache-2.0
"""training/train.py from the command line: restart, bad input, bad losses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bevnext_core.checkpoint import load_checkpoint
from tests.nuscenes_dataroot import edit_table
from tests.training.tiny import arguments, tiny_config, tiny_dataroot
from training import train as script
from training.run.train_checkpoint import CheckpointFolder, read_training_checkpoint
from training.run.training_forward import TrainingForward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    tiny_dataroot(folder)
    return folder


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    tiny_dataroot(tmp_path)
    return tmp_path


def newest(folder: Path) -> dict[str, Any]:
    found = CheckpointFolder(folder).newest()
    assert found is not None
    return found[1]


def assert_identical(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b)):
            assert_identical(x, y, f"{path}[{index}]")
    else:
        assert a == b, path


@pytest.fixture(scope="module")
def whole_run(folder: Path) -> Path:
    assert script.main(arguments(folder, "whole", "--keep", "9", "--checkpoint-every", "3")) == 0
    return folder / "whole"


def test_a_run_leaves_its_results(whole_run: Path, folder: Path) -> None:
    names = {path.name for path in whole_run.iterdir()}
    assert {"config.yaml", "log.txt", "epoch_1.safetensors", "epoch_2_ema.safetensors"} <= names
    assert {"step_00000003.pt", "step_00000008.pt"} <= names
    assert (whole_run / "config.yaml").read_text().startswith("# git revision: ")
    network = load_checkpoint(whole_run / "epoch_2_ema.safetensors", tiny_config(folder))
    state = newest(whole_run)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state["ema"]["state"][name]), name
    log = (whole_run / "log.txt").read_text()
    assert re.search(r"epoch 1 step 8/8 loss .* samples/s wait .* memory .* GiB left", log)
    assert "learning rate 0.001 " in log and "training ended" in log


@pytest.mark.parametrize("stop", [3, 4])
def test_stopping_and_resuming_is_bit_identical(whole_run: Path, folder: Path, stop: int) -> None:
    """In mid-epoch and between epochs; weights, average, optimiser and random state."""
    name = f"stopped{stop}"
    shutil.rmtree(folder / name, ignore_errors=True)
    assert script.main(arguments(folder, name, "--max-steps", str(stop))) == 0
    torch.rand(7)  # a new process would not have this one's random state either
    assert script.main(arguments(folder, name, "--resume")) == 0
    assert newest(folder / name)["step"] == 8
    expected, found = newest(whole_run), newest(folder / name)
    assert_identical(
        {k: v for k, v in found.items() if k != "config"}, {k: v for k, v in expected.items() if k != "config"}
    )


def test_the_checkpoint_holds_tensors_and_plain_values_only(whole_run: Path) -> None:
    state = read_training_checkpoint(CheckpointFolder(whole_run).paths()[-1])
    assert {"model", "ema", "optimizer", "scaler", "random", "frames", "epoch", "epoch_step", "config"} <= set(state)


def test_a_truncated_newest_checkpoint_falls_back_with_a_warning(whole_run: Path, folder: Path) -> None:
    shutil.copytree(whole_run, folder / "truncated")
    path = CheckpointFolder(folder / "truncated").paths()[-1]
    path.write_bytes(path.read_bytes()[:5000])
    options = ["--keep", "9", "--checkpoint-every", "3", "--resume"]
    assert script.main(arguments(folder, "truncated", *options)) == 0
    log = (folder / "truncated" / "log.txt").read_text()
    assert "step_00000008.pt" in log and "the checkpoint before it is used" in log
    assert_identical(newest(folder / "truncated")["model"], newest(whole_run)["model"])


def test_a_work_dir_with_checkpoints_needs_resume(whole_run: Path, folder: Path, capsys: Any) -> None:
    assert script.main(arguments(folder, "whole", "--keep", "9", "--checkpoint-every", "3")) == 1
    assert "--resume" in capsys.readouterr().err


def test_a_work_dir_of_another_configuration_is_refused(whole_run: Path, folder: Path, capsys: Any) -> None:
    more = ["--keep", "9", "--checkpoint-every", "3", "--resume", "--set", "training.learning_rate=0.5"]
    assert script.main(arguments(folder, "whole", *more)) == 1
    error = capsys.readouterr().err
    assert "another configuration" in error and "learning_rate: 0.001 there, 0.5 here" in error


def test_a_non_finite_loss_is_skipped_counted_and_leaves_no_trace(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    original = TrainingForward.forward

    def forward(self: Any, batch: Any) -> dict[str, torch.Tensor]:
        states.append({name: value.clone() for name, value in self.network.state_dict().items()})
        if len(states) == 2:
            batch.depth[:] = 10.0
            with torch.no_grad():
                self.network.crf.weight.fill_(torch.nan)
            losses = original(self, batch)
            with torch.no_grad():
                self.network.crf.weight.copy_(states[-1]["crf.weight"])
            return losses
        return original(self, batch)

    monkeypatch.setattr(TrainingForward, "forward", forward)
    assert script.main(arguments(folder, "nan", "--max-steps", "3")) == 0
    log = (folder / "nan" / "log.txt").read_text()
    assert re.search(r"step 2 skipped: non-finite loss, samples scene-\d+-sample\d, scene", log)
    before, after = states[1], states[2]
    for name in before:
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(before[name], after[name]), name
    assert newest(folder / "nan")["skipped"] == 1


def test_too_many_bad_steps_in_a_row_stop_the_run_with_a_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    original = TrainingForward.forward

    def forward(self: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {name: value * torch.inf for name, value in original(self, batch).items()}

    monkeypatch.setattr(TrainingForward, "forward", forward)
    assert script.main(arguments(folder, "infinite", "--set", "training.max_skipped=2")) == 1
    assert "2 steps in a row had a non-finite loss" in capsys.readouterr().err
    assert newest(folder / "infinite")["step"] == 2


def test_unreadable_frames_are_listed_and_stop_the_run_beyond_the_limit(own_folder: Path, capsys: Any) -> None:
    for path in sorted((own_folder / "data" / "samples" / "CAM_BACK").glob("scene-0553*")):
        path.write_bytes(b"")
    assert script.main(arguments(own_folder, "few", "--set", "training.max_unreadable=3")) == 0
    assert "scene-0553-sample0 cannot be read" in (own_folder / "few" / "log.txt").read_text()
    assert script.main(arguments(own_folder, "many", "--set", "training.max_unreadable=1")) == 1
    error = capsys.readouterr().err
    assert "1 are allowed" in error and "CAM_BACK" in error and error.count("scene-0553-sample") >= 2
    assert CheckpointFolder(own_folder / "many").paths()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("annotations", "no annotated objects"),
        ("lidar", "training.missing_lidar=no-depth-loss"),
        ("image", "the image is 80x45, but its calibration is for 160x90"),
    ],
)
def test_bad_data_sets_end_with_one_clear_line(own_folder: Path, capsys: Any, spoil: str, message: str) -> None:
    data = own_folder / "data"
    if spoil == "annotations":
        edit_table(data, "sample_annotation", lambda rows: rows.clear())
        edit_table(data, "instance", lambda rows: rows.clear())
    elif spoil == "lidar":
        shutil.rmtree(data / "samples" / "LIDAR_TOP")
    else:
        for path in (data / "samples" / "CAM_FRONT").iterdir():
            Image.fromarray(np.zeros((45, 80, 3), np.uint8)).save(path)
    assert script.main(arguments(own_folder)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_without_lidar_a_run_is_possible_when_it_is_asked_for(own_folder: Path) -> None:
    shutil.rmtree(own_folder / "data" / "samples" / "LIDAR_TOP")
    more = ["--set", "training.missing_lidar=no-depth-loss", "--max-steps", "1"]
    assert script.main(arguments(own_folder, "run", *more)) == 0
    assert "depth 0.000" in (own_folder / "run" / "log.txt").read_text()


def test_a_work_dir_that_cannot_be_made_ends_with_one_clear_line(folder: Path, capsys: Any) -> None:
    (folder / "file").write_text("")
    assert script.main(arguments(folder, "file/run")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: --work-dir {folder}/file/run cannot be created: ")
