# SPDX-License-Identifier: Apache-2.0
"""Write the reference's synthetic weights as a checkpoint: ``python -m tests.make_checkpoint small2 FILE``.

Such a network detects nothing of use, but it runs every part of the program, and two programs that are given
the same weights must find the same boxes. ``--published`` writes the form of the published ``.pth`` files.
"""

from __future__ import annotations

import argparse

import torch

from bevnext_core.checkpoint import save_checkpoint
from tests.published import CONFIGS, build, published_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=sorted(CONFIGS))
    parser.add_argument("file")
    parser.add_argument("--published", action="store_true")
    args = parser.parse_args()
    model = build(args.variant)
    if args.published:
        torch.save({"state_dict": published_state(model, args.variant), "meta": {"epoch": 12}}, args.file)
    else:
        save_checkpoint(args.file, model.state_dict(), model.config)


if __name__ == "__main__":
    main()
