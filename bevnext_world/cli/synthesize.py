# SPDX-License-Identifier: Apache-2.0
"""``bevnext synthesize``: drives of the synthetic world as a nuScenes data set.

The folder can be given to every command that reads nuScenes. A call that was interrupted is taken up again by
the same call; scenes that are finished are kept.
"""

from __future__ import annotations

import argparse

from bevnext_core.errors import BevnextError, counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the data set's folder; new, or made by this command")
    add("--scenes", required=True, type=int, metavar="N", help="number of scenes of about 10 s")
    add("--seed", required=True, type=int, metavar="S", help="equal seeds give equal bytes")
    add(
        "--split",
        default="val",
        help="train, val (v1.0-trainval), test (v1.0-test), mini_train or mini_val (v1.0-mini); scenes of "
        "different splits differ whatever the seeds (default: %(default)s)",
    )
    add("--image-size", type=image_size, default=(800, 450), metavar="WxH", help="pixels (default: 800x450)")
    add("--workers", type=int, metavar="K", help="processes (default: as many as there are processors)")
    add(
        "--sweeps",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="camera images at 12 Hz between the key frames at 2 Hz (default: with)",
    )


def image_size(text: str) -> tuple[int, int]:
    """``800x450`` -> (800, 450). Raises argparse.ArgumentTypeError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and 32 <= int(width) <= 4096 and 32 <= int(height) <= 4096):
        raise argparse.ArgumentTypeError(f"'{text}' is no image size such as 800x450 (32 to 4096 each)")
    return int(width), int(height)


def run(args: argparse.Namespace) -> int:
    """Make the data set. Raises DatasetError, OSError."""
    from pathlib import Path

    from bevnext_tools.progress import progress
    from bevnext_tools.threads import usable_cores
    from bevnext_world.recording.generate import Order, generate
    from bevnext_world.recording.splits import SPLITS

    workers = usable_cores() if args.workers is None else args.workers
    if workers < 1:
        raise BevnextError(f"--workers must be at least 1, not {workers}")
    if args.seed < 0:
        raise BevnextError(f"--seed must not be negative, but is {args.seed}")
    order = Order(Path(args.out), args.split, args.seed, args.scenes, args.image_size, bool(args.sweeps))
    with progress(f"making {order.out}", "key frame", order.scenes * order.key_frames) as bar:
        made, there = generate(order, workers, bar.update)
    kept = f", {there} were there already" if there else ""
    version = SPLITS[order.split].version
    print(
        f"{order.out}: {counted(made, 'scene')} made{kept}; read them with --dataroot {order.out} --version {version}, "
        f"split {order.split}"
    )
    return 0
