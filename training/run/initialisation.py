# SPDX-License-Identifier: Apache-2.0
"""What a network starts from: ImageNet, a perspective detector's backbone, or stage 1."""

from __future__ import annotations

import argparse
import hashlib
import urllib.error
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core.checkpoint import (
    TRAINING_ONLY,
    load_checkpoint,
    named_checkpoint,
    read_checkpoint,
    safe_torch_load,
)
from bevnext_core.errors import CheckpointError, one_line
from bevnext_core.network.bevnext import BEVNeXt
from training.losses.perspective_targets import PerspectiveLoss

IMAGENET_URL = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
"""torchvision's ``ResNet50_Weights.IMAGENET1K_V1``, the published initialisation (not ``DEFAULT``)."""
IMAGENET_HASH = "0676ba61"
"""First digits of the file's SHA-256."""


def initialise(network: BEVNeXt, options: argparse.Namespace) -> list[str]:
    """Give a new network its initial weights, in the way that the command line names; returns what to log."""
    training = network.config.training
    if options.from_scratch:
        scaled = [] if training.head_scale == 1 else [scale_heads(network, training.head_scale)]
        return ["random initial weights (--from-scratch)", *scaled]
    if options.fine_tune:
        return [load_same_network(network, options.fine_tune)]
    if options.warm_start:
        return [line for path in options.warm_start for line in load_matching(network, path)]
    if training.stage == 2:
        return load_stage_1(network, options.init_from)
    if training.backbone_init == "imagenet":
        return [load_imagenet(network, options.backbone_weights)]
    if training.backbone_init == "perspective":
        return [load_perspective(network, options.backbone_weights)]
    return ["random initial weights (the configuration's backbone_init is none)"]


def load_imagenet(network: BEVNeXt, path: str | Path | None = None) -> str:
    """Put ImageNet weights into the backbone -> one line that says what was taken.

    Args:
        path: the file, for machines without network; by default it is downloaded into torch's cache.

    Raises:
        CheckpointError: no file and no network, another file than IMAGENET1K_V1, or a backbone of another width.
    """
    if path is None:
        try:
            state = torch.hub.load_state_dict_from_url(IMAGENET_URL, check_hash=True, weights_only=True)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the ImageNet weights cannot be downloaded from {IMAGENET_URL} ({one_line(error)}); name the file "
                "with --backbone-weights, or start without with --from-scratch"
            ) from None
    else:
        state = safe_torch_load(path)
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if not digest.startswith(IMAGENET_HASH):
            raise CheckpointError(
                f"{path} is not torchvision's IMAGENET1K_V1 ResNet-50: its SHA-256 starts with {digest[:8]}, "
                f"not {IMAGENET_HASH} ({IMAGENET_URL})"
            )
    taken, unused = _load_backbone(network, state, str(path or IMAGENET_URL))
    return f"backbone from ImageNet ({path or IMAGENET_URL}): {taken} entries taken, unused: {_listing(unused)}"


def load_perspective(network: BEVNeXt, path: str | Path | None) -> str:
    """Put a perspective detector's backbone (entries ``backbone.*``) into the backbone -> one line.

    Takes a file of FCOS3D, or of nuImages' Cascade Mask R-CNN R50 that the model zoo links.

    Raises:
        CheckpointError: no file was named, or it lacks backbone entries or has others' shapes (listed).
    """
    if path is None:
        raise CheckpointError(
            "this configuration starts from a perspective detector's backbone: name its file with "
            "--backbone-weights, or start without with --from-scratch"
        )
    data = safe_torch_load(path)
    state = data.get("state_dict", data) if isinstance(data, Mapping) else None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds no state dict but {type(data).__name__}")
    prefix = "backbone."
    backbone = {name[len(prefix) :]: value for name, value in state.items() if str(name).startswith(prefix)}
    taken, unused = _load_backbone(network, backbone, str(path))
    return (
        f"backbone from {path}: {taken} entries taken, unused in the backbone: {_listing(unused)}; "
        f"{len(state) - len(backbone)} entries of other parts left"
    )


