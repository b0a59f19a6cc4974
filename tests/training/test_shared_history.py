# SPDX-License-Identifier: Apache-2.0
"""``training.shared_run``: runs of key frames, encoded once, equal to windows that encode everything."""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from tests.nuscenes_dataroot import write_dataroot
from tests.training.test_train import assert_identical
from tests.training.tiny import arguments, run_train, tiny_config, with_training
from training import train as script
from training.data.dataset import SampleRequest, TrainingDataset
from training.data.index import open_index
from training.data.shared_runs import RunDataset, RunSampler, SharedBatch, join_runs
from training.run.batch_statistics import BatchStatistics
from training.run.gradient_checkpointing import enable_checkpointing
from training.run.shared_forward import SharedForward, measure_parameters
from training.run.train_checkpoint import CheckpointFolder
from training.run.training_forward import TrainingForward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_dataroot(folder / "data", {"scene-0061": 7, "scene-0553": 5, "scene-0655": 2})
    return folder


def dataset(folder: Path, augment: bool = False, kind: type[TrainingDataset] = RunDataset) -> Any:
    index = open_index(folder / "data", "v1.0-mini", folder / "cache", progress=False)
    return kind(index, with_training(tiny_config(folder), augmentation=augment), "mini_train")


def two_runs(folder: Path, augment: bool = False) -> SharedBatch:
    """The start of a scene and the middle of another."""
    data = dataset(folder, augment)
    second = int(np.flatnonzero(data.index.scenes == "scene-0061")[0])
    first = int(np.flatnonzero(data.index.scenes == "scene-0553")[0])
    return join_runs(
        [data[SampleRequest(tuple(range(f, f + 3)), 1, 0, p)] for p, f in enumerate((first, second + 3))]
    )


@functools.lru_cache(maxsize=1)
def state(folder: Path) -> dict[str, Tensor]:
    """Random weights, and running statistics of real batches: without them the history would hardly matter."""
    torch.manual_seed(0)
    model = BEVNeXt(tiny_config(folder)).train()
    with torch.no_grad():
        for _ in range(8):
            straightforward(model, two_runs(folder, augment=True))
    return model.state_dict()


def network(folder: Path) -> BEVNeXt:
    """In evaluation mode, without dropout."""
    model = BEVNeXt(tiny_config(folder)).eval()
    model.load_state_dict(state(folder))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked.zero_()  # type: ignore[union-attr,operator]
    return model


