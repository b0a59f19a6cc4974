# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: safe, atomic, few, and a damaged newest one falls back."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bevnext_core.errors import CheckpointError
from training.run.train_checkpoint import (
    CheckpointFolder,
    random_state,
    read_training_checkpoint,
    set_random_state,
)


def test_the_last_few_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.newest() is None
    for step in (5, 40, 300):
        folder.save(step, {"value": torch.tensor(step)})
    assert [path.name for path in folder.paths()] == ["step_00000040.pt", "step_00000300.pt"]
    found = folder.newest()
    assert found is not None and found[1]["step"] == 300 and found[1]["value"] == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000040.pt", "step_00000300.pt"]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_newest_one_falls_back_with_a_warning(tmp_path: Path, kept: float) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(step, {"value": torch.zeros(1000)})
    path = folder.paths()[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.warns(UserWarning, match=r"step_00000002\.pt.*the checkpoint before it is used"):
        found = folder.newest()
    assert found is not None and found[1]["step"] == 1


def test_when_all_are_damaged_the_run_does_not_start_over_in_silence(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {}).write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="none of the 1"):
        folder.newest()


def test_a_failed_write_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {})

    def full(content: Any, path: Path) -> None:
        Path(path).write_bytes(b"part")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        folder.save(2, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]


def test_other_types_are_refused_and_do_not_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "step_00000009.pt"
    torch.save({"format": "bevnext-training-1", "step": 9, "x": Malicious()}, path)
    with pytest.raises(CheckpointError):
        read_training_checkpoint(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError):
        read_training_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    torch.save({"model": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        read_training_checkpoint(path)


def test_random_state_comes_back(tmp_path: Path) -> None:
    state = random_state()
    expected = torch.rand(3)
    CheckpointFolder(tmp_path).save(1, {"random": [state]})
    torch.rand(5)
    set_random_state(CheckpointFolder(tmp_path).newest()[1]["random"][0])  # type: ignore[index]
    assert torch.equal(torch.rand(3), expected)
