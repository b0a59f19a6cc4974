# SPDX-License-Identifier: Apache-2.0
"""The command line of train.py and the configuration that it comes to. Needs no torch: a slip is told at once."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from bevnext_core.config import (
    ModelConfig,
    config_from_mapping,
    config_to_mapping,
    load_config,
    published_config,
)
from bevnext_core.datasets.nuscenes_tables import check_split
from bevnext_core.errors import ConfigError, DatasetError, one_line
from bevnext_core.files import Parser, user_path
from bevnext_core.strict import Loader


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a run. What nobody changes in mid-work is configuration (``training`` in the YAML, ``--set``)."""
    parser = Parser(description="Train BEVNeXt on nuScenes.")
    add = parser.add_argument
    add("--stage", type=int, choices=(1, 2), required=True)
    add("--config", help="model configuration (YAML); default: the published one of the stage")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override, e.g. training.epochs=3")
    add("--dataroot", nargs="+", help="nuScenes folder; several are one data set, whose cameras may differ")
    add("--version", default="v1.0-trainval")
    add("--split", default="train", help="official split to train on (mini_train for v1.0-mini)")
    add("--scenes", nargs="+", help="train on these scenes instead of a split")
    add("--index-dir", help="where the index file of the data set is kept (default: ~/.cache/bevnext_ros)")
    add("--cache", help="folder where canvases and lidar depth, with training.part=bev encodings, are kept; for images "
        "without augmentation; may be shared by runs")
    add("--work-dir", help="checkpoints, log, curves, resolved configuration")
    add("--resume", nargs="?", const="newest", help="continue the work dir's newest checkpoint, or this file")
    add("--init-from", help="stage 2: the stage-1 checkpoint to start from")
    add("--backbone-weights", help="stage 1: file with the backbone's initial weights")
    add("--fine-tune", help="start from all weights of this checkpoint of the same network; a new schedule begins")
    add("--warm-start", nargs="+", metavar="FILE", help="start from those entries of checkpoints of either stage whose "
        "name and shape fit, the last file's where several do")
    add("--from-scratch", action="store_true", help="start from random weights")
    add("--batch", type=int, default=8, help="samples per process and step (published: 8)")
    add("--seed", type=int, default=0)
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision; published: off")
    add("--gradient-checkpointing", choices=("off", "on", "published"), default="off",
        help="'published' also updates batch-norm statistics in the second forward")
    add("--checkpoint-every", type=int, default=500, help="steps between checkpoints (also at each epoch's end)")
    add("--keep", type=int, default=3, help="checkpoints that are kept")
    add("--workers", type=int, default=4, help="data-loader processes per process")
    add("--device", default="auto", choices=("auto", "cuda", "cpu"))
    add("--log-every", type=int, default=50, help="steps between lines of the log and rows of curves.csv")
    add("--max-steps", type=int, help="stop (with a checkpoint and the weights) after this many steps of the whole run")
    add("--dry-run", action="store_true", help="print the schedule and stop")
    options = parser.parse_args(arguments)
    if options.dataroot and len(options.dataroot) == 1:
        (options.dataroot,) = options.dataroot
    for name in ("dataroot", "work_dir"):
        if getattr(options, name) is None and not options.dry_run:
            parser.error(f"--{name.replace('_', '-')} is needed")
    return options


def resolve_config(options: argparse.Namespace) -> ModelConfig:
    """The model configuration with the command line's overrides.

    Raises:
        ConfigError: an override, a way to start or a size of the step that cannot be.
    """
    config = load_config(options.config) if options.config else published_config(options.stage)
    mapping = config_to_mapping(config)
    for override in options.set:
        _override(mapping, override)
    config = config_from_mapping(mapping, "--set" if options.set else str(options.config))
    training = config.training
    if training.stage != options.stage:
        raise ConfigError(f"--stage {options.stage}, but '{config.name}' is a configuration of stage {training.stage}")
    ways = (options.from_scratch, options.fine_tune, options.warm_start, options.init_from)
    if sum(map(bool, ways)) > 1:
        raise ConfigError("--from-scratch, --fine-tune, --warm-start and --init-from are ways to start: choose one")
    if options.init_from and options.stage == 1:
        raise ConfigError("--init-from is how stage 2 starts; stage 1 takes --backbone-weights")
    if options.stage == 2 and not any(ways) and not options.dry_run and options.resume in (None, "newest"):
        raise ConfigError("stage 2 starts from stage 1: name its checkpoint with --init-from, or use --from-scratch")
    if training.head_scale != 1 and not options.from_scratch:
        raise ConfigError("training.head_scale is about random weights: it goes with --from-scratch")
    if training.shared_run and not config.history.frames:
        raise ConfigError(f"training.shared_run {training.shared_run}: '{config.name}' has no history to share")
    if training.part != "all" and training.shared_run:
        raise ConfigError(f"training.part={training.part} has no encodings to share: --set training.shared_run=0")
    if training.part == "images" and config.history.frames:
        raise ConfigError("training.part=images looks at the present frame alone: --set history.frames=0")
    if training.part == "bev" and not options.cache and not options.dry_run:
        raise ConfigError("training.part=bev learns from encodings that are kept: name their folder with --cache")
    if (options.cache or training.part == "bev") and training.augmentation and training.image_augmentation:
        raise ConfigError("--cache keeps images without augmentation: --set training.image_augmentation=false")
    length = max(training.shared_run, 1)
    if options.batch < 1 or options.batch % length:
        raise ConfigError(f"a step takes whole runs: --batch {options.batch} is no multiple of training.shared_run "
                          f"{length}; take --batch {max(1, -(-options.batch // length)) * length}")
    return config


def check_data(options: argparse.Namespace) -> None:
    """What can be said of the data before they are opened; a dry run opens none.

    Raises:
        DatasetError: the version has no such split, or there is no such folder.
    """
    if options.dry_run:
        return
    if not options.scenes:
        check_split(options.split, options.version)
    for root in [options.dataroot] if isinstance(options.dataroot, str) else options.dataroot:
        if not user_path(root).is_dir():
            raise DatasetError(f"no such dataroot: {root}")


def _override(mapping: dict[str, Any], override: str) -> None:
    """Put ``training.epochs=3`` into the nested ``mapping``."""
    key, separator, text = override.partition("=")
    part: Any = mapping
    path = key.split(".")
    for name in path[:-1]:
        part = part.get(name) if isinstance(part, dict) else None
    if not separator or not isinstance(part, dict) or path[-1] not in part:
        raise ConfigError(f"--set {override}: expected KEY=VALUE with a key that 'bevnext config --dump' shows")
    try:
        part[path[-1]] = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is no valid YAML: {one_line(error)}") from None
