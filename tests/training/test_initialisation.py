# SPDX-License-Identifier: Apache-2.0
"""What a network starts from, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

import training.run.initialisation as initialisation
from bevnext_core.checkpoint import save_checkpoint
from bevnext_core.config import ModelConfig, load_config
from bevnext_core.errors import CheckpointError, one_line
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.published_names import published_names
from tests.paths import ROOT
from tests.training.tiny import tiny_config
from training.run.initialisation import (
    load_imagenet,
    load_matching,
    load_perspective,
    load_same_network,
    load_stage_1,
    scale_heads,
)

PUBLISHED = {
    stage: load_config(ROOT / f"config/model/bevnext_r50_stage{stage}.yaml") for stage in (1, 2)
}


@pytest.fixture(scope="module")
def resnet() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return torchvision.models.resnet50().state_dict()


@pytest.fixture
def network() -> BEVNeXt:
    return BEVNeXt(PUBLISHED[1])


def assert_taken(network: BEVNeXt, state: dict[str, torch.Tensor]) -> None:
    own = network.backbone.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)


def test_imagenet_from_a_file_with_the_right_hash(
    network: BEVNeXt, resnet: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(resnet, path)
    before = network.backbone.conv1.weight.clone()
    with pytest.raises(CheckpointError, match="not torchvision's IMAGENET1K_V1"):
        load_imagenet(network, path)
    assert torch.equal(network.backbone.conv1.weight, before)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(initialisation, "IMAGENET_HASH", digest)
    text = load_imagenet(network, path)
    assert_taken(network, resnet)
    assert "265 entries taken" in text and "fc.weight" in text


def test_the_published_weights_are_the_first_version() -> None:
    assert torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url == initialisation.IMAGENET_URL
    assert initialisation.IMAGENET_HASH in initialisation.IMAGENET_URL


def test_without_network_the_remedies_are_named(network: BEVNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded.*--backbone-weights.*--from-scratch"):
        load_imagenet(network)


def test_a_perspective_detectors_backbone(network: BEVNeXt, resnet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """As mmdetection writes it: meta beside state_dict, no batch counters, other parts beside the backbone."""
    state = {f"backbone.{k}": v for k, v in resnet.items() if not k.startswith("fc.")}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    state |= {"neck.lateral_convs.0.conv.weight": torch.zeros(1), "backbone.layer3.0.conv2.conv_offset": torch.ones(1)}
    path = tmp_path / "perspective.pth"
    torch.save({"meta": {"epoch": 20, "config": "text"}, "state_dict": state}, path)
    text = load_perspective(network, path)
    own = network.backbone.state_dict()
    for name in own:
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(own[name], resnet[name]), name
    assert "layer3.0.conv2.conv_offset" in text and "1 entries of other parts left" in text

    del state["backbone.layer4.2.bn3.running_var"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointError, match=r"lacks 1 backbone entries: layer4\.2\.bn3\.running_var"):
        load_perspective(network, path)
    with pytest.raises(CheckpointError, match="--backbone-weights"):
        load_perspective(network, None)


def test_all_entries_that_do_not_fit_are_listed(
    network: BEVNeXt, resnet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = {f"backbone.{k}": v for k, v in resnet.items() if not k.startswith("fc.")}
    names = [name for name in state if name.startswith("backbone.layer3.") and state[name].dim()]
    assert len(names) > 50
    path = tmp_path / "perspective.pth"
    for spoilt in (
        {name: value for name, value in state.items() if name not in names},
        {name: value[:-1] if name in names else value for name, value in state.items()},
    ):
        torch.save({"state_dict": spoilt}, path)
        with pytest.raises(CheckpointError) as caught:
            load_perspective(network, path)
        listed = re.findall(r"layer3\.[\w.]+", one_line(caught.value))
        assert listed == [name.removeprefix("backbone.") for name in names]


def test_a_backbone_of_another_width_and_an_unsafe_file(
    network: BEVNeXt, resnet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    torch.save({f"backbone.{k}": v for k, v in resnet.items()}, path)
    with pytest.raises(CheckpointError, match=r"conv1\.weight \(64, 3, 7, 7\) instead of \(4, 3, 7, 7\)"):
        load_perspective(BEVNeXt(tiny_config(tmp_path)), path)

    class Malicious:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Malicious()}, path)
    for load in (load_perspective, load_imagenet):
        with pytest.raises(CheckpointError):
            load(network, path)
    assert not (tmp_path / "ran").exists()


def test_stage_2_takes_from_stage_1_what_the_published_code_takes(tmp_path: Path) -> None:
    """SEMANTICS.md, section 12, which was computed from the manifests."""
    torch.manual_seed(1)
    first = BEVNeXt(PUBLISHED[1])
    path = tmp_path / "stage1.safetensors"
    save_checkpoint(path, first.state_dict(), PUBLISHED[1])
    second = BEVNeXt(PUBLISHED[2])
    before = {name: value.clone() for name, value in second.state_dict().items()}
    lines = load_stage_1(second, path)
    names = published_names(before)
    source = first.state_dict()
    copied = re.compile(
        r"img_backbone\.|img_neck\.|img_view_transformer\.(crf|depth_net\.(?!context_conv\.3))|proposal_head\.|"
        r"pts_bbox_head\.(task_heads|shared_conv\.bn)|img_bev_encoder_neck\.(?!conv\.0\.weight)|"
        r".*(sampling_offsets|attention_weights)\.bias|depth_emb\.[01]\."
    )
    left = re.compile(
        r"pre_process_net\.|img_bev_encoder_backbone\.|transformer_neck\..*(embed|value_proj|output_proj|ffns|norms)|"
        r".*shared_conv\.conv\.weight|img_bev_encoder_neck\.conv\.0\.weight|depth_emb\.3|.*context_conv\.3"
    )
    counted = {True: 0, False: 0}
    for name, value in second.state_dict().items():
        same_shape = name in source and source[name].shape == value.shape
        expected = source[name] if same_shape else before[name]
        assert torch.equal(value, expected), name
        counted[same_shape] += 1
        if copied.match(names[name]) and not names[name].endswith("proposal_head.shared_conv.conv.weight"):
            assert same_shape, name
        counter = name.endswith("num_batches_tracked")  # a scalar everywhere
        if left.match(names[name]) and "proposal_head" not in name and not counter:
            assert not same_shape, name
    assert f"{counted[True]} of {len(before)} entries taken" in lines[0]
    assert any("pre_process" in line for line in lines[1:])


def test_the_wrong_stage_and_another_backbone_are_refused(tmp_path: Path) -> None:
    second = tiny_config(tmp_path, stage=2)
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, BEVNeXt(second).state_dict(), second)
    with pytest.raises(CheckpointError, match=r"checkpoint of stage 2 .*stage 2 starts from stage 1"):
        load_stage_1(BEVNeXt(second), path)
    first = tiny_config(tmp_path, stage=1)
    wide = dataclasses.replace(first, backbone=dataclasses.replace(first.backbone, base_channels=8))
    save_checkpoint(path, BEVNeXt(wide).state_dict(), wide)
    with pytest.raises(CheckpointError, match="another backbone"):
        load_stage_1(BEVNeXt(second), path)


def test_any_stage_can_start_from_the_other(tmp_path: Path) -> None:
    first, second = tiny_config(tmp_path, stage=1), tiny_config(tmp_path, stage=2)
    path = tmp_path / "c.safetensors"
    source = BEVNeXt(second).state_dict()
    save_checkpoint(path, source, second)
    network = BEVNeXt(first)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lines = load_matching(network, path)
    taken = [name for name, value in before.items() if name in source and source[name].shape == value.shape]
    assert f"{len(taken)} of {len(before)} entries taken" in lines[0] and 0 < len(taken) < len(before)
    for name, value in network.state_dict().items():
        assert torch.equal(value, source[name] if name in taken else before[name]), name
    wide = dataclasses.replace(first, backbone=dataclasses.replace(first.backbone, base_channels=8))
    with pytest.raises(CheckpointError, match="another backbone"):
        load_matching(BEVNeXt(wide), path)


def test_stage_2_runs_from_a_stage_1_result(tmp_path: Path) -> None:
    from tests.training.tiny import arguments, tiny_dataroot
    from training import train as script

    tiny_dataroot(tmp_path)
    config: ModelConfig = tiny_config(tmp_path, stage=1)
    save_checkpoint(tmp_path / "one.safetensors", BEVNeXt(config).state_dict(), config)
    options = [a for a in arguments(tmp_path) if a != "--from-scratch"]
    assert script.main([*options, "--init-from", str(tmp_path / "one.safetensors"), "--max-steps", "1"]) == 0
    assert "entries taken" in (tmp_path / "run" / "log.txt").read_text()


def test_stage_2_does_not_start_from_stage_2(tmp_path: Path, capsys: Any) -> None:
    from tests.training.tiny import arguments, tiny_dataroot
    from training import train as script

    tiny_dataroot(tmp_path)
    config = tiny_config(tmp_path, stage=2)
    save_checkpoint(tmp_path / "two.safetensors", BEVNeXt(config).state_dict(), config)
    options = [a for a in arguments(tmp_path) if a != "--from-scratch"]
    assert script.main([*options, "--init-from", str(tmp_path / "two.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1] == (
        f"error: {tmp_path}/two.safetensors is a checkpoint of stage 2 ('tiny_stage2'); stage 2 starts from stage 1"
    )
    assert not list((tmp_path / "run").glob("*.pt"))


def test_fine_tuning_takes_every_weight_of_the_same_network(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, stage=2)
    path = tmp_path / "c.safetensors"
    source, network = BEVNeXt(config), BEVNeXt(config)
    save_checkpoint(path, source.state_dict(), config)
    assert "all its weights" in load_same_network(network, path)
    for name, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    other = tiny_config(tmp_path, stage=1)
    with pytest.raises(CheckpointError, match=r"whose .* differ"):
        load_same_network(BEVNeXt(other), path)


def test_a_run_starts_from_what_fits_in_several_files(tmp_path: Path) -> None:
    from tests.training.tiny import arguments, tiny_dataroot
    from training import train as script

    tiny_dataroot(tmp_path)
    states = {}
    for stage in (2, 1):
        config = tiny_config(tmp_path, stage=stage)
        torch.manual_seed(stage)
        states[stage] = BEVNeXt(config).state_dict()
        save_checkpoint(tmp_path / f"{stage}.safetensors", states[stage], config)
    options = [a for a in arguments(tmp_path, stage=2) if a != "--from-scratch"]
    files = [str(tmp_path / f"{stage}.safetensors") for stage in (2, 1)]
    options += ["--warm-start", *files, "--max-steps", "1", "--set", "training.learning_rate=1e-30"]
    assert script.main([*options, "training.weight_decay=0"]) == 0
    found = load_file(tmp_path / "run" / "step_1.safetensors")
    for name, value in found.items():
        if name.endswith(("weight", "bias")):
            fits = name in states[1] and states[1][name].shape == value.shape
            torch.testing.assert_close(value, states[1 if fits else 2][name], msg=name)


def test_a_run_starts_from_a_trained_network_in_one_way(tmp_path: Path, capsys: Any) -> None:
    from tests.training.tiny import arguments, tiny_dataroot
    from training import train as script

    tiny_dataroot(tmp_path)
    config = tiny_config(tmp_path, stage=1)
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, BEVNeXt(config).state_dict(), config)
    options = [a for a in arguments(tmp_path, stage=1) if a != "--from-scratch"]
    assert script.main([*options, "--fine-tune", str(path), "--from-scratch"]) == 1
    assert "choose one" in capsys.readouterr().err
    assert script.main([*options, "--fine-tune", str(path), "--max-steps", "1"]) == 0
    assert f"fine-tuning {path}" in (tmp_path / "run" / "log.txt").read_text()


def test_scaled_heads_start_near_their_biases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = BEVNeXt(tiny_config(tmp_path, stage=1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert "36 head branches" in scale_heads(network, 0.02)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == 36, "six heat maps and thirty regressions"
    for name in changed:
        torch.testing.assert_close(network.state_dict()[name], 0.02 * before[name])
    bev = torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        heat, boxes = network.proposal_head.train()(bev)[0], network.box_head.train()(bev)[0]
        assert float((heat - network.proposal_head.tasks[0][-1].bias.view(1, -1, 1, 1)).abs().max()) < 1
        assert all(float(values.abs().max()) < 1 for values in boxes.values())


def test_the_heads_can_start_small(tmp_path: Path) -> None:
    from tests.training.tiny import arguments, tiny_dataroot
    from training import train as script

    tiny_dataroot(tmp_path)
    options = [a for a in arguments(tmp_path, stage=1) if a != "--from-scratch"]
    more = ["--from-scratch", "--set", "training.head_scale=0.02", "--max-steps", "1"]
    assert script.main([*options, *more]) == 0
    assert "start at 0.02 of their random weights" in (tmp_path / "run" / "log.txt").read_text()
