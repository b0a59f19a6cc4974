#!/usr/bin/env python3
"""Draw the losses of one or several training runs, one after the other, from their log.txt.

    python training/plot_log.py runs/stage1/log.txt runs/stage2/log.txt --out curves.png
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_core.errors import BevnextError, one_line  # noqa: E402
from bevnext_core.files import Parser, atomic_path, user_path  # noqa: E402

LINE = re.compile(
    r"step (\d+)/\d+ loss [\d.]+ \(heat ([\d.]+) box ([\d.]+) depth ([\d.]+)(?: perspective ([\d.]+))?\)"
)
BATCH = re.compile(r"(\d+) samples a step|for (\d+) samples a step, (\d+) here")
PARTS = ("heat maps", "boxes", "depth", "class of patches")
SMOOTH = 9
"""Logged steps that are averaged: a line of the log has the losses of one step."""


@dataclass(frozen=True)
class Curves:
    """Losses ``[L, 4]`` in the order of :data:`PARTS` (NaN where there is none) after ``samples [L]``."""

    name: str
    samples: np.ndarray
    losses: np.ndarray


def read_log(path: Path) -> Curves:
    """Raises BevnextError: the file cannot be read, or holds no losses."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BevnextError(f"{path} cannot be read: {error}") from None
    lines = LINE.findall(text)
    batch = BATCH.search(text)
    if not lines or batch is None:
        raise BevnextError(f"{path} is no log of a training run with losses in it")
    size = int(batch[3] or batch[1])
    values = np.array([[float(value) if value else np.nan for value in line[1:]] for line in lines])
    return Curves(path.parent.name, size * np.array([int(line[0]) for line in lines]), values)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over :data:`SMOOTH` neighbours, fewer at the ends; ``[L]``."""
    kernel = np.ones(min(SMOOTH, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def draw(runs: list[Curves], path: Path) -> None:
    """Write a PNG. Raises BevnextError: matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BevnextError("matplotlib is not installed: pip install matplotlib") from None
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(PARTS))
    for part, panel in enumerate(panels):
        start = 0
        for run in runs:
            values = run.losses[:, part]
            if not np.isnan(values).all():
                x = (start + run.samples) / 1000
                (line,) = panel.plot(x, values, alpha=0.25, linewidth=0.8)
                panel.plot(x, smoothed(values), color=line.get_color(), label=run.name)
                # The first steps from random weights would flatten all that comes after.
                panel.set_ylim(0, max(panel.get_ylim()[1] if start else 0, 1.3 * np.nanpercentile(values, 95)))
            start += int(run.samples[-1])
        panel.set_title(f"loss: {PARTS[part]}", fontsize=9)
        panel.set_xlabel("thousand samples", fontsize=8)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description="Draw the losses of training runs.")
    parser.add_argument("logs", nargs="+", type=user_path, metavar="LOG")
    parser.add_argument("--out", type=user_path, required=True, metavar="PNG")
    options = parser.parse_args(arguments)
    try:
        draw([read_log(path) for path in options.logs], options.out)
        return 0
    except BevnextError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
