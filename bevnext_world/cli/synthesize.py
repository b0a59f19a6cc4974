"""``bevnext synthesize``: drives of the synthetic world as a nuScenes data set.

The folder can be given to every command that reads nuScenes. A call that was interrupted is taken up again by
the same call; scenes that are finished are kept.
"""

from __future__ import annotations

import argparse

from bevnext_core.errors import BevnextError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the data set's folder; new, or made by this command"
    )
    parser.add_argument(
        "--scenes", required=True, type=int, metavar="N", help="number of scenes of about 10 s"
    )
    parser.add_argument("--seed", required=True, type=int, metavar="S", help="equal seeds give equal bytes")
    parser.add_argument(
        "--split",
        default="val",
        help="train, val (v1.0-trainval), test (v1.0-test), mini_train or mini_val (v1.0-mini); scenes of "
        "different splits differ whatever the seeds (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size", type=image_size, default=(800, 450), metavar="WxH", help="pixels (default: 800x450)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="K", help="processes (default: as many as there are processors)"
    )
    parser.add_argument(
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

    from tqdm import tqdm

    from bevnext_world.recording.generate import Order, default_workers, generate
    from bevnext_world.recording.splits import SPLITS

    workers = default_workers() if args.workers is None else args.workers
    if workers < 1:
        raise BevnextError(f"--workers must be at least 1, not {workers}")
    if args.seed < 0:
        raise BevnextError(f"--seed must not be negative, but is {args.seed}")
    order = Order(Path(args.out), args.split, args.seed, args.scenes, args.image_size, bool(args.sweeps))
    with tqdm(total=order.scenes * order.key_frames, unit="key frame", disable=None) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        made, there = generate(order, workers, advance)
    kept = f", {there} were there already" if there else ""
    version = SPLITS[order.split].version
    print(
        f"{order.out}: {made} scenes made{kept}; read them with --dataroot {order.out} --version {version}, "
        f"split {order.split}"
    )
    return 0
