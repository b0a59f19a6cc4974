"""``bevnext evaluate``: the official nuScenes score of a submission, or of detections recorded in a bag."""

from __future__ import annotations

import argparse
import importlib

from bevnext_core.cli.dataset import add_dataset_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_dataset_arguments(parser)
    parser.add_argument(
        "--eval-set", required=True, metavar="SPLIT", help="split to score, e.g. mini_val or val"
    )
    results = parser.add_mutually_exclusive_group(required=True)
    results.add_argument("--submission", metavar="FILE", help="submission.json of bevnext detect")
    results.add_argument("--bag", metavar="BAG", help="recorded detections of the node, or of detect --bag")
    parser.add_argument(
        "--scene",
        action="append",
        metavar="NAME",
        help="score only this scene of the split (may be repeated); such a score is no published figure",
    )
    parser.add_argument("--out", metavar="FILE", help="also write the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Score and print the table. Raises DatasetError, SubmissionError."""
    if args.bag:
        # By name: the core does not import the ROS package, the command line joins the two.
        bags = importlib.import_module("bevnext_ros.bag_evaluate")
        return bags.run_evaluate_bag(
            args.bag, args.dataroot, args.version, args.eval_set, scenes=args.scene, out=args.out
        )
    from bevnext_core.datasets.nuscenes_tables import load_tables
    from bevnext_core.evaluation import evaluate, format_table, write_evaluation
    from bevnext_core.submission import read_submission

    # A wrong file is found before the tables are loaded, which takes half a minute for the full data set.
    read_submission(args.submission)
    evaluation = evaluate(
        load_tables(args.dataroot, args.version), args.submission, args.eval_set, args.scene
    )
    print(format_table(evaluation))
    if args.out:
        write_evaluation(evaluation, args.out)
    return 0
