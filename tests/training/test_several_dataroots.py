# SPDX-License-Identifier: Apache-2.0
"""Scenes of cameras with other sizes and focal lengths in one training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bevnext_core.checkpoint import trained_on
from tests.nuscenes_dataroot import edit_table, write_dataroot
from tests.training.tiny import arguments, tiny_config, with_training
from training import train as script
from training.data.dataset import SampleRequest, TrainingDataset
from training.data.index import DatasetIndex, join_indexes, open_index
from training.data.shared_runs import scene_bounds


def twice_as_large(root: Path) -> None:
    """The same views with images of twice the width and height."""

    def calibration(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["camera_intrinsic"]:
                matrix = np.array(row["camera_intrinsic"])
                matrix[:2] *= 2
                row["camera_intrinsic"] = matrix.tolist()

    def sizes(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["width"], row["height"] = 2 * row["width"], 2 * row["height"]

    edit_table(root, "calibrated_sensor", calibration)
    edit_table(root, "sample_data", sizes)
    for path in root.glob("samples/CAM_*/*.jpg"):
        image = Image.open(path)
        image.resize((2 * image.width, 2 * image.height)).save(path)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> list[DatasetIndex]:
    folder = tmp_path_factory.mktemp("sizes")
    roots = [write_dataroot(folder / name, {"scene-0061": 3}) for name in ("small", "large")]
    twice_as_large(roots[1])
    return [open_index(root, "v1.0-mini", folder / "index", progress=False) for root in roots]


def test_a_joined_index_gives_the_samples_of_each(indexes: list[DatasetIndex], tmp_path: Path) -> None:
    joined = join_indexes(indexes)
    assert len(joined) == 6 and joined.previous.tolist() == [-1, 0, 1, -1, 3, 4]
    assert scene_bounds(joined)[0].tolist() == [0, 0, 0, 3, 3, 3], "scenes of one name in two folders are two"
    config = with_training(tiny_config(tmp_path), augmentation=False)
    together = TrainingDataset(joined, config, "mini_train")
    for place, index in enumerate(indexes):
        alone = TrainingDataset(index, config, "mini_train")
        for frame in range(3):
            own, other = alone[SampleRequest((frame,), 1, 0, 0)], together[SampleRequest((3 * place + frame,), 1, 0, 0)]
            assert own.tokens == other.tokens and torch.equal(own.canvas, other.canvas)
            assert torch.equal(own.depth, other.depth) and torch.equal(own.boxes[0], other.boxes[0])
            for name, value in vars(own.geometry).items():
                assert torch.equal(value, vars(other.geometry)[name]), name
    focal = together[SampleRequest((5,), 1, 0, 0)].geometry.intrinsics[0, 0, 0, 0, 0]
    assert focal == 2 * together[SampleRequest((2,), 1, 0, 0)].geometry.intrinsics[0, 0, 0, 0, 0]
    assert join_indexes(indexes[:1]) is indexes[0]


@pytest.mark.parametrize("shared", ["0", "2"])
def test_a_run_takes_several_folders(indexes: list[DatasetIndex], shared: str, tmp_path: Path) -> None:
    options = arguments(tmp_path, "run", "--set", f"training.shared_run={shared}", "training.epochs=1")
    place = options.index("--dataroot") + 1
    options[place : place + 1] = [str(index.dataroot) for index in indexes]
    assert script.main(options) == 0
    assert "of 6 frames" in (tmp_path / "run" / "log.txt").read_text()
    origin = trained_on(tmp_path / "run" / "epoch_1.safetensors")
    focal = [index.intrinsics[..., 0, 0] for index in indexes]
    assert origin is not None and origin.focal_lengths == pytest.approx((focal[0].min(), focal[1].max()))
    assert origin.data == "small, large v1.0-mini"
