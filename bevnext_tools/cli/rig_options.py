# SPDX-License-Identifier: Apache-2.0
"""The options that name a rig's files, and the reader that they make."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bevnext_core.config import ModelConfig
from bevnext_core.errors import BevnextError

if TYPE_CHECKING:  # pydantic and OpenCV would slow the help down
    from bevnext_tools.rig.images import RigReader

_WITH_IMAGES = {"rig": None, "poses": None, "rate": None, "max_spread": 0.06, "missing_camera": "skip"}
"""The options that go with --images, and their defaults."""


def add_rig_arguments(parser: argparse.ArgumentParser) -> None:
    """``--rig`` and what else goes with ``--images``."""
    add = parser.add_argument
    add("--rig", metavar="FILE", help="with --images: rig.yaml, the cameras' calibration (docs/own_cameras.md)")
    add("--poses", metavar="FILE", help="with --images: the vehicle's poses, lines 'stamp x y z qx qy qz qw'; "
        "without them every frame is detected by itself")  # fmt: skip
    add("--rate", type=float, metavar="HZ", help="with --images: all cameras fire in step, so many times a second; "
        "in place of stamps")  # fmt: skip
    spread = "with --images: how far an image may be from the anchor camera's stamp (default: 0.06)"
    add("--max-spread", type=float, metavar="S", default=_WITH_IMAGES["max_spread"], help=spread)
    missing = "with --images: when a camera has no such image, none at all, or a damaged one (default: skip the frame)"
    add("--missing-camera", choices=("skip", "mask"), default=_WITH_IMAGES["missing_camera"], help=missing)


def check_rig_arguments(args: argparse.Namespace) -> None:
    """See that the options go together. Raises BevnextError."""
    if not args.images:
        for name, default in _WITH_IMAGES.items():
            if getattr(args, name) != default:
                raise BevnextError(f"--{name.replace('_', '-')} goes with --images")
        return
    if not args.rig:
        raise BevnextError("--images needs --rig: a file with the cameras' calibration (docs/own_cameras.md)")
    if args.rate is not None and not 0 < args.rate <= 1000:
        raise BevnextError(f"--rate must be above 0 and at most 1000 Hz, got {args.rate:g}")
    if not 0 <= args.max_spread <= 1:
        raise BevnextError(f"--max-spread must be between 0 and 1 s, got {args.max_spread:g}")


def tell_unnamed(reader: RigReader, rig: str) -> None:
    """A line of what is there and not in the rig."""
    if unnamed := reader.unnamed():
        print(f"bevnext: note: not in {rig}, left out: {', '.join(unnamed)[:300]}", file=sys.stderr)


def rig_reader(args: argparse.Namespace, config: ModelConfig) -> RigReader:
    """The reader of the files that were named; what looks wrong with the rig is told. Raises BevnextError."""
    from bevnext_tools.rig.doubts import doubts
    from bevnext_tools.rig.images import RigReader

    spread, missing = args.max_spread, args.missing_camera
    reader = RigReader(
        args.rig, args.images, config, args.poses, max_spread=spread, missing=missing, rate=args.rate
    )
    slots = [camera.slot for camera in reader.cameras]
    if absent := [slot for slot in config.cameras if slot not in slots]:
        print(f"bevnext: note: the rig has no {', '.join(absent)}: the network sees nothing there", file=sys.stderr)
    tell_unnamed(reader, args.rig)
    for doubt in doubts(reader.own_cameras(), tuple(slots)):
        print(f"bevnext: warning: {doubt}", file=sys.stderr)
    return reader
