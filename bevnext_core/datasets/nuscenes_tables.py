# SPDX-License-Identifier: Apache-2.0
"""The tables and splits of nuScenes, through the official nuscenes-devkit (imported when it is needed).

What the devkit needs of every row is checked when the tables are loaded, so that a data set of the same format from
elsewhere loads, or the table, the field and the row that are wrong are named. All else is checked by :func:`value` and
:func:`numbers` where it is used: what nobody needs may be missing.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core.errors import DatasetError, one_line
from bevnext_core.files import user_path

ADD_DEVKIT = "pip install 'bevnext_ros[nuscenes]' && pip install --no-deps nuscenes-devkit==1.2.0"
"""Adds the devkit; its own metadata ask for an older numpy than its code needs."""

Row = dict[str, Any]
_UNUSED: dict[str, list[Row]] = {
    "visibility": [],
    "log": [],
    "map": [{"token": "", "log_tokens": [], "filename": ""}],  # the devkit wants one
}
"""Tables that nothing here reads, and what the devkit gets in their place: they and the maps need not be there."""
_TRUTH = ("category", "attribute", "instance", "sample_annotation")
"""Without these there is no truth; detection goes on."""
_TEXTS = {"scene": ("name",), "sensor": ("channel", "modality"), "category": ("name",), "attribute": ("name",)}
_LINKS = {
    "instance": {"category_token": "category"},
    "calibrated_sensor": {"sensor_token": "sensor"},
    "sample_data": {"sample_token": "sample", "calibrated_sensor_token": "calibrated_sensor"},
    "sample_annotation": {"sample_token": "sample", "instance_token": "instance"},
}
"""Fields that hold the token of a row of another table."""
_UNITS = {"seconds": 1e9, "milliseconds": 1e12, "nanoseconds": 1e18}
"""Present times since 1970; the tables hold microseconds, 1e15."""

SPLITS = {
    "mini": ("mini_train", "mini_val"),
    "test": ("test",),
    "trainval": ("train", "val", "train_detect", "train_track"),
}
"""Splits by the version whose tables hold them."""
BOX_FIELDS = ("translation", "size", "rotation", "prev", "next", "num_lidar_pts", "num_radar_pts")
"""What training takes of an annotation."""
SCORED_FIELDS = (*BOX_FIELDS, "attribute_tokens")
"""What the official metric takes of an annotation."""


def load_tables(dataroot: str | Path, version: str) -> Any:
    """Load the tables of a data set with the devkit, without its prints -> ``nuscenes.NuScenes``.

    Annotations that cannot be used do not hinder it: its ``truth_fault`` then says why there are none.

    Raises:
        DatasetError: no such folder, no tables, unknown version (lists what there is), damaged tables (names table,
            field and row), stamps in another unit, or the devkit is not installed (says how to).
    """
    root = user_path(dataroot)
    if not root.is_dir():
        raise DatasetError(f"no such dataroot: {root}")
    versions = sorted(path.parent.name for path in root.glob("*/scene.json"))
    if not versions:
        raise DatasetError(f"{root} holds no nuScenes tables (expected a folder such as v1.0-mini with a scene.json)")
    if version not in versions:
        raise DatasetError(f"unknown version '{version}': {root} holds {', '.join(versions)}")
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise DatasetError(
            f"reading nuScenes needs the package nuscenes-devkit: {ADD_DEVKIT} ({one_line(error)})"
        ) from None

    class Tables(NuScenes):
        truth_fault = ""

        def __load_table__(self, name: str) -> list[Row]:
            if name in _UNUSED:
                return [dict(row) for row in _UNUSED[name]]
            if name in _TRUTH and self.truth_fault:
                return []
            try:
                return _read_table(self, root / version / f"{name}.json")
            except DatasetError as error:
                if name not in _TRUTH:
                    raise
                self.truth_fault = str(error)
                return []

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            tables = Tables(version=version, dataroot=str(root), verbose=False)
    except (OSError, AssertionError, ValueError) as error:
        raise DatasetError(f"{root / version}: the tables cannot be loaded: {one_line(error)}") from None
    except (KeyError, IndexError, TypeError) as error:
        raise DatasetError(
            f"{root / version}: the tables do not fit together: {type(error).__name__} {one_line(error)}"
        ) from None
    _check_units(tables)
    return tables


def _read_table(tables: Any, path: Path) -> list[Row]:
    """Rows in which all is there that the devkit needs to join the tables."""
    table = path.stem
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"the table '{table}' is missing: no file {path}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"the table '{table}' ({path}) is no valid JSON: {one_line(error)}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"the table '{table}' ({path}) must be a list of mappings")
    links = _LINKS.get(table, {})
    tokens = {name: {row["token"] for row in getattr(tables, name)} for name in links.values()}
    for number, row in enumerate(rows):
        for field in ("token", *_TEXTS.get(table, ())):
            if not isinstance(row.get(field), str):
                raise fault(table, row, field, "must be a string", number)
        for field, other in links.items():
            if row.get(field) not in tokens[other]:
                raise fault(table, row, field, f"must be the token of a row of '{other}'", number)
        if table == "sample_data" and not isinstance(row.get("is_key_frame"), bool):
            raise fault(table, row, "is_key_frame", "must be true or false", number)
        if table == "sample_annotation" and row.get("num_radar_pts") is None:
            row["num_radar_pts"] = 0  # a rig without radar
    return rows


def fault(table: str, row: Row, field: str, what: str, number: int | None = None) -> DatasetError:
    """The error that names a table, a field and a row (by its token, or its number), and what it should be."""
    where = f"number {number}" if not isinstance(row.get("token"), str) else f"'{row['token']}'"
    is_not = "is missing" if field not in row else "is null" if row[field] is None else f"is {row[field]!r}"[:80]
    return DatasetError(f"table '{table}', row {where}: the field '{field}' {is_not}; it {what}")


def value(table: str, row: Row, field: str) -> Any:
    """A field that is needed. Raises DatasetError when it is missing or null."""
    found = row.get(field)
    if found is None:
        raise fault(table, row, field, "is needed here")
    return found


def row_of(tables: Any, table: str, token: str) -> Row:
    """A row by its token. Raises DatasetError when there is none."""
    try:
        return tables.get(table, token)
    except (KeyError, TypeError):
        raise DatasetError(
            f"{tables.dataroot} ({tables.version}): the table '{table}' has no row with token '{token}'"
        ) from None


def numbers(table: str, row: Row, field: str, *shape: int, finite: bool = True) -> np.ndarray:
    """A field as float64 of a shape. Raises DatasetError when it is missing, no numbers, or of another shape."""
    try:
        array = np.array(value(table, row, field), np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != shape or (finite and not np.isfinite(array).all()):
        what = f"{'x'.join(map(str, shape))} finite numbers" if shape else "a finite number"
        raise fault(table, row, field, f"must be {what}")
    return array


def stamp_ns(table: str, row: Row) -> int:
    """A row's ``timestamp`` in nanoseconds. Raises DatasetError when it is no time in microseconds."""
    stamp = value(table, row, "timestamp")
    if isinstance(stamp, bool) or not isinstance(stamp, (int, float)) or not abs(stamp) < 2**63 / 1000:
        raise fault(table, row, "timestamp", "must be a time in microseconds")
    return int(stamp) * 1000