def _load_backbone(network: BEVNeXt, state: Mapping[str, Tensor], source: str) -> tuple[int, list[str]]:
    """Load all of the backbone or nothing; returns the number of entries and the names that were not used."""
    own = network.backbone.state_dict()
    # A counter of batches, which old files lack
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = [name for name in wanted if not isinstance(state.get(name), Tensor)]
    if missing:
        raise CheckpointError(f"{source} lacks {len(missing)} backbone entries: {_listing(missing)}")
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in wanted
        if state[name].shape != own[name].shape
    ]
    if misshapen:
        raise CheckpointError(f"{source} is a backbone of another size: {_listing(misshapen)}")
    network.backbone.load_state_dict(own | {name: state[name].to(own[name].dtype) for name in wanted})
    return len(wanted), [name for name in state if name not in own]


def load_stage_1(network: BEVNeXt, path: str | Path) -> list[str]:
    """As :func:`load_matching`, detection heads included, as published; only from a checkpoint of stage 1."""
    config, _ = read_checkpoint(path)
    if config.training.stage != 1:
        raise CheckpointError(
            f"{path} is a checkpoint of stage {config.training.stage} ('{config.name}'); stage 2 starts from stage 1"
        )
    return load_matching(network, path)


def load_matching(network: BEVNeXt, path: str | Path) -> list[str]:
    """Start from another configuration's weights, of either stage: entries of equal name and shape.

    Returns:
        Lines that say what was taken and what was not.

    Raises:
        CheckpointError: the file is of a network with which this one shares no backbone.
    """
    config, state = read_checkpoint(named_checkpoint(path))
    own = network.state_dict()
    taken = {name: state[name] for name, value in own.items() if name in state and state[name].shape == value.shape}
    left = [name for name in own if name not in taken]
    backbone = [name for name in left if name.startswith("backbone.")]
    if backbone:
        raise CheckpointError(f"{path} ('{config.name}') has another backbone: {_listing(backbone)}")
    network.load_state_dict(own | taken)
    parts = Counter(".".join(name.split(".")[:2]) for name in left)
    return [f"started from {path} ('{config.name}'): {len(taken)} of {len(own)} entries taken"] + [
        f"  not there or of another shape: {part} ({count})" for part, count in parts.items()
    ]


def load_same_network(network: BEVNeXt, path: str | Path) -> str:
    """Start from every weight of a checkpoint, to train it further or on other data.

    Returns:
        A line that says so.

    Raises:
        CheckpointError: the file holds another network.
    """
    network.load_state_dict(load_checkpoint(path, network.config).state_dict())
    return f"fine-tuning {path}: all its weights, a new schedule and optimiser"


def load_read_out(read_out: PerspectiveLoss, options: argparse.Namespace) -> str:
    """Go on with the read-out of the patches' classes that the last of the run's initial checkpoints carries, where
    there is one of the same shape; a new one says nothing of use for thousands of steps, at full weight.

    Returns:
        A line that says so.
    """
    files = [options.fine_tune, *(options.warm_start or ()), options.init_from]
    own = read_out.state_dict()
    for path in filter(None, reversed(files)):
        _, carried = read_checkpoint(named_checkpoint(path), training_only=True)
        carried = {name.removeprefix(TRAINING_ONLY): value for name, value in carried.items()}
        if {k: v.shape for k, v in carried.items()} == {k: v.shape for k, v in own.items()}:
            read_out.load_state_dict(carried)
            return f"the read-out of the patches' classes goes on from {path}"
    return "the read-out of the patches' classes begins anew: no initial checkpoint carries one of this shape"


@torch.no_grad()
def scale_heads(network: BEVNeXt, factor: float) -> str:
    """Multiply the random weights of the heads' last convolutions, so that their outputs start near their biases.

    As published these weights start so large that the first heat-map losses are 1e4 to 1e5 and the first hundred
    steps only undo it.

    Returns:
        A line that says so.
    """
    branches = list(network.proposal_head.tasks)
    branches += [branch for task in network.box_head.tasks for branch in task.values()]  # type: ignore[operator]
    for branch in branches:
        branch[-1].weight.mul_(factor)  # type: ignore[index]
    return f"the last convolutions of the {len(branches)} head branches start at {factor:g} of their random weights"


def _listing(names: list[str]) -> str:
    return ", ".join(names) or "none"
