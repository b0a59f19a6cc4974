# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: whose it is, and its log."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from bevnext_core.config import ModelConfig, config_to_mapping
from bevnext_core.errors import ConfigError, one_line
from bevnext_core.files import atomic_path
from training.run.processes import Processes

NOT_PART_OF_THE_RUN = {"resume", "dry_run", "work_dir", "index_dir", "cache", "workers", "device", "max_steps",
                       "log_every", "checkpoint_every", "keep"}
"""Options that may change when a run is continued."""


def claim_work_dir(config: ModelConfig, options: argparse.Namespace, processes: Processes) -> Path:
    """Write the resolved configuration into the work dir, or check that it holds the same one.

    Raises:
        ConfigError: the folder cannot be made, or holds a run of another configuration.
    """
    folder = Path(options.work_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--work-dir {folder} cannot be created: {one_line(error)}") from None
    run = {key: value for key, value in vars(options).items() if key not in NOT_PART_OF_THE_RUN | {"set", "config"}}
    resolved = {"model": config_to_mapping(config), "run": run | {"processes": processes.count}}
    path = folder / "config.yaml"
    if path.exists() and any(folder.glob("*.pt")):  # a run that never got to a checkpoint binds nobody
        different = _differences(yaml.safe_load(path.read_text(encoding="utf-8")), resolved)
        if different:
            raise ConfigError(f"{folder} holds a run of another configuration ({', '.join(different[:6])}); "
                              "choose another --work-dir, or delete this one")
    elif processes.is_main:
        revision = ""
        with suppress(OSError):  # no git here
            revision = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True,
                                      cwd=Path(__file__).parent, text=True, check=False).stdout.strip()
        with atomic_path(path) as temporary:
            text = yaml.safe_dump(resolved, sort_keys=False)
            temporary.write_text(f"# git revision: {revision or 'unknown'}\n{text}", encoding="utf-8")
    processes.barrier()
    return folder


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in sorted(a.keys() | b.keys(), key=str)
                for d in _differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))]
    return [] if a == b else [f"{path}: {a!r} there, {b!r} here"]


def start_log(log: logging.Logger, work_dir: Path, processes: Processes) -> None:
    """Rank 0 logs to the terminal and to log.txt; the others keep quiet, except for errors."""
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if processes.is_main else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if processes.is_main:
        handlers.append(logging.FileHandler(work_dir / "log.txt", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)
