# SPDX-License-Identifier: Apache-2.0
"""``bevnext evaluate``: the official nuScenes score of a network, of a submission, or of detections in a bag."""

from __future__ import annotations

import argparse
import sys

from bevnext_core.classes import CLASSES
from bevnext_core.config import ModelConfig
from bevnext_core.errors import BevnextError, DatasetError
from bevnext_core.precision import PRECISIONS, precision_text
from bevnext_tools.cli.dataset import add_dataset_arguments
from bevnext_tools.cli.registry import extension

DETECTING = ("mode", "precision", "device", "submission_out", "shuffle_images", "corrupt", "missing_camera")
"""Options that only make sense where this command detects."""

COMPUTES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_dataset_arguments(parser)
    add = parser.add_argument
    add("--eval-set", "--split", required=True, metavar="SPLIT", help="split to score, e.g. mini_val or val")
    results = parser.add_mutually_exclusive_group(required=True)
    results.add_argument("--submission", metavar="FILE", help="submission.json of bevnext detect")
    results.add_argument("--bag", metavar="BAG", help="recorded detections of the node, or of detect --bag")
    network = "detect in the split with this network (a file or a name, as for bevnext detect), then score"
    results.add_argument("--checkpoint", metavar="FILE", help=network)
    add(
        "--mode",
        choices=("window", "streaming"),
        help="with --checkpoint: encode the whole window of every key frame, with the present one's colours and "
        "camera parameters, as published (window, the default), or each frame once, as the node does",
    )
    meaning = "with --checkpoint (default: fp32); auto: as bevnext doctor says"
    add("--precision", choices=PRECISIONS, help=meaning)
    add("--device", help="with --checkpoint: cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--submission-out", metavar="FILE", help="with --checkpoint: keep the submission here")
    add(
        "--shuffle-images",
        action="store_true",
        help="with --checkpoint, as a control: every frame gets the images of another frame",
    )
    add("--corrupt", metavar="NAME:SEVERITY", help="with --checkpoint: spoil the images, e.g. fog:2")
    meaning = "with --corrupt: go on with the other cameras (mask, the default), or without boxes for the frame (skip)"
    add("--missing-camera", choices=("mask", "skip"), help=meaning)
    add(
        "--scene",
        action="append",
        metavar="NAME",
        help="score only this scene of the split (may be repeated); such a score is no published figure",
    )
    add("--out", metavar="FILE", help="also write the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Score and print the table. Raises BevnextError."""
    if args.checkpoint:
        return _evaluate_network(args)
    given = [f"--{name.replace('_', '-')}" for name in DETECTING if getattr(args, name)]
    if given:
        raise BevnextError(f"{', '.join(given)}: only with --checkpoint, where this command detects")
    if args.bag:
        return extension("evaluate-bag", "read bags")(
            args.bag, args.dataroot, args.version, args.eval_set, scenes=args.scene, out=args.out
        )
    from bevnext_core.datasets.nuscenes_tables import load_tables
    from bevnext_tools.evaluation.metric import evaluate, report
    from bevnext_tools.evaluation.submission import read_submission

    # A wrong file is found before the tables are loaded, which takes half a minute for the full data set.
    read_submission(args.submission)
    tables = load_tables(args.dataroot, args.version)
    report(evaluate(tables, args.submission, args.eval_set, args.scene), args.out)
    return 0


def _evaluate_network(args: argparse.Namespace) -> int:
    """Detect in a split and score it. Where processes have joined a group, they share the scenes; the first reports."""
    from bevnext_core.datasets.nuscenes import NuScenesReader
    from bevnext_core.datasets.nuscenes_tables import split_scenes
    from bevnext_tools.checkpoints import checkpoint_file, reader_and_detector
    from bevnext_tools.evaluation.corruptions import CorruptedImages, Corruption
    from bevnext_tools.evaluation.inference import Mode, ShuffledImages, detect_scenes
    from bevnext_tools.evaluation.metric import evaluate, report
    from bevnext_tools.evaluation.submission import make_submission, write_submission
    from bevnext_tools.progress import progress

    mode: Mode = args.mode or "window"
    corruption = Corruption.parse(args.corrupt, args.missing_camera or "mask") if args.corrupt else None
    if corruption and args.shuffle_images:
        raise BevnextError("--corrupt and --shuffle-images are two controls: choose one")
    members = split_scenes(args.eval_set, args.version)
    outside = [scene for scene in args.scene or () if scene not in members]
    if outside:
        raise DatasetError(f"the split '{args.eval_set}' has no scene '{outside[0]}'")
    kind = ShuffledImages if args.shuffle_images else CorruptedImages if corruption else NuScenesReader
    choice = {"scenes": args.scene} if args.scene else {"split": args.eval_set}

    def make(config: ModelConfig) -> NuScenesReader:
        if unknown := [name for name in config.class_names if name not in CLASSES]:
            raise BevnextError(f"the official metric knows nuScenes' ten classes, and '{config.name}' finds "
                               f"{', '.join(unknown)}; see docs/own_data.md")
        return kind.of(config, args.dataroot, args.version, **choice)

    args.checkpoint, device = checkpoint_file(args.checkpoint), args.device or "auto"
    reader, detector = reader_and_detector(args.checkpoint, make, device, precision=args.precision or "fp32")
    import torch.distributed as dist

    if isinstance(reader, CorruptedImages) and corruption:
        reader.corruption = corruption
    joined = dist.is_available() and dist.is_initialized()
    rank, count = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
    scenes = reader.scenes[rank::count]
    frames = sum(len(reader.refs(scene)) for scene in scenes)
    with progress(f"detecting, mode {mode}", "frame", frames, hidden=rank > 0) as bar:
        parts = [detect_scenes(detector, reader, scenes, mode, bar.update)]
    if joined:
        parts *= count
        dist.all_gather_object(parts, parts[0])
    if rank:
        return 0
    submission = make_submission({k: v for records, _ in parts for k, v in records.items()}, reader.sample_tokens())
    if args.submission_out:
        write_submission(submission, args.submission_out)
    scored = evaluate(reader.tables, submission, args.eval_set, args.scene)
    faults = [fault for _, part in parts for fault in part]
    for token, reason in faults[:1] if corruption else faults:
        print(f"bevnext: warning: sample {token} could not be read and has no boxes: {reason}", file=sys.stderr)
    if corruption:
        print(f"bevnext: {len(faults)} of {frames} frames have no boxes", file=sys.stderr)
    scored.summary["inference"] = {
        "mode": mode,
        "precision": detector.precision,
        "checkpoint": args.checkpoint,
        "model": detector.config.name,
        "unreadable_frames": len(faults),
        "shuffled_images": args.shuffle_images,
        "corruption": str(corruption or ""),
    }
    precision = precision_text(detector.options.precision, detector.device)
    published = " (as published)" if mode == "window" else ""
    control = f", {corruption}" if corruption else ", control with shuffled images" if args.shuffle_images else ""
    print(f"{detector.config.name}, mode {mode}{published}, {precision}{control}")
    report(scored, args.out)
    return 0
