# SPDX-License-Identifier: Apache-2.0
"""``bevnext weights``: the published weights that commands and node take by name."""

from __future__ import annotations

import argparse

from bevnext_core.errors import BevnextError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "accept", "get"),
        help="list them (the default), accept their terms of use, or fetch and convert some",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="with get: which")


def run(args: argparse.Namespace) -> int:
    """Do it. Raises CheckpointError, BevnextError."""
    from bevnext_core import weights
    from bevnext_tools.checkpoints import DEMO, DEMO_FILE

    if args.names and args.action != "get":
        raise BevnextError(f"'weights {args.action}' takes no names")
    if args.action == "list":
        for name, published in weights.PUBLISHED.items():
            print(f"{name:<32}{state(name):<12}{published.address}")
        print(f"{DEMO:<32}{'carried':<12}{DEMO_FILE}, which know the synthetic world only")
        print(f"folder: {weights.folder()}\n{weights.TERMS}")
        print(f"terms of use accepted: {'yes' if weights.terms_accepted() else 'no (bevnext weights accept)'}")
    elif args.action == "accept":
        weights.accept_terms()
        print(f"{weights.TERMS}\naccepted")
    else:
        unknown = [name for name in args.names if name not in weights.PUBLISHED]
        if unknown or not args.names:
            what = f"no published weights are called '{unknown[0]}'" if unknown else "get which weights?"
            raise BevnextError(f"{what}: there are {', '.join(weights.PUBLISHED)}")
        from bevnext_core.checkpoint import named_checkpoint

        for name in args.names:
            print(f"{name}: {named_checkpoint(name)}")
    return 0


def state(name: str) -> str:
    """Of published weights: whether they are here, and ready."""
    from bevnext_core import weights

    if (weights.folder() / f"{name}.safetensors").is_file():
        return "converted"
    return "downloaded" if (weights.folder() / weights.PUBLISHED[name].file).is_file() else "-"
