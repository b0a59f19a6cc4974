# SPDX-License-Identifier: Apache-2.0
"""``bevnext rig``: make a file of one's own cameras, by hand or from other calibrations; see whether it is right."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bevnext_core.errors import BevnextError, counted
from bevnext_tools.cli.dataset import IMAGES_HELP, add_output_arguments, add_said_arguments, output_folder
from bevnext_tools.cli.rig_options import tell_unnamed

if TYPE_CHECKING:
    from bevnext_core.datasets.nuscenes import NuScenesReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands below it, with their options."""
    commands = parser.add_subparsers(dest="part", required=True, metavar="COMMAND")
    _check_arguments(commands.add_parser("check", help="draw what a calibration says into the images of a frame"))
    _template_arguments(commands.add_parser("template", help="write rig.yaml with gaps to fill in"))
    _import_arguments(commands.add_parser("import", help="write rig.yaml from a calibration of ROS, kalibr, nuScenes"))
    _example_arguments(commands.add_parser("example", help="write a nuScenes scene as rig.yaml, images and poses"))
    for part in commands.choices.values():
        add_said_arguments(part, argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Raises BevnextError."""
    parts = {"check": _check, "template": _template, "import": _import, "example": _example}
    return parts[args.part](args)


def _scene_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", default="v1.0-mini", help="of --dataroot: its tables (default: %(default)s)")
    parser.add_argument("--scene", metavar="NAME", help="of --dataroot (default: its first)")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help=IMAGES_HELP)
    source.add_argument("--dataroot", metavar="DIR", help="a data set in the nuScenes format, in place of a rig")
    parser.add_argument("--rig", metavar="FILE", help="with --images: rig.yaml")
    parser.add_argument("--rate", type=float, metavar="HZ", help="with --images: as for bevnext detect")
    _scene_arguments(parser)
    parser.add_argument("--frame", type=int, default=0, metavar="I", help="number of the frame (default: 0)")
    own = "with --images: configuration of an own network, whose slots they are (default: the published networks')"
    parser.add_argument("--config", metavar="FILE", help=own)
    add_output_arguments(parser, "the pictures")


def _template_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cameras", required=True, metavar="A,B,...", help="their names, which their images have: front,rear_left,...")
    add("--size", required=True, metavar="WxH", help="width and height of the images in pixels, such as 1600x900")
    add("--out", required=True, metavar="FILE", help="the rig file; one that is there is not replaced")


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    info = "YAML files as ROS' camera_calibration writes them; the name is otherwise the file's camera_name"
    source.add_argument("--camera-info", nargs="+", metavar="[NAME=]FILE", help=info)
    source.add_argument("--kalibr", metavar="FILE", help="a camchain of kalibr")
    source.add_argument("--dataroot", metavar="DIR", help="a data set in the nuScenes format")
    _scene_arguments(parser)
    slot = "the network's camera that one takes the place of (default: by its name, such as front_left)"
    add("--slot", action="append", default=[], metavar="NAME=SLOT", help=slot)
    add("--vehicle-from-camera", action="append", default=[], metavar="'NAME=x y z qx qy qz qw'",
        help="with --camera-info, once per camera: where it sits; six numbers: x y z left up roll, in m and deg; "
        "without it the file has a gap to fill in")  # fmt: skip
    first = "with --kalibr: where its first camera sits; or six numbers"
    add("--vehicle-from-cam0", metavar="'x y z qx qy qz qw'", help=first)
    add("--names", metavar="A,B,...", help="with --kalibr: names of its cameras, in order (default: cam0,cam1,...)")
    add("--out", required=True, metavar="FILE", help="the rig file; one that is there is not replaced")


def _example_arguments(parser: argparse.ArgumentParser) -> None:
    made_up = "a data set in the nuScenes format (default: the first three seconds of the demo's drive)"
    parser.add_argument("--dataroot", metavar="DIR", help=made_up)
    _scene_arguments(parser)
    parser.add_argument("--sweeps", action="store_true", help="every camera record (12 Hz), not only key frames")
    add_output_arguments(parser, "rig.yaml, images/ and poses.tum")


def _pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping."""
    pairs: dict[str, str] = {}
    for text in given:
        name, is_there, value = text.partition("=")
        if not is_there or not name or name in pairs:
            raise BevnextError(f"{option} must be NAME=VALUE, each name once, got '{text}'")
        pairs[name] = value
    return pairs


def _check(args: argparse.Namespace) -> int:
    if args.dataroot:
        from bevnext_tools.cli import check_calibration

        return check_calibration.run(args)
    if not args.rig:
        raise BevnextError("--images needs --rig: a file with the cameras' calibration (docs/own_cameras.md)")
    from bevnext_core.config import ModelConfig, load_config
    from bevnext_tools.rig.check import PICTURES, write_check
    from bevnext_tools.rig.images import RigReader

    out = output_folder(args, PICTURES)
    config = load_config(args.config) if args.config else ModelConfig()
    reader = RigReader(args.rig, args.images, config, missing="mask", rate=args.rate)
    tell_unnamed(reader, args.rig)
    if not 0 <= args.frame < len(reader):
        raise BevnextError(f"{args.images} has frames 0 to {len(reader) - 1}, not {args.frame}")
    frame = reader.own_cameras(reader.load(reader.refs(reader.scenes[0])[args.frame]))
    slots = tuple(camera.slot for camera in reader.cameras)
    files, doubts = write_check(frame, slots, out / f"{reader.scenes[0]}_{args.frame:03d}")
    print(f"frame {args.frame} -> {files[0]}, {files[1]}")
    for doubt in filter(None, (*doubts, reader.remarks())):
        print(f"bevnext: warning: {doubt}", file=sys.stderr)
    return 0


def _refuse_to_replace(path: str) -> None:
    from bevnext_core.files import user_path

    if user_path(path).exists():
        raise BevnextError(f"--out {path} is there already: it may have been filled in; give another name")


def _template(args: argparse.Namespace) -> int:
    from bevnext_tools.rig.file import TO_FILL_IN, gaps, write_rig
    from bevnext_tools.rig.imports import template

    _refuse_to_replace(args.out)
    width, by, height = args.size.partition("x")
    if not (by and width.isdecimal() and height.isdecimal()):
        raise BevnextError(f"--size must be WIDTHxHEIGHT in pixels, such as 1600x900, got '{args.size}'")
    cameras = template([name.strip() for name in args.cameras.split(",")], (int(width), int(height)))
    write_rig(args.out, cameras, hints=TO_FILL_IN)
    slots = [camera["name"] for camera in cameras if "slot" in gaps(camera)]
    more = f"; no slot goes by the name of {', '.join(slots)}" if slots else ""
    print(f"{counted(len(cameras), 'camera')} -> {args.out}; replace each FILL_IN{more}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from bevnext_tools.rig import imports
    from bevnext_tools.rig.file import TO_FILL_IN, gaps, write_rig

    _refuse_to_replace(args.out)
    slots = _pairs(args.slot, "--slot")
    placed = {
        name: imports.pose_of(text, f"--vehicle-from-camera {name}")
        for name, text in _pairs(args.vehicle_from_camera, "--vehicle-from-camera").items()
    }
    if args.camera_info:
        cameras = imports.from_camera_info(imports.named_files(args.camera_info), slots, placed)
        note = "from camera_info files: " + ", ".join(Path(text.split("=")[-1]).name for text in args.camera_info)
    elif args.kalibr:
        if not args.vehicle_from_cam0:
            raise BevnextError(
                "--kalibr needs --vehicle-from-cam0 'x y z qx qy qz qw': a camchain knows only how its cameras sit to "
                "each other"
            )
        cam0 = imports.pose_of(args.vehicle_from_cam0, "--vehicle-from-cam0")
        names = args.names.split(",") if args.names else []
        cameras, note = imports.from_kalibr(args.kalibr, cam0, names, slots), f"from {Path(args.kalibr).name} of kalibr"
    else:
        reader, scene = _scene(args)
        cameras, note = imports.from_nuscenes(reader, scene), f"from {scene} of a data set in the nuScenes format"
    names = [camera["name"] for camera in cameras]
    for option, given in (("--slot", slots), ("--vehicle-from-camera", placed)):
        if unknown := set(given) - set(names):
            raise BevnextError(f"{option} names '{min(unknown)}', which is no camera; there are {', '.join(names)}")
    left = [f"{camera['name']}: {key}" for camera in cameras for key in gaps(camera)]
    write_rig(args.out, cameras, note, TO_FILL_IN if left else ())
    print(f"{counted(len(cameras), 'camera')} -> {args.out}" + (f"; fill in {', '.join(left)}" if left else ""))
    return 0


def _scene(args: argparse.Namespace, sweeps: bool = False) -> tuple[NuScenesReader, str]:
    from bevnext_core.datasets.nuscenes import NuScenesReader

    reader = NuScenesReader(args.dataroot, args.version, scenes=args.scene and [args.scene], sweeps=sweeps)
    return reader, reader.scenes[0]


def _example(args: argparse.Namespace) -> int:
    from bevnext_tools.rig.imports import write_example

    out, checkpoint = output_folder(args), "FILE"
    if not args.dataroot:
        checkpoint = "demo"
        from bevnext_tools.cli.registry import extension

        args.dataroot, args.version = extension("example-drive", "make a drive; --dataroot names one")()
    reader, scene = _scene(args, args.sweeps)
    count = write_example(reader, scene, out)
    options = f"--images {out}/images --rig {out}/rig.yaml --poses {out}/poses.tum"
    command = f"bevnext detect {options} --checkpoint {checkpoint} --out {out}/results"
    print(f"{scene}: {counted(count, 'image')} -> {out}; to detect: {command}")
    return 0
