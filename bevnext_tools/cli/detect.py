# SPDX-License-Identifier: Apache-2.0
"""``bevnext detect``: a nuScenes data set, a bag or images in; submission, bag or JSON lines, pictures, videos out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bevnext_core.datasets.ground_truth import GroundTruth
from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.detections import Detections, FrameDetector, lines_file
from bevnext_core.errors import BevnextError, DatasetError, FrameError, counted, one_line
from bevnext_core.frame import CameraFrame
from bevnext_core.precision import PRECISIONS
from bevnext_tools.checkpoints import checkpoint_file, reader_and_detector
from bevnext_tools.cli.dataset import IMAGES_HELP, add_dataset_arguments, add_output_arguments, output_folder
from bevnext_tools.cli.registry import extension
from bevnext_tools.cli.rig_options import add_rig_arguments, check_rig_arguments, rig_reader
from bevnext_tools.evaluation.inference import FrameReader, detect_frames
from bevnext_tools.evaluation.submission import make_submission, submission_records, write_submission

View = Callable[[CameraFrame, Detections, GroundTruth | None], object]
"""Takes each frame with the boxes to be shown and, where there are any, the annotated ones."""


@dataclass
class DetectSummary:
    """What a run did.

    Attributes:
        frames: frames with a result; ``boxes``: their boxes; ``shown``: those in pictures and viewer.
        failed: one line per frame that could not be used; its result is empty.
        videos: files written. no_truth: why pictures show no annotated boxes, if they do not.
    """

    frames: int = 0
    boxes: int = 0
    shown: int = 0
    failed: list[str] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    no_truth: str = ""


COMPUTES = True
SYNTHETIC = "this project's synthetic world"
"""How the demo's weights begin to tell what they were trained on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_dataset_arguments(
        parser,
        or_bag="a ROS 2 bag with images, CameraInfo and TF, in place of a data set",
        or_images=f"{IMAGES_HELP}, in place of a data set",
    )
    add_rig_arguments(parser)
    add = parser.add_argument
    add("--params", metavar="FILE", help="with --bag: the node's parameter file")
    add(
        "--node",
        metavar="NAME",
        help="with --params: the node whose parameters count, with its namespace (default: the file's 'detector')",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--scene", action="append", metavar="NAME", help="only this scene (may be repeated)")
    which.add_argument("--split", metavar="NAME", help="only this split, e.g. mini_val (default: all scenes)")
    weights = "a file, published weights by name (bevnext weights), or demo (they know the synthetic world only)"
    add("--checkpoint", required=True, metavar="FILE", help=weights)
    add_output_arguments(parser, "submission.json, pictures, videos")
    add("--sweeps", action="store_true", help="every camera record (12 Hz), not only key frames")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    meaning = "of the convolutions (default: fp32; with --bag the parameter's); auto: as bevnext doctor says"
    add("--precision", choices=PRECISIONS, help=meaning)
    add(
        "--compile",
        nargs="?",
        const="default",
        choices=("default", "reduce-overhead", "graphs"),
        metavar="MODE",
        help="make the network faster in the first frame, which takes a minute or more: default (torch.compile), "
        "reduce-overhead (with CUDA graphs), graphs (CUDA graphs alone)",
    )
    add("--cuda-graphs", action="store_true", help=argparse.SUPPRESS)
    lines = "write detections.jsonl too: a line of JSON per frame (with --images always)"
    add("--json-lines", action="store_true", help=lines)
    alone = "with --bag: leave images, calibrations and transforms out of the bag that is written"
    add("--detections-only", action="store_true", help=alone)
    add("--view", action="store_true", help="show frames and boxes in Rerun's viewer as they come (docs/view.md)")
    add("--rrd", metavar="FILE", help="write them to a file that Rerun's viewer opens")
    add("--no-pictures", action="store_true", help="write the submission, or the lines of JSON, only")
    add("--score-threshold", type=float, default=0.3, help="lowest score in pictures and viewer (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Detect. Raises BevnextError."""
    if not 0 <= args.score_threshold <= 1:
        raise BevnextError(f"--score-threshold must be between 0 and 1, got {args.score_threshold:g}")
    if args.cuda_graphs:
        raise BevnextError("--cuda-graphs is gone: give --compile reduce-overhead")
    check_rig_arguments(args)
    out = output_folder(args)
    args.checkpoint = checkpoint_file(args.checkpoint)
    with _view(args) as view:
        code = _detect_in_bag(args, view) if args.bag else _detect_in_frames(args, out, view)
    if args.rrd:
        print(f"for Rerun's viewer: {args.rrd}")
    return code


def _view(args: argparse.Namespace) -> AbstractContextManager[View | None]:
    """What takes each frame to the viewer, when it is wanted."""
    if not (args.view or args.rrd):
        return nullcontext()
    from bevnext_tools.draw.rerun_view import RerunView

    return RerunView(args.rrd, args.view)


def _detect_in_frames(args: argparse.Namespace, out: Path, view: View | None) -> int:
    if args.params or args.node:
        raise BevnextError("--params and --node go with --bag; a data set needs no parameter file")
    if args.detections_only:
        raise BevnextError("--detections-only goes with --bag: nothing else makes a bag")
    if args.images:
        return _detect_in_images(args, out, view)
    choice = {"scenes": args.scene, "split": args.split, "sweeps": args.sweeps}
    reader, detector = reader_and_detector(
        args.checkpoint,
        lambda config: NuScenesReader.of(config, args.dataroot, args.version, **choice),
        args.device,
        **_detector_overrides(args),
    )
    wanted: dict[str, Any] = {"pictures": not args.no_pictures, "json_lines": args.json_lines, "view": view}
    summary = detect(reader, detector, out, score_threshold=args.score_threshold, **wanted)
    print(f"{detector}\n{_told(args, summary)} -> {out / 'submission.json'}")
    for video in summary.videos:
        print(f"video: {video}")
    if summary.failed:
        print(
            f"bevnext: warning: {len(summary.failed)} of {summary.frames + len(summary.failed)} frames "
            "could not be used and have an empty result",
            file=sys.stderr,
        )
    return 0


def _detector_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The detector's options that were given on the command line."""
    given = {"precision": args.precision, "compile": bool(args.compile) or None, "compile_mode": args.compile}
    return {name: value for name, value in given.items() if value is not None}


def _detect_in_images(args: argparse.Namespace, out: Path, view: View | None) -> int:
    from bevnext_tools.rig.images import WithoutHistory

    _refuse_choice(args, "a folder of images")
    made = partial(rig_reader, args)
    reader, detector = reader_and_detector(args.checkpoint, made, args.device, **_detector_overrides(args))
    stepped: FrameDetector = detector
    told = detector.trained_on
    made_up = told is not None and told.data.startswith(SYNTHETIC)
    synthetic = "the demo's weights know the synthetic world only" if made_up else ""
    if synthetic:
        print(f"bevnext: note: {synthetic}: real photos take --checkpoint bevnext-r50-stage2", file=sys.stderr)
    if not args.poses:
        print("bevnext: note: no --poses: each frame is detected by itself, without history", file=sys.stderr)
        stepped = WithoutHistory(detector)
    titles = {camera.slot: f"{camera.name} ({camera.slot})" for camera in reader.cameras if camera.name != camera.slot}
    wanted: dict[str, Any] = {"pictures": not args.no_pictures, "json_lines": True, "view": view, "titles": titles}
    summary = detect(
        reader, stepped, out,
        velocities=bool(args.poses), score_threshold=args.score_threshold, note=synthetic, **wanted,
    )  # fmt: skip
    print(f"{stepped}\n{_told(args, summary)} -> {out / 'detections.jsonl'}")
    for video in summary.videos:
        print(f"video: {video}")
    if remarks := reader.remarks():
        print(f"bevnext: warning: {remarks}", file=sys.stderr)
    return 0


def _told(args: argparse.Namespace, summary: DetectSummary) -> str:
    shown = f" ({summary.shown} from {args.score_threshold:g} on, no thing twice: those are drawn)"
    looked_at = not args.no_pictures or args.view or args.rrd
    return f"{counted(summary.frames, 'frame')}, {summary.boxes} boxes{shown if looked_at else ''}"


def _refuse_choice(args: argparse.Namespace, source: str) -> None:
    if chosen := [name for name in ("scene", "split", "sweeps") if getattr(args, name)]:
        raise BevnextError(f"--{chosen[0]} chooses from a data set; {source} is taken as a whole")


def _detect_in_bag(args: argparse.Namespace, view: View | None) -> int:
    _refuse_choice(args, "a bag")
    return extension("detect-bag", "read bags")(
        args.bag,
        args.checkpoint,
        args.out,
        params=args.params,
        node=args.node or "",
        device=args.device,
        overrides=_detector_overrides(args),
        pictures=not args.no_pictures,
        picture_threshold=args.score_threshold,
        json_lines=args.json_lines,
        recording=not args.detections_only,
        view=view,
    )


def detect(
    reader: FrameReader,
    detector: FrameDetector,
    out: Path,
    *,
    pictures: bool = True,
    score_threshold: float = 0.3,
    json_lines: bool = False,
    view: View | None = None,
    titles: Mapping[str, str] | None = None,
    velocities: bool = True,
    note: str = "",
) -> DetectSummary:
    """Run the detector over all frames of ``reader`` and write the results below ``out``.

    Writes ``submission.json`` (of nuScenes: key frames only, as it wants it), and with ``pictures`` also
    ``frames/<scene>/<nnn>.png`` and, with an H.264 encoder, ``<scene>.mp4``; with ``json_lines`` ``detections.jsonl``,
    a line per frame (:meth:`Detections.as_mapping`, and ``scene``). The detector is reset between scenes.
    Pictures show boxes of at least ``score_threshold``, none of a thing twice (:mod:`bevnext_tools.draw.choice`);
    ``view`` takes each frame with the same boxes. A frame that cannot be read gets an empty result, is reported on
    stderr and counted; the others go on.

    Args:
        titles: of cameras in pictures, in place of their names.
        velocities: ``False``, for frames without poses: those in the lines are null.
        note: what pictures say of the weights.

    Raises:
        DatasetError: no frame at all could be used (nothing is written).
    """
    from bevnext_tools.draw.cameras import draw_frame, write_picture
    from bevnext_tools.draw.choice import without_doubles
    from bevnext_tools.draw.video import write_video
    from bevnext_tools.progress import progress

    summary = DetectSummary()
    results: dict[str, list[dict[str, Any]]] = {}
    with progress("detecting", "frame", len(reader)) as bar, lines_file(out, json_lines) as lines:
        for scene in reader.scenes:
            folder = out / "frames" / scene
            for stale in folder.glob("*.png") if pictures else ():
                stale.unlink()
            drawn: list[Path] = []
            bar.set_description(scene, refresh=False)
            for ref, frame, found, *_ in detect_frames(detector, reader, scene):
                if isinstance(found, FrameError):
                    line = f"{scene}, frame {ref.index}: {one_line(found)}"
                    summary.failed.append(line)
                    if len(reader) > 1:  # that of the only one ends the run, as its error
                        bar.write(f"bevnext: warning: {line}", file=sys.stderr)
                else:
                    summary.frames += 1
                    summary.boxes += len(found)
                    if lines:
                        line_of = {"scene": scene, **found.as_mapping()}
                        for box in line_of["boxes"] if not velocities else ():
                            box["velocity"] = None
                        print(json.dumps(line_of), file=lines)
                    if ref.is_key:
                        results[ref.sample_token] = submission_records(found)
                    assert frame is not None
                    shown, title = without_doubles(found, score_threshold), f"{scene}, frame {ref.index}"
                    summary.shown += len(shown)
                    truth = _truth(reader, ref, summary) if pictures or view else None
                    if view:
                        view(frame, shown, truth)
                    if pictures:
                        annotated = None if truth is None else truth.boxes
                        drawn.append(folder / f"{ref.index:03d}.png")
                        texts: dict[str, Any] = {"title": title, "of": len(found), "titles": titles, "note": note}
                        picture = draw_frame(frame, shown, annotated, **texts)
                        write_picture(picture, drawn[-1])
                bar.update()
            if drawn:
                stamps = [ref.stamp_ns for ref in reader.refs(scene)]
                if video := write_video(out / f"{scene}.mp4", drawn, stamps):
                    summary.videos.append(video)
    if not summary.frames:
        count = len(summary.failed)
        what = "the only frame cannot be used" if count == 1 else f"none of the {count} frames could be used; the first"
        raise DatasetError(f"{what}: {summary.failed[0]}")
    if isinstance(reader, NuScenesReader):
        submission = make_submission(results, reader.sample_tokens(), class_names=reader.class_names)
        write_submission(submission, out / "submission.json")
    return summary


def _truth(reader: FrameReader, ref: FrameRef, summary: DetectSummary) -> GroundTruth | None:
    """The annotated boxes of a key frame where there are any: they are only drawn."""
    try:
        return reader.ground_truth(ref) if ref.is_key and isinstance(reader, NuScenesReader) else None
    except DatasetError as error:
        if not summary.no_truth:
            print(f"bevnext: note: pictures without annotated boxes: {error}", file=sys.stderr)
        summary.no_truth = summary.no_truth or str(error)
        return None
