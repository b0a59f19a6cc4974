#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Score a trained network in a stream with a part of it taken away, beside guesses that look at no image.

    python training/ablate.py --checkpoint C --dataroot D --version v1.0-trainval --split val --prior-dataroot TRAIN

Nothing is trained: the table shows what this network makes of its history. ``--prior-dataroot`` is where the guesses
take the mean places and sizes from: the data set that was trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_tools.threads import prepare_threads  # noqa: E402

if __name__ == "__main__":  # before PyTorch is imported
    prepare_threads()

from bevnext_core.checkpoint import load_checkpoint  # noqa: E402
from bevnext_core.datasets.nuscenes import NuScenesReader  # noqa: E402
from bevnext_core.datasets.nuscenes_tables import split_scenes  # noqa: E402
from bevnext_core.detector import Detector  # noqa: E402
from bevnext_core.errors import BevnextError, one_line  # noqa: E402
from bevnext_core.files import Parser, atomic_path  # noqa: E402
from bevnext_tools.evaluation.inference import ShuffledImages, detect_scenes  # noqa: E402
from bevnext_tools.evaluation.metric import evaluate  # noqa: E402
from bevnext_tools.evaluation.submission import make_submission  # noqa: E402
from training.data.dataset import TrainingDataset  # noqa: E402
from training.data.index import open_index  # noqa: E402
from training.run import ablations  # noqa: E402

STREAMS: dict[str, tuple[type[Detector], type[NuScenesReader]]] = {
    "as trained": (Detector, NuScenesReader),
    "without history": (ablations.WithoutHistory, NuScenesReader),
    "BEV maps warped instead of lifted again": (ablations.WarpedMaps, NuScenesReader),
    "frozen ego pose": (ablations.FrozenPose, NuScenesReader),
    "images of another frame": (Detector, ShuffledImages),
}
GUESSES = {
    "no image: one object per class, mean place and size": "mean",
    "no image: the likeliest places of each class": "likely",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Score a stream with parts taken away.")
    add = parser.add_argument
    add("--checkpoint", required=True)
    add("--dataroot", required=True)
    add("--version", default="v1.0-trainval")
    add("--split", default="val", help="official split (mini_val for v1.0-mini)")
    add("--prior-dataroot", help="data set trained on; without it the guesses are left out")
    add("--prior-version", default="v1.0-trainval")
    add("--prior-split", default="train")
    add("--device", default="cpu")
    add("--only", default="", help="rows whose name holds this text")
    add("--out", help="write the scores here, as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    try:
        run(parse_arguments(arguments))
        return 0
    except (BevnextError, OSError) as error:  # a folder without rights is the user's to mend too
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> None:
    config = load_checkpoint(options.checkpoint).config
    rows: dict[str, dict[str, float]] = {}
    print(f"{config.name}, {options.split} of {options.dataroot}\n{'':<54}{'mAP':>8}{'NDS':>8}{'mATE':>8}{'mAVE':>8}")

    def add(name: str, records: dict[str, list[dict[str, Any]]], reader: NuScenesReader) -> None:
        score = evaluate(reader.tables, make_submission(records, reader.sample_tokens()), options.split)
        errors = score.summary["tp_errors"]
        rows[name] = {"mAP": score.mean_ap, "NDS": score.nd_score,
                      "mATE": float(errors["trans_err"]), "mAVE": float(errors["vel_err"])}
        print(f"{name:<54}" + "".join(f"{value:8.4f}" for value in rows[name].values()), flush=True)

    def reader_of(kind: type[NuScenesReader]) -> NuScenesReader:
        return kind.of(config, options.dataroot, options.version, split=options.split)

    for name, (detector_kind, reader_kind) in STREAMS.items():
        if options.only in name:
            detector = detector_kind.from_checkpoint(options.checkpoint, options.device)
            reader = reader_of(reader_kind)
            add(name, detect_scenes(detector, reader, reader.scenes, "streaming")[0], reader)
    if options.prior_dataroot:
        index = open_index(options.prior_dataroot, options.prior_version, progress=False, config=config)
        frames = TrainingDataset(index, config, split_scenes(options.prior_split, index.version)).frames
        reader = reader_of(NuScenesReader)
        for name, kind in GUESSES.items():
            if options.only not in name:
                continue
            if kind == "mean":
                prior = ablations.mean_places(index, frames, len(config.class_names))
            else:
                grid = config.bev.extent, config.bev.cell
                prior = ablations.likely_places(index, frames, len(config.class_names), *grid)
            refs = [ref for scene in reader.scenes for ref in reader.refs(scene)]
            records = {ref.sample_token: ablations.guessed(prior, reader, ref, config) for ref in refs}
            add(name, records, reader)
    if options.out:
        with atomic_path(Path(options.out)) as path:
            path.write_text(json.dumps({"model": config.name, "split": options.split, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
