# SPDX-License-Identifier: Apache-2.0
"""Training a part of the network, and what is kept of frames: nothing of it changes what is learned."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bevnext_core.checkpoint import save_checkpoint
from bevnext_core.config import ModelConfig
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from tests.training.test_train import assert_identical, newest
from tests.training.tiny import arguments, tiny_config, tiny_dataroot, with_training
from training import train as script
from training.data import dataset
from training.data.dataset import SampleRequest, TrainingDataset
from training.data.encodings import IMAGE_BRANCH, EncodedDataset, join_encoded
from training.data.index import DatasetIndex, open_index
from training.data.store import FrameStore, canvas_key
from training.run.batch_statistics import evaluating
from training.run.parts import EncodedForward, freeze
from training.run.training_forward import TrainingForward

PLAIN = ["--set", "training.image_augmentation=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny_dataroot(folder)
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> DatasetIndex:
    return open_index(folder / "data", "v1.0-mini", folder / "index", progress=False)


def plain(config: ModelConfig, **values: Any) -> ModelConfig:
    return with_training(config, image_augmentation=False, **values)


def test_a_record_that_is_not_whole_is_not_there(tmp_path: Path) -> None:
    fields = {"a": ("u1", (3,)), "b": ("<f4", (2, 2))}
    store = FrameStore(tmp_path / "new" / "folder", "x", "key", 4, fields)
    assert store.read(2) is None
    store.write(2, a=np.arange(3), b=np.full((2, 2), 0.5))
    again = pickle.loads(pickle.dumps(FrameStore(tmp_path / "new" / "folder", "x", "key", 4, fields)))
    for reader in (store, again):
        row = reader.read(2)
        assert row["a"].tolist() == [0, 1, 2] and (row["b"] == 0.5).all() and reader.read(1) is None
    size = store.record.itemsize
    with store.path.open("r+b") as file:
        file.seek(2 * size + 1)
        file.write(b"\xff")
    assert store.read(2) is None, "torn"
    assert len(pickle.dumps(store)) < 1000, "a worker process maps the file itself"
    assert store.path.stat().st_size == 4 * size


def test_kept_canvases_are_the_canvases(
    folder: Path, index: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain(tiny_config(folder))
    request = SampleRequest((int(index.previous.argmax()),), 3, 1, 4)
    expected = TrainingDataset(index, config, "mini_train")[request]
    first = TrainingDataset(index, config, "mini_train", str(tmp_path))[request]
    monkeypatch.setattr(dataset, "read_image", lambda *_: pytest.fail("the image is read again"))
    monkeypatch.setattr(dataset, "lidar_depth_map", lambda *_: pytest.fail("the lidar is read again"))
    second = TrainingDataset(index, config, "mini_train", str(tmp_path))[request]
    for batch in (first, second):
        assert torch.equal(batch.canvas, expected.canvas) and torch.equal(batch.depth, expected.depth)
        assert torch.equal(batch.geometry.bda, expected.geometry.bda), "the BEV augmentation is drawn anew"
    assert not torch.equal(expected.geometry.bda[0], torch.eye(3))
    assert len(list(tmp_path.glob("*.bin"))) == 2


def test_what_decides_a_canvas_decides_its_place(folder: Path, index: DatasetIndex) -> None:
    config = plain(tiny_config(folder))
    key = canvas_key(index, config, np.arange(8))
    assert canvas_key(index, dataclasses.replace(config, channels=32), np.arange(8)) == key
    wider = dataclasses.replace(config, image=dataclasses.replace(config.image, width=128))
    turned = dataclasses.replace(index, intrinsics=index.intrinsics * 1.1)
    assert len({key, canvas_key(index, wider, np.arange(8)), canvas_key(turned, config, np.arange(8))}) == 3
    image = index.dataroot / str(index.image_files[0, 0])
    image.touch()
    assert canvas_key(index, config, np.arange(8)) != key


def test_a_run_on_kept_canvases_is_the_run_without(folder: Path, tmp_path: Path) -> None:
    more = [*PLAIN, "training.epochs=1"]
    assert script.main(arguments(folder, "without", *more)) == 0
    for name, workers in (("filling", "2"), ("filled", "0")):
        options = [*more, "--cache", str(tmp_path / "cache"), "--workers", workers]
        assert script.main(arguments(folder, name, *options)) == 0
        assert_identical(newest(folder / name)["model"], newest(folder / "without")["model"])


@pytest.mark.parametrize("bev_augmentation", [False, True])
def test_on_kept_encodings_the_losses_are_those_of_the_frozen_branch(
    folder: Path, index: DatasetIndex, tmp_path: Path, bev_augmentation: bool
) -> None:
    """Beside the window of the whole network with each frame's own colours and parameters, as a stream has them."""
    torch.manual_seed(1)
    config = plain(tiny_config(folder), part="bev", bev_augmentation=bev_augmentation)
    network = BEVNeXt(config).train()
    data = EncodedDataset(index, config, "mini_train")
    assert data.encode_all(network, str(tmp_path), progress=False) == (8, [])
    assert data.encode_all(network, str(tmp_path), progress=False) == (0, []), "they are there"
    frames = [int(f) for f in np.flatnonzero(index.previous >= 0)[:2]]
    samples = [data[SampleRequest((frame,), 5, 0, place)] for place, frame in enumerate(frames)]
    batch = join_encoded(samples)
    found = EncodedForward(network)(batch)

    images = TrainingDataset(index, with_training(config, augmentation=False), "mini_train")
    canvas = torch.cat([images[SampleRequest((frame,), 5, 0, 0)].canvas for frame in frames])
    alone = [images._geometry(f, [f], [f], images._plain(f), dataset.BevAugmentation())
             for frame in frames for f in images.window(frame)]
    own = torch.cat([geometry.camera_parameters() for geometry in alone]).view(2, 3, 6, 27)
    reference = TrainingForward(network)
    with evaluating([m for name in IMAGE_BRANCH for m in getattr(network, name).modules()]):
        maps = network(normalize(canvas), canvas_colors(canvas), batch.geometry, own_parameters=own)
        depth = torch.zeros(2, 6, *config.image.feature_size)
        expected = reference.losses(maps, dataclasses.replace(batch, depth=depth), torch.zeros(12, 16, 8, 12))
    assert set(expected) - set(found) == {"loss_depth"} and len(found) > 30
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], rtol=0.02, atol=1e-3)
    wrong = {name: v.item() for name, v in EncodedForward(network)(shifted(batch)).items()}
    assert any(abs(wrong[name] - v.item()) > 0.02 * abs(v.item()) for name, v in found.items()), "the past matters"


