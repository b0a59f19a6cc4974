# SPDX-License-Identifier: Apache-2.0
"""``bevnext demo``: a synthetic drive that was never trained on, detected with the demo weights, scored and shown."""

from __future__ import annotations

import argparse
import hashlib
import platform
from pathlib import Path
from typing import Any

from bevnext_core.errors import BevnextError
from bevnext_tools.checkpoints import DEMO, DEMO_FILE, checkpoint_file

COMPUTES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--out",
        default="demo",
        metavar="DIR",
        help="folder for the results; what an earlier run wrote there is replaced (default: %(default)s)",
    )
    add_drive_arguments(parser)
    device = "cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    parser.add_argument("--device", default="auto", help=device)
    parser.add_argument("--score-threshold", type=float, help="lowest score drawn (default: that of each class)")


def add_drive_arguments(parser: argparse.ArgumentParser) -> None:
    """What the demo with ROS takes too: weights and drive."""
    parser.add_argument("--checkpoint", metavar="FILE", help=f"other weights than {DEMO_FILE}")
    kept = "where the synthetic drive is kept, made there when missing (default: cache)"
    parser.add_argument("--drive", metavar="DIR", help=kept)
    length = "its length, 0.5 s each (default: %(default)s)"
    parser.add_argument("--key-frames", type=int, default=20, metavar="N", help=length)


def run(args: argparse.Namespace) -> int:
    """Show. Raises BevnextError."""
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise BevnextError(f"--score-threshold must be between 0 and 1, got {args.score_threshold:g}")
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise BevnextError(f"the output folder {out} is a file")
    weights = demo_weights(args.checkpoint)

    from bevnext_core.detector import Detector
    from bevnext_tools.evaluation.metric import format_table
    from bevnext_world.demo.drive import NAME, prepare_drive
    from bevnext_world.demo.page import write_page
    from bevnext_world.demo.show import show, write_numbers

    detector = Detector.from_checkpoint(weights, args.device)
    drive = prepare_drive(args.drive, args.key_frames)
    reader = drive.reader(detector.config)
    threshold = args.score_threshold
    shown = show(reader, detector, out, name=NAME, eval_set=drive.eval_set, score_threshold=threshold)
    about = _about(weights, detector, drive.description)
    write_numbers(shown, about, out / "numbers.json")
    write_page(shown, about, out / "index.html")
    typical, least, most = (1e3 * seconds for seconds in shown.times("detector"))
    print(format_table(shown.evaluation))
    print(
        f"{shown.frames_per_second:.2f} frames per second "
        f"(detector: {typical:.0f} ms for six images, {least:.0f} to {most:.0f})"
    )
    for path in filter(None, (shown.video, shown.animation, shown.sheet, out / "index.html")):
        print(path)
    return 0


def demo_weights(given: str | None) -> Path:
    """The checkpoint to use: ``given``, or that of the package. Raises as :func:`checkpoint_file`."""
    return Path(checkpoint_file(given or DEMO))


def _about(weights: Path, detector: Any, drive: str) -> dict[str, str]:
    """What was run, for the page."""
    import torch

    from bevnext_core.device import machine

    values = sum(parameter.numel() for parameter in detector.model.parameters())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {
        "drive": drive,
        "weights": f"{weights.name}, {weights.stat().st_size / 1e6:.1f} MB, sha256 {digest[:16]}...",
        "network": f"{detector.config.name}: {values / 1e6:.2f} M parameters, "
        f"{detector.config.history.frames} past frames, {detector.config.image.width}x{detector.config.image.height}",
        "machine": f"{machine(str(detector.device))}, {torch.get_num_threads()} threads",
        "Python": platform.python_version(),
    }
