# SPDX-License-Identifier: Apache-2.0
"""``bevnext check-calibration``, which is ``bevnext rig check`` for nuScenes: see that geometry is read right.

Lidar points, coloured by depth, annotated boxes, and the ground are drawn into the images of one frame. Where they
lie on the objects, calibration, ego poses and stamps of cameras and lidar fit together.
"""

from __future__ import annotations

import argparse
import sys

from bevnext_tools.cli.dataset import add_dataset_arguments, add_output_arguments, output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_dataset_arguments(parser)
    parser.add_argument("--scene", required=True, metavar="NAME", help="scene, e.g. scene-0061")
    parser.add_argument("--frame", type=int, default=0, metavar="I", help="key frame of the scene (default: 0)")
    add_output_arguments(parser, "the pictures")


def run(args: argparse.Namespace) -> int:
    """Draw one frame. Raises DatasetError, FrameError."""
    from bevnext_core.datasets.nuscenes import NuScenesReader
    from bevnext_core.errors import DatasetError, FrameError, one_line
    from bevnext_tools.draw.cameras import truth_layer
    from bevnext_tools.rig.check import PICTURES, write_check

    out = output_folder(args, PICTURES)
    reader = NuScenesReader(args.dataroot, args.version, scenes=args.scene and [args.scene])
    scene = reader.scenes[0]
    refs = reader.refs(scene)
    if not 0 <= args.frame < len(refs):
        raise DatasetError(f"scene '{scene}' has key frames 0 to {len(refs) - 1}, not {args.frame}")
    ref = refs[args.frame]
    frame = reader.load(ref)
    boxes = points = None
    try:
        boxes = reader.ground_truth(ref).boxes
    except DatasetError as error:
        print(f"bevnext: note: no boxes, lidar points only: {one_line(error)}", file=sys.stderr)
    try:
        points = reader.lidar_points(ref)
    except (DatasetError, FrameError) as error:
        if boxes is None:
            raise
        print(f"bevnext: note: no lidar points, boxes only: {one_line(error)}", file=sys.stderr)
    layers = [] if boxes is None else [truth_layer(boxes)]
    (images, above), doubts = write_check(frame, frame.cameras, out / f"{scene}_{args.frame:03d}", layers, points)
    parts = ((boxes, "boxes"), (points, "lidar points"))
    drawn = " and ".join(f"{len(items)} {name}" for items, name in parts if items is not None)
    print(f"{scene}, key frame {args.frame}: {drawn} -> {images}, {above}")
    for doubt in doubts:
        print(f"bevnext: warning: {doubt}", file=sys.stderr)
    return 0