def shifted(batch: Any) -> Any:
    """The past frames in another order."""
    kept = {name: getattr(batch, name)[:, [0, 2, 1]] for name in ("kept_depth", "kept_context")}
    return dataclasses.replace(batch, **kept)


@pytest.mark.parametrize(("part", "stage"), [("bev", 2), ("images", 1)])
def test_only_the_part_learns_and_a_run_goes_on_where_it_stopped(part: str, stage: int, folder: Path) -> None:
    config = tiny_config(folder, stage)
    torch.manual_seed(3)
    start = BEVNeXt(config).state_dict()
    save_checkpoint(folder / f"{part}.safetensors", start, config)
    more = [*PLAIN, f"training.part={part}", "training.perspective_weight=1"]
    more += ["--cache", str(folder / "kept"), "--fine-tune", str(folder / f"{part}.safetensors")]

    def run(name: str, *options: str) -> dict[str, Any]:
        chosen = [a for a in arguments(folder, f"{part}-{name}", *more, *options, stage=stage) if a != "--from-scratch"]
        assert script.main(chosen) == 0
        return newest(folder / f"{part}-{name}")

    whole = run("whole")
    run("parts", "--max-steps", "3")
    assert_identical(run("parts", "--resume"), whole)
    for suffix in ("", "_ema"):
        moved = set()
        for name, value in load_file(folder / f"{part}-whole" / f"epoch_2{suffix}.safetensors").items():
            if name in start and not torch.equal(value, start[name]):
                moved.add(name.partition(".")[0])
        image = set(IMAGE_BRANCH) & {name.partition(".")[0] for name in start}
        assert moved == (image if part == "images" else {name.partition(".")[0] for name in start} - image)
    log = (folder / f"{part}-whole" / "log.txt").read_text()
    assert "heat 0.000" in log if part == "images" else "8 frames encoded" in log
    if part == "bev":
        again = (folder / "bev-parts" / "log.txt").read_text()
        assert again.count("0 frames encoded, the others are in") == 2


def test_freezing_by_part(folder: Path) -> None:
    for part, expected in (("all", {True}), ("images", {True, False}), ("bev", {True, False})):
        network = BEVNeXt(with_training(tiny_config(folder), part=part))
        freeze(network)
        assert {p.requires_grad for p in network.parameters()} == expected
        assert all(p.requires_grad == (part != "bev") for p in network.depth_net.parameters())
        assert all(p.requires_grad == (part != "images") for p in network.box_head.parameters())


def test_a_frame_that_cannot_be_read_has_no_encoding(tmp_path: Path) -> None:
    tiny_dataroot(tmp_path)
    index = open_index(tmp_path / "data", "v1.0-mini", tmp_path / "index", progress=False)
    later = int(np.flatnonzero(index.previous >= 0)[0])
    first = int(index.previous[later])
    (index.dataroot / str(index.image_files[first, 2])).write_bytes(b"")
    config = plain(tiny_config(tmp_path), part="bev")
    data = EncodedDataset(index, config, "mini_train")
    count, faults = data.encode_all(BEVNeXt(config), str(tmp_path / "kept"), progress=False)
    assert count == 7 and [token for token, _ in faults] == [index.tokens[first]] and "CAM_" in faults[0][1]
    batch = data[SampleRequest((later,), 0, 0, 0)]
    assert torch.equal(batch.kept_depth[:, 0], batch.kept_depth[:, 1]), "the present stands in"
    assert data[SampleRequest((first,), 0, 0, 0)].faults[0][0] == index.tokens[first]