def windows(batch: SharedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Images, colours and own camera parameters of each sample's window."""
    slots = batch.slots
    parameters = batch.own.camera_parameters()[:, 0]
    return normalize(batch.canvas)[slots], canvas_colors(batch.canvas)[slots], parameters[slots]


def straightforward(model: BEVNeXt, batch: SharedBatch) -> dict[str, Tensor]:
    """The network's own window forward, which encodes every frame of every window."""
    images, colors, parameters = windows(batch)
    maps = model(images, colors, batch.geometry, own_parameters=parameters)
    return TrainingForward(model).losses(maps, batch, maps.depth)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("augment", [False, True])
def test_with_frozen_statistics_it_equals_windows_that_encode_every_frame(
    folder: Path, augment: bool
) -> None:
    """Losses, and gradients with a detached history; also under a shared augmentation."""
    batch, results = two_runs(folder, augment), []
    for forward in (lambda m: SharedForward(m)(batch), lambda m: straightforward(m, batch)):
        model = network(folder)
        losses = forward(model)
        total(losses).backward()
        results.append((losses, {n: p.grad for n, p in model.named_parameters()}))
    (shared, gradients), (expected, reference) = results
    assert shared.keys() == expected.keys()
    for name, value in expected.items():
        assert shared[name].item() == pytest.approx(value.item(), rel=2e-5, abs=1e-6), name
    for name, gradient in reference.items():
        mine = gradients[name]
        assert mine is not None and gradient is not None, name
        assert float((mine - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-6, name
    assert sum(float(g.norm()) > 1e-4 for g in reference.values()) > 0.8 * len(reference)
    with torch.no_grad():
        batch.geometry.translation[:, 1:] += 2.0  # metres
        moved = SharedForward(network(folder))(batch)
    changed = [abs(moved[n].item() - shared[n].item()) / (shared[n].item() + 1e-2) for n in shared]
    assert max(changed) > 2e-3  # a hundred times the tolerance


def test_in_training_all_frames_have_the_statistics_of_the_samples(folder: Path) -> None:
    """Equal to a network whose norms hold the batch statistics of the samples' frames; updated once."""
    batch, model = two_runs(folder, augment=True), network(folder)
    plain = {n: b.clone() for n, b in model.named_buffers()}
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    parts = ("backbone", "depth_net", "pre_process")
    seen: dict[str, list[tuple[Tensor, Tensor, bool]]] = {n: [] for n in norms}
    for name, norm in norms.items():

        def record(module: nn.Module, inputs: tuple[Tensor], _: Any, name: str = name) -> None:
            x = inputs[0].detach().transpose(0, 1).flatten(1)
            biased, unbiased = x.var(1, correction=0), x.var(1)
            seen[name].append(
                (torch.stack([x.mean(1), x.mean(1)]), torch.stack([biased, unbiased]), module.training)
            )

        norm.register_forward_hook(record)
    model.train()
    losses = SharedForward(model)(batch)
    used = {}
    for name, norm in norms.items():
        if name == "depth_net.parameter_norm":
            assert torch.equal(norm.running_mean, plain[f"{name}.running_mean"])  # type: ignore[arg-type]
            assert not any(training for *_, training in seen[name])
            continue
        assert norm.training and int(norm.num_batches_tracked) == 1, name  # type: ignore[arg-type]
        mean, variance, training = seen[name][0]
        assert training and not any(t for *_, t in seen[name][1:]), name
        assert (len(seen[name]) > 1) == name.startswith(parts), name
        for field, (biased, unbiased) in (("running_mean", mean), ("running_var", variance)):
            expected = 0.9 * plain[f"{name}.{field}"] + 0.1 * unbiased
            torch.testing.assert_close(getattr(norm, field), expected, rtol=1e-4, atol=1e-5)
            used[f"{name}.{field}"] = biased
    frozen = network(folder)
    frozen.load_state_dict(used, strict=False)
    with torch.no_grad():
        expected_losses = straightforward(frozen, batch)
    for name, value in expected_losses.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=2e-3, abs=1e-4), name


def test_checkpointing_changes_neither_gradients_nor_statistics(folder: Path) -> None:
    batch, results = two_runs(folder, augment=True), []
    for checkpointed in (False, True):
        model = network(folder).train()
        if checkpointed:
            enable_checkpointing(model)
        total(SharedForward(model)(batch)).backward()
        results.append(([p.grad for p in model.parameters()], dict(model.named_buffers())))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0]))
    assert all(torch.equal(results[0][1][name], value) for name, value in results[1][1].items())


def test_batch_statistics_leave_one_ordinary_update_behind() -> None:
    torch.manual_seed(0)
    ordinary, wrapped = nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3, momentum=0.3)
    x, other = torch.randn(4, 3, 5, 5) * 2 + 1, torch.randn(4, 3, 5, 5)
    ordinary(x)
    mean = wrapped.running_mean
    with BatchStatistics((wrapped,)) as statistics:
        first = wrapped(x.requires_grad_())
        with statistics.applied():
            second, third = wrapped(x), wrapped(other)
    first.sum().backward()  # what autograd kept is as it was
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert float((third - ordinary(other)).detach().abs().max()) > 0.5
    assert wrapped.running_mean is mean and wrapped.momentum == 0.3 and wrapped.training
    ordinary.reset_running_stats()
    ordinary(x)
    torch.testing.assert_close(wrapped.state_dict(), ordinary.state_dict())


