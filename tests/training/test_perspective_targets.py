# SPDX-License-Identifier: Apache-2.0
"""Which class a patch shows, the loss on it, and a run with it that stops and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bevnext_benchmarks.synthetic_batches import synthetic_batch
from bevnext_core.checkpoint import load_checkpoint, save_checkpoint
from bevnext_core.config import FEATURE_STRIDE
from bevnext_core.network.camera_geometry import CameraGeometry
from tests.training.tiny import arguments, tiny_config, tiny_dataroot, with_training
from training import train as script
from training.losses.perspective_targets import PerspectiveLoss, patch_classes
from training.run.train_checkpoint import CheckpointFolder, read_training_checkpoint
from training.run.training_forward import TrainingForward

SIZE, BACKGROUND, FOCAL = (8, 16), 10, 100.0
CENTER = (SIZE[1] * FEATURE_STRIDE / 2, SIZE[0] * FEATURE_STRIDE / 2)


def cameras(image_rotation: torch.Tensor | None = None, shift: tuple[float, float] = (0.0, 0.0)) -> CameraGeometry:
    """One camera at the ego's origin that looks along x, and one that looks back; principal point in the middle."""
    forward = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    back = torch.diag(torch.tensor([-1.0, -1, 1])) @ forward
    intrinsics = torch.tensor([[FOCAL, 0, CENTER[0]], [0, FOCAL, CENTER[1]], [0, 0, 1]])
    rotation = torch.eye(3) if image_rotation is None else image_rotation
    return CameraGeometry(
        torch.stack([forward, back])[None, None],
        torch.zeros(1, 1, 2, 3),
        intrinsics.expand(1, 1, 2, 3, 3),
        rotation.expand(1, 1, 2, 3, 3),
        torch.tensor([*shift, 0.0]).expand(1, 1, 2, 3),
        torch.eye(3)[None],
    )


def classes(geometry: CameraGeometry, *boxes: tuple[int, float, float, float, float]) -> torch.Tensor:
    """Patches of both cameras for boxes (label, x, y, size, yaw) at the camera's height."""
    rows = [[x, y, 0.0, size, size, size, yaw, 0, 0] for _, x, y, size, yaw in boxes]
    labels = torch.tensor([box[0] for box in boxes])
    return patch_classes([torch.tensor(rows).reshape(-1, 9)], [labels], geometry, SIZE, BACKGROUND)[0]


def columns_of(patches: torch.Tensor, label: int) -> list[int]:
    return sorted(set((patches == label).nonzero()[:, 1].tolist()))


def test_a_box_covers_the_patches_where_it_is_seen() -> None:
    """2 m wide with its front face 9 m ahead: 100 / 9 pixels to either side of its middle."""
    front, rear = classes(cameras(), (3, 10.0, 0.0, 2.0, 0.0))
    assert (rear == BACKGROUND).all()
    reach = FOCAL / 9
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            x, y = ((v + 0.5) * FEATURE_STRIDE for v in (column, row))
            inside = abs(x - CENTER[0]) <= reach and abs(y - CENTER[1]) <= reach
            assert int(front[row, column]) == (3 if inside else BACKGROUND)


def test_left_is_left_behind_is_behind_and_the_nearer_object_hides_the_other() -> None:
    front, rear = classes(cameras(), (1, 10.0, 4.0, 2.0, 0.0), (2, -10.0, 4.0, 2.0, 0.0))
    assert max(columns_of(front, 1)) < SIZE[1] / 2, "y is left, which is on the left in the image"
    assert min(columns_of(rear, 2)) >= SIZE[1] / 2, "and on the right for who looks back"
    near_first = classes(cameras(), (5, 8.0, 0.0, 1.0, 0.3), (6, 20.0, 0.0, 6.0, 0.0))[0]
    far_first = classes(cameras(), (6, 20.0, 0.0, 6.0, 0.0), (5, 8.0, 0.0, 1.0, 0.3))[0]
    assert torch.equal(near_first, far_first)
    middle = near_first[SIZE[0] // 2, SIZE[1] // 2]
    assert middle == 5 and (near_first == 6).sum() > 0


def test_small_objects_have_a_patch_and_nothing_has_none() -> None:
    assert (classes(cameras(), (7, 45.0, 0.3, 0.3, 0.0))[0] == 7).sum() >= 1
    assert (classes(cameras()) == BACKGROUND).all()


def test_image_augmentation_and_bev_augmentation_are_followed() -> None:
    plain = classes(cameras(), (4, 10.0, 3.0, 2.0, 0.0))[0]
    flip = torch.diag(torch.tensor([-1.0, 1, 1]))
    flipped = classes(cameras(flip, (SIZE[1] * FEATURE_STRIDE, 0.0)), (4, 10.0, 3.0, 2.0, 0.0))[0]
    assert torch.equal(flipped, plain.flip(1))
    turned = cameras()
    turned.bda = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])  # the boxes were turned left by a right angle
    assert torch.equal(classes(turned, (4, -3.0, 10.0, 2.0, torch.pi / 2))[0], plain)


