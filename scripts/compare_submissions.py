#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether two nuScenes submissions hold the same boxes, in any order.

    python -m scripts.compare_submissions A.json B.json [--tolerance 1e-5]

Each box needs a partner of its own with its sample, class and attribute; metres, m/s, score and quaternion may
differ by the tolerance. Ends with exit code 0 if all have one.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from bevnext_core.errors import BevnextError
from bevnext_core.files import Parser, user_path
from bevnext_tools.evaluation.submission import read_submission

Groups = Mapping[Any, np.ndarray]
"""Boxes that may be partners, by what they must have in common: ``[M, K]`` numbers each."""


def groups(submission: dict[str, Any]) -> Groups:
    """Boxes ``[M, 13]`` by sample, class and attribute."""
    found = defaultdict(list)
    for token, records in submission["results"].items():
        for record in records:
            rotation = np.array(record["rotation"])
            rotation *= np.sign(rotation[np.argmax(np.abs(rotation))])  # q and -q are one rotation
            values = [*record["translation"], *record["size"], *rotation, *record["velocity"]]
            key = token, record["detection_name"], record["attribute_name"]
            found[key].append([*values, record["detection_score"]])
    return {key: np.array(rows) for key, rows in found.items()}


def compare(first: Groups, second: Groups, tolerance: float) -> tuple[int, int, float]:
    """Boxes with a partner within ``tolerance``, boxes without one in either, largest difference of the former."""
    paired, largest = 0, 0.0
    for key in first.keys() & second.keys():
        distances = cdist(first[key], second[key], "chebyshev")
        difference = distances[linear_sum_assignment(np.where(distances <= tolerance, distances, 1.0))]
        close = difference[difference <= tolerance]
        paired += len(close)
        largest = max(largest, close.max(initial=0.0))
    total = sum(len(rows) for side in (first, second) for rows in side.values())
    return paired, total - 2 * paired, largest


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description="whether two submissions hold the same boxes, in any order")
    parser.add_argument("first", type=user_path)
    parser.add_argument("second", type=user_path)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        first, second = (read_submission(path) for path in (args.first, args.second))
    except BevnextError as error:
        print(f"compare_submissions: {error}", file=sys.stderr)
        return 2
    paired, alone, largest = compare(groups(first), groups(second), args.tolerance)
    samples = first["results"].keys() ^ second["results"].keys()
    same = not alone and not samples
    print(
        f"{'equal' if same else 'DIFFERENT'}: {paired} boxes agree within {args.tolerance:g} (at most {largest:.1e} "
        f"apart), {alone} have no partner; {len(samples)} samples are in one of the two only"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