# ---------------------------------------------------------------------------------------------- data
def test_a_run_holds_the_windows_that_the_frames_would_have(folder: Path) -> None:
    """Without augmentation, sample by sample, images and poses are those of separate samples."""
    runs, singles = dataset(folder), dataset(folder, kind=TrainingDataset)
    start = int(np.flatnonzero(runs.index.scenes == "scene-0061")[0])
    for first in (start, start + 3):
        run = runs[SampleRequest((first, first + 1, first + 2), 1, 0, 0)]
        assert len(run.canvas) == (3 if first == start else 5)
        for number in range(3):
            single = singles[SampleRequest((first + number,), 1, 0, 0)]
            assert torch.equal(run.canvas[run.slots[number]], single.canvas[0])
            for name in ("rotation", "translation", "intrinsics", "image_rotation", "image_translation"):
                assert torch.equal(getattr(run.geometry, name)[number], getattr(single.geometry, name)[0]), (
                    name
                )
            for name in ("boxes", "labels", "tokens"):
                assert torch.equal(
                    torch.as_tensor(len(getattr(run, name)[number])),
                    torch.as_tensor(len(getattr(single, name)[0])),
                )
            assert torch.equal(run.boxes[number], single.boxes[0]) and torch.equal(
                run.depth[number], single.depth[0]
            )
            assert torch.equal(run.own.rotation[number], single.geometry.rotation[0, :1])


def test_a_run_has_one_augmentation(folder: Path) -> None:
    batch = two_runs(folder, augment=True)
    for part in (batch.geometry.bda, batch.own.image_rotation[:, 0]):
        assert (
            torch.equal(part[0], part[2])
            and torch.equal(part[3], part[5])
            and not torch.equal(part[0], part[3])
        )
    assert torch.equal(batch.own.image_rotation[6], batch.own.image_rotation[3])  # the second run's history
    cameras = batch.own.image_rotation[0, 0].flatten(1)
    assert len(torch.unique(cameras, dim=0)) == 6


def test_joined_runs_keep_their_slots(folder: Path) -> None:
    batch = two_runs(folder)
    assert batch.slots.tolist() == [[0, 0, 0], [1, 0, 1], [2, 1, 0], [3, 6, 7], [4, 3, 6], [5, 4, 3]]
    assert len(batch.canvas) == 8 and len(batch.own.rotation) == 8 and len(batch.depth) == 6


def test_an_unreadable_sample_gives_another_run_and_unreadable_history_the_present(tmp_path: Path) -> None:
    write_dataroot(tmp_path / "data", {"scene-0061": 7, "scene-0553": 5, "scene-0655": 2})
    data = dataset(tmp_path)
    start = int(np.flatnonzero(data.index.scenes == "scene-0061")[0])
    (data.index.dataroot / str(data.index.image_files[start + 2, 3])).write_bytes(b"no image")
    run = data[SampleRequest((start + 3, start + 4), 1, 0, 0)]
    assert [token for token, _ in run.faults] == ["scene-0061-sample2"]
    assert run.slots.tolist() == [[0, 0, 2], [1, 0, 1]] and run.tokens[0] == "scene-0061-sample3"
    run = data[SampleRequest((start + 1, start + 2), 1, 0, 0)]
    assert len(run.tokens) == 2 and "scene-0061-sample2" not in run.tokens
    assert "CAM_BACK_LEFT" in run.faults[0][1]


def test_the_norm_of_the_camera_parameters_is_that_of_the_draws(folder: Path) -> None:
    data, model = dataset(folder, augment=True), network(folder)
    line = measure_parameters(model, data, seed=3)
    assert "512 draws" in line
    norm = model.depth_net.parameter_norm
    normalised = norm(data.camera_parameters(300, seed=9))
    scale = norm.weight.detach()
    varied = norm.running_var > 1e-6  # type: ignore[operator]
    assert int(varied.sum()) == 18
    assert float(normalised.mean(0).abs().max()) < 0.3 * float(scale.max())
    assert ((normalised.std(0) - 1).abs()[varied] < 0.25).all()


# ---------------------------------------------------------------------------------------------- sampler
def sampler(
    folder: Path, balanced: bool = False, batch: int = 4, rank: int = 0, ranks: int = 1
) -> RunSampler:
    data = dataset(folder)
    frames = np.concatenate([data.frames, data.frames[:5]]) if balanced else data.frames
    return RunSampler(data.index, frames, 2, batch, rank, ranks, 1, balanced)