def _check_units(tables: Any) -> None:
    """See that stamps are microseconds since 1970, or at least no other unit of it."""
    stamps = {}
    for table in ("sample", "sample_data"):
        given = [row.get("timestamp") for row in getattr(tables, table)[:1000]]
        stamps[table] = np.array([s for s in given if isinstance(s, (int, float))], np.float64)
    if not len(stamps["sample"]):
        return
    # the start of a simulation's microseconds may pass for seconds since 1970, but for the steps between key frames
    steps = np.diff(np.unique(stamps["sample"]))
    for table, found in stamps.items():
        for unit, size in _UNITS.items():
            typical = float(np.median(found)) if len(found) else 0.0
            simulated = unit == "seconds" and len(steps) and steps.min() >= 1000
            if size / 3 <= typical <= size * 5 and not (simulated and table == "sample"):
                if simulated and typical / np.median(stamps["sample"]) > 1e-5:
                    continue
                raise DatasetError(
                    f"table '{table}': the field 'timestamp' is in {unit} ({found[0]:.0f} in row "
                    f"'{getattr(tables, table)[0]['token']}'); nuScenes has microseconds since 1970"
                )


def check_truth(tables: Any, sample_tokens: Iterable[str], fields: Sequence[str], purpose: str) -> None:
    """See that the annotations of some samples are complete.

    Args:
        fields: :data:`BOX_FIELDS` or :data:`SCORED_FIELDS`. purpose: what needs them, for the error.

    Raises:
        DatasetError: names table, field and row, and what can be done without.
    """
    without = f"; {purpose} needs it, bevnext detect does without the truth"
    if getattr(tables, "truth_fault", ""):
        raise DatasetError(tables.truth_fault + without)
    shapes = {"translation": (3,), "size": (3,), "rotation": (4,), "num_lidar_pts": (), "num_radar_pts": ()}
    attributes = {row["token"] for row in tables.attribute}
    try:
        for token in sample_tokens:
            sample = tables.get("sample", token)
            stamp_ns("sample", sample)
            for row in (tables.get("sample_annotation", annotation) for annotation in sample["anns"]):
                for field in fields:
                    if field in shapes:
                        numbers("sample_annotation", row, field, *shapes[field])
                    else:
                        value("sample_annotation", row, field)
                for field in {"prev", "next"} & set(fields):
                    if row[field] and row[field] not in tables._token2ind["sample_annotation"]:
                        raise fault("sample_annotation", row, field, "must be the token of a row, or ''")
                if "attribute_tokens" in fields and not set(row["attribute_tokens"]) <= attributes:
                    raise fault("sample_annotation", row, "attribute_tokens", "must be tokens of 'attribute'")
    except DatasetError as error:
        raise DatasetError(str(error) + without) from None


def check_split(split: str, version: str) -> None:
    """Whether an official version has a split; others may have any. Needs no devkit.

    Raises:
        DatasetError: it has not; lists those it has.
    """
    fitting = SPLITS.get(version.rpartition("-")[2], (split,))
    if split not in fitting:
        raise DatasetError(f"unknown split '{split}' of {version}: it has {', '.join(fitting)}")


def split_scenes(split: str, version: str = "") -> tuple[str, ...]:
    """Names of the scenes of an official split, of a version if one is given.

    Raises:
        DatasetError: unknown split; lists those there are.
    """
    check_split(split, version)
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError:
        raise DatasetError(
            f"the splits of nuScenes come with the package nuscenes-devkit: {ADD_DEVKIT}"
        ) from None
    splits = create_splits_scenes()
    if split not in splits:
        raise DatasetError(f"unknown split '{split}': there are {', '.join(sorted(splits))}")
    return tuple(splits[split])


def listing(names: Sequence[str], limit: int = 20) -> str:
    """Names for an error message; long lists are cut."""
    shown = ", ".join(names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")
