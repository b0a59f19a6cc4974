# SPDX-License-Identifier: Apache-2.0
"""``bevnext import-checkpoint``: published weights -> this project's checkpoint."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", metavar="FILE", help="published .pth file, plain or EMA")
    parser.add_argument("--out", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--config", metavar="FILE", help="model configuration (default: found from the weights)")


def run(args: argparse.Namespace) -> int:
    """Import. Raises CheckpointError, ConfigError."""
    from bevnext_core.checkpoint import import_published
    from bevnext_core.config import load_config

    config = load_config(args.config) if args.config else None
    print(import_published(args.file, args.out, config=config))
    return 0