def epoch(sampler: RunSampler, number: int, step: int = 0) -> list[list[SampleRequest]]:
    sampler.start(number, step)
    return list(sampler)


def test_an_epoch_covers_the_scenes_but_for_their_ends(folder: Path) -> None:
    whole = sampler(folder)
    assert whole.count == 4 + 3 + 1 and len(whole) == 4 and whole.samples == 16
    scenes = dataset(folder).index.scenes
    covered = []
    for number in range(6):
        runs = [request.frames for step in epoch(whole, number) for request in step]
        assert all(b == a + 1 and scenes[a] == scenes[b] for a, b in runs)
        covered.append({frame for run in runs for frame in run})
        assert len(covered[-1]) >= 14 - 3  # one frame at an end of each scene may wait
    assert set.union(*covered) == set(range(14))
    assert len({tuple(sorted(r.frames for step in epoch(whole, n) for r in step)) for n in range(6)}) > 1


def test_class_balanced_runs_hold_a_drawn_frame_each(folder: Path) -> None:
    balanced = sampler(folder, balanced=True)
    assert balanced.count == 10
    runs = [request.frames for step in epoch(balanced, 0) for request in step]
    assert all(len(run) == 2 and run[1] == run[0] + 1 for run in runs)


def test_runs_are_the_same_for_any_number_of_ranks_and_restart_in_mid_epoch(folder: Path) -> None:
    alone, pair = sampler(folder, batch=4), [sampler(folder, batch=2, rank=r, ranks=2) for r in range(2)]
    for whole, first, second in zip(epoch(alone, 3), *(epoch(s, 3) for s in pair), strict=True):
        assert whole == first + second
    assert epoch(alone, 3, step=2) == epoch(alone, 3)[2:] and epoch(alone, 3) != epoch(alone, 4)


def test_scenes_shorter_than_a_run_give_all_of_their_frames(folder: Path) -> None:
    data = dataset(folder)
    for number in range(5):
        long = RunSampler(data.index, data.frames, 6, 6, 0, 1, number, False)
        lengths = sorted(len(request.frames) for step in epoch(long, number) for request in step)
        assert lengths == [2, 5, 6, 6]


# ---------------------------------------------------------------------------------------------- train.py
def options(folder: Path, work_dir: str, *more: str, batch: str = "4") -> list[str]:
    values = arguments(folder, work_dir, "--set", "training.shared_run=2", *more)
    values[values.index("--batch") + 1] = batch
    return values


def test_stopping_and_resuming_is_bit_identical(folder: Path) -> None:
    assert script.main(options(folder, "whole", "--max-steps", "6")) == 0
    shutil.rmtree(folder / "stopped", ignore_errors=True)
    assert script.main(options(folder, "stopped", "--max-steps", "3")) == 0
    torch.rand(7)
    assert script.main(options(folder, "stopped", "--max-steps", "6", "--resume")) == 0
    states = []
    for name in ("whole", "stopped"):
        found = CheckpointFolder(folder / name).newest()
        assert found is not None and found[1]["step"] == 6 and found[1]["epoch"] == 1
        states.append({k: v for k, v in found[1].items() if k != "config"})
    assert_identical(*states)
    log = (folder / "whole" / "log.txt").read_text()
    assert "shared by runs of 2 key frames, 2 in each process and step" in log
    assert re.search(r"norm of the camera parameters keeps the statistics of 512 draws", log)


@pytest.mark.slow
def test_two_processes_train_on_their_halves_of_the_runs(folder: Path) -> None:
    more = ["--set", "training.shared_run=2", "--max-steps", "2"]
    done = run_train(folder, *more, work_dir="pair", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    found = CheckpointFolder(folder / "pair").newest()
    assert found is not None and found[1]["step"] == 2 and len(found[1]["random"]) == 2
    assert "2 processes x 2 samples = 4 a step" in (folder / "pair" / "log.txt").read_text()
