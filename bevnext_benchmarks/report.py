# SPDX-License-Identifier: Apache-2.0
"""Results of ``bevnext benchmark`` as text: the tables of one run, and the ratios of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_benchmarks.measure import COMPONENTS, STAGES
from bevnext_core.errors import BevnextError

FORMAT = "bevnext-benchmark-4"
SAME = ("machine", "device", "threads", "network", "precision")
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
        raise BevnextError(f"{path} is not a result of this version's benchmark ('{FORMAT}'): measure it again")
    return results


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, in milliseconds."""
    low, middle, high = 1e3 * np.quantile(seconds, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def spread(seconds: list[float]) -> str:
    """Median and quartiles in milliseconds, a cell of a table."""
    low, middle, high = quartiles(seconds)
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def title(results: dict[str, Any]) -> str:
    """What was measured, on what, when; and which form of each operator ran."""
    where = results["environment"]
    forms = ", ".join(f"{name}: {form}" for name, form in results["forms"].items())
    return (
        f"{results['network']}, {results['precision_asked']}, {where['machine']}, {results['threads']} threads, "
        f"load {where['load']:g}, revision {where['revision'] or '-'}, {where['date'][:10]}\n{forms}"
    )


def parts(result: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of the whole step (not profiled); profiled: of its stages, their rest, the components, convolutions."""
    found = dict(result["components_s"])
    profiled = found.pop("whole")
    stages = {name: found[name] for name in STAGES if name in found}
    rest = [whole - sum(values) for whole, *values in zip(profiled, *stages.values(), strict=True)]
    components = {f"  {name}": found[name] for name in COMPONENTS if name in found}
    found = {"profiled": profiled, **stages, "rest": rest, **components, "convolutions": found["convolutions"]}
    return {"whole": result["times_s"], **found}


def table(results: dict[str, Any]) -> str:
    """Median and quartiles of a step of each mode, where its time goes, and its peak memory."""
    lines = [title(results)]
    for mode, result in results["modes"].items():
        memory = f"peak {result['peak_bytes'] / 2**20:.0f} MiB, {result['boxes']} boxes"
        lines += ["", f"{mode:28}{'median ms':>10}{'quartiles':>24}{'share':>8}   {memory}"]
        found = parts(result)
        for name, seconds in found.items():
            low, middle, high = quartiles(seconds)
            share = middle / quartiles(found["whole" if name == "whole" else "profiled"])[1]
            lines.append(f"  {name:26}{middle:10.2f}{f'{low:.2f} to {high:.2f}':>24}{share:8.1%}")
    return "\n".join(lines)


def compare(a: dict[str, Any], b: dict[str, Any]) -> str:
    """How many times faster B is than A, part by part; ``~``: the quartiles overlap, it may be chance."""
    lines = [f"{name}: {title(one)}" for name, one in (("A", a), ("B", b))]
    for name in SAME:
        first, second = (results.get(name, results["environment"].get(name, "-")) for results in (a, b))
        if first != second:
            lines.append(f"note: {name} differs: {first} in A, {second} in B; the ratios are not of the code alone")
    for mode in (mode for mode in a["modes"] if mode in b["modes"]):
        one, two = a["modes"][mode], b["modes"][mode]
        memory = f"memory {one['peak_bytes'] / two['peak_bytes']:.2f}"
        lines += ["", f"{mode:28}{'A ms':>10}{'B ms':>10}{'A / B':>9}   {memory}"]
        others = parts(two)
        for name, seconds in parts(one).items():
            if name in others:
                (low, middle, high), (low_b, middle_b, high_b) = quartiles(seconds), quartiles(others[name])
                chance = " ~" if low <= high_b and low_b <= high else ""
                lines.append(f"  {name:26}{middle:10.2f}{middle_b:10.2f}{middle / middle_b:9.2f}{chance}")
    return "\n".join(lines)
