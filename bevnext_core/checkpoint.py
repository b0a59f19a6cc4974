# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: this project's own (safetensors with the configuration inside) and the published ``.pth`` files.

No checkpoint is ever unpickled freely: safetensors holds tensors only, and ``.pth`` files are read by
:mod:`bevnext_core.torch_files`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bevnext_core.config import (
    ModelConfig,
    config_from_mapping,
    config_to_mapping,
    load_config,
    network_differences,
    published_config,
)
from bevnext_core.errors import CheckpointError
from bevnext_core.files import atomic_path, user_path
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_core.network.published_names import published_names
from bevnext_core.torch_files import existing_file, is_pytorch_file, listed, safe_torch_load, what_it_is
from bevnext_core.trained_on import NUSCENES, TrainedOn
from bevnext_core.weights import PUBLISHED, folder, published_file

FORMAT = "bevnext-1"
TRAINING_ONLY = "training."
"""Start of the names of entries that are no part of the network: later training takes them up again."""
PUBLISHED_ON = TrainedOn("nuScenes v1.0-trainval, train", NUSCENES)


def save_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], config: ModelConfig, trained_on: TrainedOn | None = None
) -> None:
    """Write weights (this project's names), their configuration and, if known, their origin, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    metadata = {"format": FORMAT, "config": json.dumps(config_to_mapping(config))}
    if trained_on is not None:
        metadata["trained_on"] = json.dumps(trained_on.as_mapping())
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)


def load_checkpoint(path: str | Path, expected: ModelConfig | None = None) -> BEVNeXt:
    """Build the network of a checkpoint, in evaluation mode on the CPU.

    Args:
        path: the file, or the name of published weights (:func:`named_checkpoint`).
        expected: when given, the checkpoint must describe the same network.

    Raises:
        CheckpointError: when the file is missing, damaged, no checkpoint of this project, or of another network.
    """
    path = named_checkpoint(path)
    config, state = read_checkpoint(path)
    if expected is not None:
        different = network_differences(config, expected)
        if different:
            raise CheckpointError(
                f"{path} is a checkpoint of '{config.name}', whose {', '.join(different)} differ from those of "
                f"the configuration '{expected.name}'"
            )
    model = BEVNeXt(config)
    own = model.state_dict()
    _check_entries(path, {k: tuple(v.shape) for k, v in own.items()}, state, config.name)
    model.load_state_dict({name: state[name].to(own[name].dtype) for name in own})
    return model.eval()


def read_checkpoint(path: str | Path, training_only: bool = False) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights of a checkpoint of this project, or what it carries for training only."""
    path = existing_file(path)
    if is_pytorch_file(path):
        safe_torch_load(path)  # names a type that could run code; converting would be refused too
        raise CheckpointError(
            f"{path} is a PyTorch file, not a checkpoint of this project: convert a published one with "
            f"'bevnext import-checkpoint {path.name} --out {path.stem}.safetensors'"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if name.startswith(TRAINING_ONLY) == training_only]  # noqa: SIM118
            state = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError):
        what = what_it_is(path)
        if not what or "safetensors" in what:
            what = "is damaged, or no checkpoint: download it again"
        raise CheckpointError(f"{path} {what}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this project (format {metadata.get('format')!r})")
    try:
        data = json.loads(metadata["config"])
    except (KeyError, json.JSONDecodeError):
        raise CheckpointError(f"{path} carries no readable configuration") from None
    return config_from_mapping(data, str(path)), state


