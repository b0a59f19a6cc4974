"""``bevnext evaluate``: the official nuScenes score of a network, of a submission, or of detections in a bag."""

from __future__ import annotations

import argparse
import sys

from bevnext_core.cli.dataset import add_dataset_arguments
from bevnext_core.cli.registry import extension
from bevnext_core.errors import BevnextError

DETECTING = ("mode", "precision", "device", "submission_out", "shuffle_images")
"""Options that only make sense where this command detects."""

COMPUTES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_dataset_arguments(parser)
    parser.add_argument(
        "--eval-set", "--split", required=True, metavar="SPLIT", help="split to score, e.g. mini_val or val"
    )
    results = parser.add_mutually_exclusive_group(required=True)
    results.add_argument("--submission", metavar="FILE", help="submission.json of bevnext detect")
    results.add_argument("--bag", metavar="BAG", help="recorded detections of the node, or of detect --bag")
    results.add_argument(
        "--checkpoint", metavar="FILE", help="detect in the split with this network, then score"
    )
    parser.add_argument(
        "--mode",
        choices=("window", "streaming"),
        help="with --checkpoint: encode the whole window of every key frame, with the present one's colours and "
        "camera parameters, as published (window, the default), or each frame once, as the node does",
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="with --checkpoint (default: fp32)"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), help="with --checkpoint (default: auto)")
    parser.add_argument(
        "--submission-out", metavar="FILE", help="with --checkpoint: keep the submission here"
    )
    parser.add_argument(
        "--shuffle-images",
        action="store_true",
        help="with --checkpoint, as a control: every frame gets the images of another frame",
    )
    parser.add_argument(
        "--scene",
        action="append",
        metavar="NAME",
        help="score only this scene of the split (may be repeated); such a score is no published figure",
    )
    parser.add_argument("--out", metavar="FILE", help="also write the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Score and print the table. Raises BevnextError."""
    if not args.checkpoint:
        given = [f"--{name.replace('_', '-')}" for name in DETECTING if getattr(args, name)]
        if given:
            raise BevnextError(f"{', '.join(given)}: only with --checkpoint, where this command detects")
    if args.bag:
        return extension("evaluate-bag", "read bags")(
            args.bag, args.dataroot, args.version, args.eval_set, scenes=args.scene, out=args.out
        )
    if args.checkpoint:
        return _evaluate_checkpoint(args)
    from bevnext_core.datasets.nuscenes_tables import load_tables
    from bevnext_core.evaluation.metric import evaluate, format_table, write_evaluation
    from bevnext_core.evaluation.submission import read_submission

    # A wrong file is found before the tables are loaded, which takes half a minute for the full data set.
    read_submission(args.submission)
    evaluation = evaluate(
        load_tables(args.dataroot, args.version), args.submission, args.eval_set, args.scene
    )
    print(format_table(evaluation))
    if args.out:
        write_evaluation(evaluation, args.out)
    return 0


def _evaluate_checkpoint(args: argparse.Namespace) -> int:
    from bevnext_core.evaluation.distributed import join_processes, leave_processes
    from bevnext_core.evaluation.metric import format_table, write_evaluation
    from bevnext_core.evaluation.split import SplitTask, score_split

    task = SplitTask(
        args.checkpoint,
        args.dataroot,
        args.version,
        args.eval_set,
        args.mode or "window",
        args.precision or "fp32",
        tuple(args.scene or ()),
        args.shuffle_images,
        submission=args.submission_out,
        progress=sys.stderr.isatty(),
    )
    try:
        score = score_split(task, join_processes(args.device or "auto"))
    finally:
        leave_processes()
    if score is None:
        return 0
    for token, reason in score.faults:
        print(
            f"bevnext: warning: sample {token} could not be read and has no boxes: {reason}", file=sys.stderr
        )
    print(score.title)
    print(format_table(score.evaluation))
    if args.out:
        write_evaluation(score.evaluation, args.out)
    return 0
