#!/usr/bin/env python3
"""Detect in a split and score the detections with the official nuScenes metric.

    python training/evaluate.py --checkpoint C --dataroot D --version v1.0-trainval --split val --out results/
    torchrun --nproc-per-node 8 training/evaluate.py ...        # the processes share the scenes

``--mode window`` (the default) computes what the published code computes, for comparison with published numbers;
``--mode streaming`` what the node computes. The mode stands in the table's title and in the results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_core.errors import BevnextError, one_line  # noqa: E402
from bevnext_core.evaluation.distributed import join_processes, leave_processes  # noqa: E402
from bevnext_core.evaluation.metric import format_table, write_evaluation  # noqa: E402
from bevnext_core.evaluation.split import SplitTask, score_split  # noqa: E402
from bevnext_core.files import Parser  # noqa: E402


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Detect in a nuScenes split and score it.")
    add = parser.add_argument
    add("--checkpoint", required=True)
    add("--dataroot", required=True)
    add("--version", default="v1.0-trainval")
    add("--split", default="val", help="official split (mini_val for v1.0-mini)")
    add("--mode", choices=("window", "streaming"), default="window")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--out", required=True, help="folder for submission.json and results.json")
    add("--shuffle-images", action="store_true", help="control: every frame gets the images of another frame")
    add("--no-progress", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        run(options)
        return 0
    except (BevnextError, OSError) as error:  # a folder without rights is the user's to mend too
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        leave_processes()


def run(options: argparse.Namespace) -> None:
    processes = join_processes(options.device)
    out = Path(options.out)
    task = SplitTask(options.checkpoint, options.dataroot, options.version, options.split, options.mode,
                     options.precision,
                     shuffle_images=options.shuffle_images, submission=out / "submission.json",
                     progress=not options.no_progress)
    score = score_split(task, processes)
    if score is None:
        return
    for token, reason in score.faults:
        print(f"sample {token} could not be read and has no boxes: {reason}", file=sys.stderr)
    write_evaluation(score.evaluation, out / "results.json")
    print(score.title)
    print(format_table(score.evaluation))


if __name__ == "__main__":
    sys.exit(main())
