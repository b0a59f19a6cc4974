# SPDX-License-Identifier: Apache-2.0
"""The real detector, made from the node's parameters. Imports torch."""

from __future__ import annotations

from typing import Any

from bevnext_core.config import load_config
from bevnext_core.errors import CheckpointError
from bevnext_ros.node.parameters import Options
from bevnext_tools.checkpoints import checkpoint_file
from bevnext_tools.threads import use_threads


def make_detector(options: Options, checkpoint: str = "", device: str = "") -> Any:
    """A :class:`bevnext_core.detector.Detector`.

    Args:
        checkpoint, device: take the place of those in ``options`` when given.

    Raises:
        CheckpointError: no checkpoint is named, it cannot be loaded, or it is not of the model named.
        ConfigError: the device or the model's file is not there.
    """
    from bevnext_core.detector import Detector, DetectorOptions
    from bevnext_core.streaming.history import HistoryOptions

    use_threads(options.threads or None)
    path = checkpoint or options.checkpoint
    if not path:
        raise CheckpointError("no checkpoint is given: set the parameter 'checkpoint' to a file or a name")
    settings = DetectorOptions(
        precision=options.precision,
        compile=options.compile,
        compile_mode=options.compile_mode,  # type: ignore[arg-type]
        history=HistoryOptions(max_gap=options.history_max_gap),
    )
    expected = load_config(options.model) if options.model else None
    file = checkpoint_file(path, download=False)  # a robot that starts does not wait for a network
    return Detector.from_checkpoint(file, device=device or options.device, options=settings, expected=expected)
