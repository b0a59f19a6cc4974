# SPDX-License-Identifier: Apache-2.0
"""What ``--checkpoint`` means, and its configuration: said without torch, whose import takes seconds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors

from bevnext_core import weights
from bevnext_core.config import ModelConfig, config_from_mapping, published_config
from bevnext_core.errors import CheckpointError
from bevnext_core.files import user_path
from bevnext_tools.resources import shared_file

if TYPE_CHECKING:
    from bevnext_core.detector import Detector

Reader = TypeVar("Reader")
DEMO, DEMO_FILE = "demo", "weights/demo_stage2.safetensors"
"""The name of the demo's weights, which the package carries."""


def checkpoint_file(name: str | Path, download: bool = True) -> str:
    """The file of a checkpoint, or the name of published weights whose files are here (or were fetched now).

    Args:
        name: a file, ``demo``, or one of :data:`bevnext_core.weights.PUBLISHED`. A file of that name goes first.
        download: ``False``: never use the network.

    Raises:
        CheckpointError: there is no such file or name, or the published weights are not here and cannot be fetched.
    """
    path = user_path(name)
    if path.is_file():
        return str(path)
    if str(name) == DEMO:
        return str(shared_file(DEMO_FILE))
    if str(name) in weights.PUBLISHED:
        if not (weights.folder() / f"{name}.safetensors").is_file():
            try:
                weights.published_file(str(name), download)
            except CheckpointError as error:
                own = f"the demo's own weights, --checkpoint {DEMO}, are here: they know the synthetic world only"
                raise CheckpointError(f"{error}; {own}") from None
        return str(name)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, no checkpoint")
    raise CheckpointError(f"no such checkpoint: {path}; by name there are {DEMO}, {', '.join(weights.PUBLISHED)}")


def checkpoint_config(checkpoint: str) -> ModelConfig | None:
    """The configuration of what :func:`checkpoint_file` gave; ``None``: loading the network will say what is wrong."""
    published = weights.PUBLISHED.get(checkpoint)
    if published and not Path(checkpoint).is_file():
        return dataclasses.replace(published_config(published.stage), name=published.config)
    try:
        with safetensors.safe_open(checkpoint, framework="np") as file:
            return config_from_mapping(json.loads(file.metadata()["config"]), checkpoint)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def reader_and_detector(
    checkpoint: str, make: Callable[[ModelConfig], Reader], device: str, **options: Any
) -> tuple[Reader, Detector]:
    """What ``make`` gives for the network's configuration, and the detector: what is wrong with data is found first.

    Args:
        checkpoint: of :func:`checkpoint_file`. options: of :class:`bevnext_core.detector.DetectorOptions`.
    """
    config = checkpoint_config(checkpoint)
    reader = None if config is None else make(config)
    from bevnext_core.detector import Detector, DetectorOptions

    detector = Detector.from_checkpoint(checkpoint, device, DetectorOptions(**options))
    return (make(detector.config) if reader is None else reader), detector
