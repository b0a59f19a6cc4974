# SPDX-License-Identifier: Apache-2.0
"""What several commands share: the options that name a data set, and the output folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bevnext_core.errors import BevnextError

IMAGES_HELP = "a folder with a folder of images, a video or one image per camera"


def add_dataset_arguments(parser: argparse.ArgumentParser, or_bag: str = "", or_images: str = "") -> None:
    """``--dataroot`` and ``--version``; in place of the data set ``--bag`` and ``--images``, with these helps."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataroot", metavar="DIR", help="folder of the nuScenes data set")
    if or_bag:
        source.add_argument("--bag", metavar="BAG", help=or_bag)
    if or_images:
        source.add_argument("--images", metavar="DIR", help=or_images)
    parser.add_argument("--version", default="v1.0-mini", help="its tables, e.g. v1.0-trainval (default: %(default)s)")


def add_said_arguments(parser: argparse.ArgumentParser, default: Any = False) -> None:
    """``--quiet`` and ``--verbose``; ``default``: SUPPRESS for a part of a command, which has them already."""
    said, options = parser.add_mutually_exclusive_group(), {"action": "store_true", "default": default}
    said.add_argument("-q", "--quiet", help="errors and results only, no progress or warnings", **options)
    said.add_argument("-v", "--verbose", help="also what is logged, and an error's traceback", **options)


def add_output_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """``--out``, the folder for ``what``, and ``--force``."""
    parser.add_argument("--out", required=True, metavar="DIR", help=f"folder for {what}")
    parser.add_argument("--force", action="store_true", help="write into a folder that holds files")


def output_folder(args: argparse.Namespace, own: tuple[str, ...] = ()) -> Path:
    """The output folder, checked before the work begins; it is created by the first file.

    Args:
        own: ends of names of files that the command itself has written and may replace.

    Raises:
        BevnextError: it is a file, or it holds files that are not ``own`` and ``--force`` is not given.
    """
    path = Path(args.out)
    if path.exists() and not path.is_dir():
        raise BevnextError(f"the output folder {path} is a file")
    if path.is_dir() and not args.force and any(not (own and file.name.endswith(own)) for file in path.iterdir()):
        raise BevnextError(f"the output folder {path} is not empty; give --force to write into it, or another --out")
    return path
