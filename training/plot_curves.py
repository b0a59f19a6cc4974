#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw the losses of one or several training runs, one after the other, from their curves.csv.

    python training/plot_curves.py runs/stage1 runs/stage2 --out curves.png
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_core.errors import BevnextError, one_line  # noqa: E402
from bevnext_core.files import Parser, atomic_path  # noqa: E402

PARTS = {"heat": "heat maps", "box": "boxes", "depth": "depth", "perspective": "class of patches"}
SMOOTH = 9
"""Rows that are averaged: each has the losses of one step."""


def read_curves(folder: Path) -> dict[str, np.ndarray]:
    """The columns of a work dir's curves.csv; of a step that stands there twice, the last row.

    Raises:
        BevnextError: there are none, or they cannot be read.
    """
    path = folder / "curves.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = {row["step"]: row for row in csv.DictReader(file)}
        curves = {name: np.array([float(row[name]) for row in rows.values()]) for name in ("samples", *PARTS)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BevnextError(f"{path} cannot be read as the curves of a training run: {one_line(error)}") from None
    if not rows:
        raise BevnextError(f"{path} has no rows")
    return curves


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over :data:`SMOOTH` neighbours, fewer at the ends; ``[L]``."""
    kernel = np.ones(min(SMOOTH, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def draw(folders: list[Path], path: Path) -> None:
    """Write a PNG. Raises BevnextError: a run has no curves, or matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BevnextError("matplotlib is not installed: pip install matplotlib") from None
    runs = [read_curves(folder) for folder in folders]
    starts = np.cumsum([0, *(run["samples"][-1] for run in runs)])
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for (part, title), panel in zip(PARTS.items(), figure.subplots(1, len(PARTS))):
        top = 0.0
        for folder, run, start in zip(folders, runs, starts):
            if not np.isnan(run[part]).all():
                x = (start + run["samples"]) / 1000
                (line,) = panel.plot(x, run[part], alpha=0.25, linewidth=0.8)
                panel.plot(x, smoothed(run[part]), color=line.get_color(), label=folder.name)
                # The first steps from random weights would flatten all that comes after.
                top = max(top, 1.3 * np.nanpercentile(run[part], 95))
                panel.set_ylim(0, top)
        panel.set_title(f"loss: {title}", fontsize=9)
        panel.set_xlabel("thousand samples", fontsize=8)
        panel.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description="Draw the losses of training runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="WORK_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    options = parser.parse_args(arguments)
    try:
        draw(options.runs, options.out)
        return 0
    except BevnextError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
