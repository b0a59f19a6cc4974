# SPDX-License-Identifier: Apache-2.0
"""``bevnext config``: print a complete model configuration, or check a file."""

from __future__ import annotations

import argparse

from bevnext_core.config import ModelConfig, dump_config, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--config", metavar="FILE", help="YAML file (default: the published R50 stage 2)")
    parser.add_argument("--dump", action="store_true", help="print the complete, editable file")


def run(args: argparse.Namespace) -> int:
    """Print or check. Raises ConfigError."""
    config = load_config(args.config) if args.config else ModelConfig()
    if args.dump:
        print(dump_config(config), end="")
    else:
        print(f"{args.config or 'the default configuration'}: valid, '{config.name}'")
    return 0