def test_the_loss_is_about_the_context_and_falls_where_the_class_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config(tmp_path, stage=1)
    loss = PerspectiveLoss(config, 2.0)
    context = torch.randn(2, config.channels, *SIZE, requires_grad=True)
    boxes, labels = [torch.tensor([[10.0, 0, 0, 2, 2, 2, 0, 0, 0]])], [torch.tensor([3])]
    before = loss(context, boxes, labels, cameras())
    before.backward()
    assert context.grad is not None and float(context.grad.abs().sum()) > 0
    with torch.no_grad():
        loss.read_out.weight.zero_()
        loss.read_out.weight[3, 0] = 10.0
        loss.read_out.bias.copy_(torch.tensor([*[-10.0] * 10, 5.0]))
        context.zero_()
        context[0, 0] = 2 * (classes(cameras(), (3, 10.0, 0.0, 2.0, 0.0))[0] == 3)
    assert loss(context, boxes, labels, cameras()) < 0.02 * before


def test_it_is_off_by_default_and_reaches_the_backbone(tmp_path: Path) -> None:
    from bevnext_core.network.bevnext import BEVNeXt

    config = tiny_config(tmp_path, stage=1)
    batch = synthetic_batch(config, 1)
    assert "loss_perspective" not in TrainingForward(BEVNeXt(config))(batch)
    step = TrainingForward(BEVNeXt(with_training(config, perspective_weight=2.0)))
    step(batch)["loss_perspective"].backward()
    assert float(step.network.backbone.conv1.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert all(p.grad is None for p in step.network.proposal_head.parameters())


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_with_it_goes_on_where_it_stopped(stage: int, tmp_path: Path) -> None:
    tiny_dataroot(tmp_path)
    more = ["--set", "training.perspective_weight=2", "training.epochs=1"]
    more += ["training.shared_run=2"] if stage == 2 else []

    def run(name: str, *options: str) -> dict[str, Any]:
        assert script.main(arguments(tmp_path, name, *more, *options, stage=stage)) == 0
        return read_training_checkpoint(CheckpointFolder(tmp_path / name).paths()[-1])

    whole = run("whole")
    run("parts", "--max-steps", "2")
    parts = run("parts", "--resume")
    assert parts["step"] == whole["step"] > 2
    for part in ("perspective", "model"):
        assert whole[part] and all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
    assert "perspective" in (tmp_path / "whole" / "log.txt").read_text()


@pytest.mark.parametrize("way", ["--fine-tune", "--warm-start"])
def test_the_read_out_goes_on_in_another_run(way: str, tmp_path: Path) -> None:
    tiny_dataroot(tmp_path)
    start = [a for a in arguments(tmp_path, "second", stage=1) if a != "--from-scratch"]
    more = ["--max-steps", "1", "--set", "training.perspective_weight=2", "training.weight_decay=0"]
    assert script.main(arguments(tmp_path, "first", *more, stage=1)) == 0
    first = str(tmp_path / "first" / "step_1_ema.safetensors")
    assert script.main([*start, way, first, *more, "training.learning_rate=1e-30"]) == 0
    assert f"patches' classes goes on from {first}" in (tmp_path / "second" / "log.txt").read_text()
    carried = load_file(first)
    assert load_checkpoint(first).config.training.perspective_weight == 2, "what does not train takes no notice"
    for name, value in load_file(tmp_path / "second" / "step_1.safetensors").items():
        if name.startswith("training."):
            torch.testing.assert_close(value, carried.pop(name), rtol=0, atol=1e-12)
    assert not [name for name in carried if name.startswith("training.")]
    plain = tmp_path / "plain.safetensors"
    save_checkpoint(plain, load_checkpoint(first).state_dict(), load_checkpoint(first).config)
    assert script.main([*start, "--work-dir", str(tmp_path / "third"), way, str(plain), *more]) == 0
    assert "patches' classes begins anew" in (tmp_path / "third" / "log.txt").read_text()
