#!/usr/bin/env python3
"""Detect in a split and score the detections with the official nuScenes metric.

    python training/evaluate.py --checkpoint C --dataroot D --version v1.0-trainval --split val --out results/
    torchrun --nproc-per-node 8 training/evaluate.py ...        # the processes share the scenes

``--mode window`` (the default) computes what the published code computes, for comparison with published numbers;
``--mode streaming`` what the node computes. The mode stands in the table's title and in the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_core.datasets.nuscenes import NuScenesReader  # noqa: E402
from bevnext_core.detector import Detector  # noqa: E402
from bevnext_core.errors import BevnextError, one_line  # noqa: E402
from bevnext_core.evaluation import evaluate, format_table, write_evaluation  # noqa: E402
from bevnext_core.submission import make_submission, write_submission  # noqa: E402
from bevnext_core.training.distributed import join_processes, leave_processes  # noqa: E402
from bevnext_core.training.split_inference import ShuffledImages, detect_scenes, options_for  # noqa: E402


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Detect in a nuScenes split and score it.")
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
    except BevnextError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        leave_processes()


def run(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    processes = join_processes(options.device)
    detector_options = options_for(options.mode, options.precision)
    detector = Detector.from_checkpoint(options.checkpoint, processes.device, detector_options)
    config = detector.config
    reader_class = ShuffledImages if options.shuffle_images else NuScenesReader
    reader = reader_class(options.dataroot, options.version, split=options.split, cameras=config.cameras,
                          anchor_camera=config.anchor_camera, class_names=config.class_names)
    scenes = reader.scenes[processes.rank :: processes.count]
    count = sum(len(reader.refs(scene)) for scene in scenes)
    hidden = options.no_progress or not processes.is_main
    with tqdm(total=count, unit="frame", desc=options.mode, disable=hidden) as bar:
        mine = detect_scenes(detector, reader, scenes, options.mode, bar.update)
    parts = processes.gather((mine.records, mine.faults))
    if not processes.is_main:
        return
    records = {token: found for part, _ in parts for token, found in part.items()}
    faults = [fault for _, part in parts for fault in part]
    for token, reason in faults:
        print(f"sample {token} could not be read and has no boxes: {reason}", file=sys.stderr)
    out = Path(options.out)
    write_submission(make_submission(records, reader.sample_tokens()), out / "submission.json")
    scored = evaluate(reader.tables, out / "submission.json", options.split)
    inference = {
        "mode": options.mode,
        "crf_canvas": detector_options.crf_canvas,
        "camera_params": detector_options.camera_params,
        "precision": options.precision,
        "checkpoint": str(options.checkpoint),
        "model": config.name,
        "unreadable_frames": len(faults),
        "shuffled_images": options.shuffle_images,
    }
    scored = dataclasses.replace(scored, summary={"inference": inference, **scored.summary})
    write_evaluation(scored, out / "results.json")
    control = ", control with shuffled images" if options.shuffle_images else ""
    print(f"{config.name}, mode {options.mode} (crf_canvas {detector_options.crf_canvas}, camera_params "
          f"{detector_options.camera_params}), {options.precision}{control}")
    print(format_table(scored))


if __name__ == "__main__":
    sys.exit(main())
