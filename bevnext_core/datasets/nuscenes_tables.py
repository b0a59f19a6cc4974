"""The tables and splits of nuScenes, through the official nuscenes-devkit (imported when it is needed)."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bevnext_core.errors import DatasetError, one_line
from bevnext_core.files import user_path


def load_tables(dataroot: str | Path, version: str) -> Any:
    """Load the tables of a data set with the devkit, without its prints -> ``nuscenes.NuScenes``.

    Raises:
        DatasetError: no such folder, no tables, unknown version (lists what there is), damaged tables, or the
            devkit is not installed (says how to).
    """
    root = user_path(dataroot)
    if not root.is_dir():
        raise DatasetError(f"no such dataroot: {root}")
    versions = sorted(path.parent.name for path in root.glob("*/scene.json"))
    if not versions:
        raise DatasetError(
            f"{root} holds no nuScenes tables (expected a folder such as v1.0-mini with scene.json in it)"
        )
    if version not in versions:
        raise DatasetError(f"unknown version '{version}': {root} holds {', '.join(versions)}")
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise DatasetError(
            "reading nuScenes needs the package nuscenes-devkit: pip install bevnext_ros[nuscenes] "
            f"({one_line(error)})"
        ) from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return NuScenes(version=version, dataroot=str(root), verbose=False)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{root / version}: a table is no valid JSON: {one_line(error)}") from None
    except (OSError, AssertionError, ValueError) as error:
        raise DatasetError(f"{root / version}: the tables cannot be loaded: {one_line(error)}") from None
    except (KeyError, IndexError, TypeError) as error:
        raise DatasetError(
            f"{root / version}: the tables do not fit together: {type(error).__name__} {one_line(error)}"
        ) from None


def split_scenes(split: str) -> tuple[str, ...]:
    """Names of the scenes of an official split.

    Raises:
        DatasetError: unknown split; lists those there are.
    """
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError:
        raise DatasetError(
            "the splits of nuScenes come with the package nuscenes-devkit: pip install bevnext_ros[nuscenes]"
        ) from None
    splits = create_splits_scenes()
    if split not in splits:
        raise DatasetError(f"unknown split '{split}': there are {', '.join(sorted(splits))}")
    return tuple(splits[split])


def listing(names: Sequence[str], limit: int = 20) -> str:
    """Names for an error message; long lists are cut."""
    shown = ", ".join(names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")
