#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The lowest score to draw of each class: where F0.5 is best, by the official metric's curves (match within 2 m).

    python -m scripts.choose_thresholds --dataroot DIR --version V --split SPLIT --submission FILE

F0.5 holds a wrong box for worse than a missing one. The demo's thresholds (``bevnext_world/demo/display.py``) come
from the development split of the synthetic world.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval

from bevnext_core.classes import CLASSES
from bevnext_core.datasets.nuscenes import load_tables
from bevnext_core.files import Parser
from bevnext_tools.evaluation.metric import METRIC

WEIGHT = 0.5
MATCH = 2.0
"""Metres."""


def best_threshold(precision: np.ndarray, recall: np.ndarray, confidence: np.ndarray) -> float:
    """The score at which F0.5 is best; 1 where nothing is found."""
    square = WEIGHT**2
    score = (1 + square) * precision * recall / np.maximum(square * precision + recall, 1e-9)
    best = int(np.argmax(score))
    return float(confidence[best]) if score[best] > 0 else 1.0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description="the lowest score to draw of each class, where F0.5 is best")
    for name in ("--dataroot", "--version", "--split", "--submission"):
        parser.add_argument(name, required=True)
    args = parser.parse_args(argv)
    tables = load_tables(args.dataroot, args.version)
    with tempfile.TemporaryDirectory() as folder:
        judge = DetectionEval(
            tables, config_factory(METRIC), args.submission, args.split, folder, verbose=False
        )
        _, curves = judge.evaluate()
    for name in CLASSES:
        curve = curves[(name, MATCH)]
        print(f'    "{name}": {best_threshold(curve.precision, curve.recall, curve.confidence):.2f},')
    return 0


if __name__ == "__main__":
    sys.exit(main())