def trained_on(path: str | Path) -> TrainedOn | None:
    """What the network of a checkpoint was trained on; ``None``: the checkpoint does not tell.

    Raises:
        CheckpointError: there is no such file.
    """
    try:
        with safetensors.safe_open(existing_file(named_checkpoint(path)), framework="pt") as file:
            return TrainedOn.of(json.loads((file.metadata() or {})["trained_on"]))
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def import_published(
    path: str | Path, out: str | Path, config: ModelConfig | str | Path | None = None
) -> str:
    """Convert a published ``.pth`` file to a checkpoint of this project.

    Args:
        path: the published file: a state dict, plain or EMA, with or without a ``state_dict`` wrapper and a
            ``module.`` prefix.
        out: the checkpoint to write. Nothing is written when anything is wrong.
        config: what the file was trained with; by default the published stage that the entries belong to.

    Returns:
        One line that says what was imported.

    Raises:
        CheckpointError: the file is something else (says what), or missing, unknown and misshapen entries by their
            published names.
    """
    if _own_format(path := existing_file(path)) == FORMAT:
        raise CheckpointError(f"{path} is a checkpoint of this project already: there is nothing to convert")
    published = _state_dict(path, safe_torch_load(path))
    if config is None:
        has_fusion = any(name.startswith("img_bev_encoder_backbone.fusion_layer.") for name in published)
        config = published_config(2 if has_fusion else 1)
    elif not isinstance(config, ModelConfig):
        config = load_config(config)
    with torch.device("meta"):
        own = BEVNeXt(config).state_dict()
    names = published_names(own)
    _check_entries(path, {names[k]: tuple(v.shape) for k, v in own.items()}, published, config.name)
    state = {name: published[names[name]].to(own[name].dtype) for name in own}
    broken = [names[n] for n, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if broken:
        raise CheckpointError(f"{path}: {_listed('not finite', broken)}")
    save_checkpoint(out, state, config, PUBLISHED_ON)
    count = sum(value.numel() for name, value in state.items() if value.is_floating_point())
    return f"{config.name}: {len(state)} entries, {count / 1e6:.1f} M values -> {out}"


def named_checkpoint(path: str | Path, download: bool = True) -> Path:
    """The checkpoint of published weights that are called by name, fetched and converted once; a file as it is.

    Args:
        path: a name of :data:`bevnext_core.weights.PUBLISHED` where no such file exists, or a file.
        download: ``False``: never use the network.

    Raises:
        CheckpointError: see :func:`bevnext_core.weights.published_file` and :func:`import_published`.
    """
    path = user_path(path)
    weights = PUBLISHED.get(str(path))
    if weights is None or path.exists():
        return path
    converted = folder() / f"{path}.safetensors"
    if not converted.is_file():
        published = published_file(str(path), download)
        config = dataclasses.replace(published_config(weights.stage), name=weights.config)
        try:
            import_published(published, converted, config)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; if it was not fetched whole, delete it and try again") from None
    return converted


def _own_format(path: Path) -> str | None:
    """The format that a safetensors file names; None: it is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("format"))
    except (safetensors.SafetensorError, OSError, ValueError):
        return None


def _state_dict(path: str | Path, data: Any) -> dict[str, Tensor]:
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping) or not data:
        raise CheckpointError(f"{path} holds no state dict but {type(data).__name__}")
    odd = [str(k) for k, v in data.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if odd:
        raise CheckpointError(f"{path}: {_listed('no tensors', odd)}")
    prefix = "module." if all(name.startswith("module.") for name in data) else ""
    return {name.removeprefix(prefix): value for name, value in data.items()}


def _check_entries(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], config: str
) -> None:
    fitting = sum(name in state for name in shapes)
    if fitting < len(shapes) / 2:
        raise CheckpointError(
            f"{path} is no checkpoint of '{config}': of the network's {len(shapes)} entries it has {fitting}, and "
            f"{len(state) - fitting} others ({listed([n for n in state if n not in shapes], 3) or 'none'})"
        )
    missing = [name for name in shapes if name not in state]
    unknown = [name for name in state if name not in shapes]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    found = {"missing": missing, "unknown": unknown, "misshapen": misshapen}
    if faults := [_listed(what, names) for what, names in found.items() if names]:
        raise CheckpointError(f"{path} does not fit the configuration '{config}': " + "; ".join(faults))


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {listed(names, 20)}"
