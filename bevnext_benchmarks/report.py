"""Results as text: the tables of one run, and the ratios of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bevnext_core.errors import BevnextError

FORMAT = "bevnext-benchmark-2"
SAME = ("processor", "gpu", "cores", "device", "threads", "torch", "network", "precision", "options")
"""What must be equal for a ratio to speak of the code alone."""


def read_results(path: str | Path) -> dict[str, Any]:
    """A file that ``bevnext benchmark --out`` wrote.

    Raises:
        BevnextError: it is missing, no JSON, or not of this format.
    """
    try:
        results = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise BevnextError(f"no such file: {path}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BevnextError(f"{path} is not JSON: {error}") from None
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise BevnextError(
            f"{path} is not a result of this version's benchmark ('{FORMAT}'): measure it again"
        )
    return results


def title(results: dict[str, Any]) -> str:
    """One line that says what was measured, on what, when."""
    where = results["environment"]
    device = where.get("gpu") or where["processor"]
    return (
        f"{results['network']}, {results['precision']}, {device}, {where['cores']} cores, "
        f"{results['threads']} threads, torch {where['torch']}, revision {where['revision'] or '-'}, "
        f"{where['date'][:10]}"
    )


def forms(results: dict[str, Any]) -> str:
    """Which form of each operator ran."""
    return ", ".join(f"{name}: {form}" for name, form in results["forms"].items())


def table(results: dict[str, Any]) -> str:
    """Milliseconds (median, spread) and share per stage, component and kind of operator, for each mode."""
    lines = [title(results), forms(results)]
    load = results["environment"]["load"]
    if load > 1.5:
        lines.append(f"note: other work was running (load average {load:g} before the start)")
    for mode, result in results["modes"].items():
        lines += ["", *_mode_lines(mode, result)]
    modes = results["modes"]
    lines.append("")
    for other in ("streaming", "single"):
        if {other, "window"} <= set(modes):
            lines.append(f"window / {other}: {modes['window']['median_s'] / modes[other]['median_s']:.2f}")
    for axis, points in results.get("scale", {}).items():
        lines += ["", *_scale_lines(axis, points)]
    return "\n".join(lines).rstrip()


def _mode_lines(mode: str, result: dict[str, Any]) -> list[str]:
    whole = result["watched_s"]
    lines = [f"{mode:24}{'median ms':>10}{'min':>10}{'max':>10}{'share':>8}{'peak MiB':>10}"]
    lines.append(_row("whole", result, 1.0))
    lines += [_row(f"  {name}", part, part["median_s"] / whole) for name, part in result["stages"].items()]
    lines += [
        _row(f"    {name}", part, part["median_s"] / whole) for name, part in result["components"].items()
    ]
    lines.append(f"  by operator, under the profiler ({result['profiled_s'] * 1e3:.1f} ms):")
    operators = sorted(result["operators"].items(), key=lambda item: -item[1])
    operators.append(("rest", max(0.0, result["profiled_s"] - sum(result["operators"].values()))))
    lines += [
        f"    {name:24}{seconds * 1e3:10.2f} ms {seconds / result['profiled_s']:8.1%}"
        for name, seconds in operators
    ]
    shares = [1 - share for share in result["convolution_shares"]]
    lines.append(
        f"  not in convolutions: {1 - result['convolution_share']:.1%} ({min(shares):.1%} to {max(shares):.1%}); "
        f"{result['boxes']} boxes"
    )
    return lines


def _row(name: str, part: dict[str, Any], share: float) -> str:
    times = "".join(f"{part[key] * 1e3:10.2f}" for key in ("median_s", "min_s", "max_s"))
    return f"{name:24}{times}{share:8.1%}{part['peak_bytes'] / 2**20:10.0f}"


def _scale_lines(axis: str, points: list[dict[str, Any]]) -> list[str]:
    what = "network alone, rigs at once" if axis == "batch" else "detector, images to boxes"
    lines = [
        f"{axis + ' (' + what + ')':44}{'median ms':>10}{'min':>10}{'max':>10}{'per s':>8}{'peak MiB':>10}"
    ]
    for point in points:
        times = "".join(f"{point[key] * 1e3:10.2f}" for key in ("median_s", "min_s", "max_s"))
        rate = point.get("rigs", 1) / point["median_s"]
        lines.append(
            f"  {point['value']:14}{point['mode']:28}{times}{rate:8.2f}{point['peak_bytes'] / 2**20:10.0f}"
        )
    return lines


# -------------------------------------------------------------------------------------------- two results
def compare(a: dict[str, Any], b: dict[str, Any]) -> str:
    """How many times faster B is than A, for everything that both measured; above 1 B is faster.

    ``~`` marks ratios where the ranges (minimum to maximum) overlap: the difference may be chance.
    """
    lines = [f"{name}: {title(one)}\n   {forms(one)}" for name, one in (("A", a), ("B", b))]
    lines += differences(a, b)
    for mode in a["modes"]:
        if mode not in b["modes"]:
            continue
        first, second = a["modes"][mode], b["modes"][mode]
        lines += ["", f"{mode:24}{'A ms':>10}{'B ms':>10}{'A / B':>9}   A / B memory"]
        lines.append(_ratio("whole", first, second))
        for group in ("stages", "components"):
            lines += [
                _ratio(f"  {name}", part, second[group][name])
                for name, part in first[group].items()
                if name in second[group]
            ]
        for name, result in (("A", first), ("B", second)):
            lines.append(f"  not in convolutions, {name}: {1 - result['convolution_share']:.1%}")
    for axis, points in a.get("scale", {}).items():
        others = {(point["value"], point["mode"]): point for point in b.get("scale", {}).get(axis, [])}
        both = [point for point in points if (point["value"], point["mode"]) in others]
        if both:
            lines += ["", f"{axis:24}{'A ms':>10}{'B ms':>10}{'A / B':>9}   A / B memory"]
        lines += [_ratio(f"  {p['value']} {p['mode']}", p, others[p["value"], p["mode"]]) for p in both]
    return "\n".join(lines)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """A line for each circumstance beside the code in which two results differ."""
    notes = []
    for name in SAME:
        first, second = (results.get(name, results["environment"].get(name, "-")) for results in (a, b))
        if first != second:
            notes.append(
                f"note: {name} differs: {first} in A, {second} in B; the ratios are not of the code alone"
            )
    return notes


def _ratio(name: str, a: dict[str, Any], b: dict[str, Any]) -> str:
    overlap = a["min_s"] <= b["max_s"] and b["min_s"] <= a["max_s"]
    ratio = a["median_s"] / b["median_s"]
    memory = a["peak_bytes"] / b["peak_bytes"] if b["peak_bytes"] else float("nan")
    times = f"{a['median_s'] * 1e3:10.2f}{b['median_s'] * 1e3:10.2f}"
    return f"{name:24}{times}{ratio:9.2f}{' ~' if overlap else '  '}{memory:14.2f}"
