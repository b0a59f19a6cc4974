"""The picture of a benchmark's result: where the time goes, and how it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bevnext_benchmarks.report import title
from bevnext_core.errors import BevnextError
from bevnext_core.files import atomic_path


def plot(results: dict[str, Any], path: str | Path) -> None:
    """Write a PNG: one bar a mode, stacked by stage, and one panel for each size that was changed.

    Raises:
        BevnextError: matplotlib is not installed, or the name does not end in .png.
    """
    if Path(path).suffix.lower() != ".png":
        raise BevnextError(f"--plot {path}: the file's name must end in .png")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BevnextError(
            "--plot needs matplotlib, which is not installed: pip install matplotlib"
        ) from None
    scale = results.get("scale", {})
    figure = Figure(figsize=(5.0 * (1 + len(scale)), 4.2), layout="constrained")
    panels = figure.subplots(1, 1 + len(scale), squeeze=False)[0]
    _stages(panels[0], results["modes"])
    for panel, (axis, points) in zip(panels[1:], scale.items(), strict=True):
        _curve(panel, axis, points)
    figure.suptitle(title(results), fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _stages(panel: Any, modes: dict[str, Any]) -> None:
    names: list[str] = []
    for result in modes.values():
        names += [name for name in result["stages"] if name not in names]
    bottom = [0.0] * len(modes)
    for name in names:
        parts = [result["stages"].get(name) for result in modes.values()]
        heights = [max(0.0, part["median_s"] * 1e3) if part else 0.0 for part in parts]
        panel.bar(list(modes), heights, bottom=bottom, label=name, width=0.6)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    panel.set_ylabel("ms")
    panel.set_title("one step, by stage")
    panel.legend(fontsize=7)


def _curve(panel: Any, axis: str, points: list[dict[str, Any]]) -> None:
    values = list(dict.fromkeys(point["value"] for point in points))
    for mode in dict.fromkeys(point["mode"] for point in points):
        mine = [point for point in points if point["mode"] == mode]
        middle = [point["median_s"] * 1e3 for point in mine]
        low = [m - point["min_s"] * 1e3 for m, point in zip(middle, mine, strict=True)]
        high = [point["max_s"] * 1e3 - m for m, point in zip(middle, mine, strict=True)]
        if axis == "batch":
            rigs = [point["rigs"] for point in mine]
            middle, low, high = (
                [1e3 * n / m for n, m in zip(rigs, middle, strict=True)],
                [1e3 * n / m - 1e3 * n / (m + h) for n, m, h in zip(rigs, middle, high, strict=True)],
                [1e3 * n / (m - d) - 1e3 * n / m for n, m, d in zip(rigs, middle, low, strict=True)],
            )
        positions = [values.index(point["value"]) for point in mine]
        panel.errorbar(positions, middle, (low, high), marker="o", capsize=3, label=mode)
    panel.set_xticks(range(len(values)), values)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("rigs per second (network alone)" if axis == "batch" else "ms")
    panel.set_title(
        {"batch": "rigs at once", "history": "history frames", "image": "image", "bev": "BEV cells a side"}[
            axis
        ]
    )
    panel.legend(fontsize=7)
    panel.grid(alpha=0.3)
