# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard itself reads from the event files of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevnext_benchmarks.synthetic_batches import synthetic_batch
from bevnext_core.network.bevnext import BEVNeXt
from tests.training.tiny import arguments, tiny_config, tiny_dataroot
from training import train as script
from training.run import tensorboard
from training.run.training_forward import TrainingForward

LOG = logging.getLogger("test")


def read(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, np.ndarray]]:
    """Scalars (step, value) and pictures by tag, through TensorBoard's own reader."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    import cv2
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    pictures = {
        tag: cv2.imdecode(np.frombuffer(events.Images(tag)[0].encoded_image_string, np.uint8), 1)[..., ::-1]
        for tag in events.Tags()["images"]
    }
    return scalars, pictures


def test_scalars_and_pictures_come_back_as_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    board = tensorboard.open_tensorboard(tmp_path, LOG)
    assert board is not None
    config = tiny_config(tmp_path)
    batch, step = synthetic_batch(config, 2), TrainingForward(BEVNeXt(config).eval())
    with torch.no_grad():
        losses = step(batch)
    total = torch.stack(list(losses.values())).sum()
    for number in (50, 100):
        board.scalars(number, losses, total, torch.tensor(2.5), 1e-3)
    board.pictures(100, batch, step.maps, config)
    board.writer.close()
    scalars, pictures = read(tmp_path)
    assert set(scalars) == {f"loss/{name}" for name in losses} | {
        "loss/total",
        "gradient_norm",
        "learning_rate",
    }
    assert scalars["loss/total"] == [(50, pytest.approx(total.item())), (100, pytest.approx(total.item()))]
    assert scalars["gradient_norm"][0] == (50, 2.5)
    assert step.maps is not None
    expected = tensorboard.sample_pictures(batch, step.maps, config)
    assert pictures.keys() == expected.keys()
    for name, picture in expected.items():
        np.testing.assert_array_equal(pictures[name], picture, err_msg=name)


def test_a_run_writes_its_curves_beside_its_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    tiny_dataroot(tmp_path)
    assert script.main(arguments(tmp_path, "run", "--max-steps", "3")) == 0
    scalars, pictures = read(tmp_path / "run")
    assert [step for step, _ in scalars["loss/total"]] == [1, 2, 3]
    assert scalars["learning_rate"][0][1] < scalars["learning_rate"][-1][1]
    assert {"heatmap", "bev", "camera/CAM_FRONT"} <= set(pictures)


def test_without_tensorboard_a_run_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    messages = said(LOG.name)
    assert tensorboard.open_tensorboard(tmp_path, LOG) is None
    assert "pip install 'bevnext_ros[train]'" in messages[0] and not list(tmp_path.iterdir())
