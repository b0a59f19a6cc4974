#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""``bevnext evaluate --checkpoint``, from a checkout: detect in a split, and score it with the official metric.

    python training/evaluate.py --checkpoint C --dataroot D --version v1.0-trainval --split val --out results/
    torchrun --nproc-per-node 8 training/evaluate.py ...        # the processes share the scenes

``--out`` is a folder here, for submission.json and results.json; all other options are those of the command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_tools.threads import prepare_threads  # noqa: E402

if __name__ == "__main__":  # before PyTorch is imported
    prepare_threads()

from bevnext_core.errors import ConfigError, one_line  # noqa: E402
from bevnext_core.files import Parser  # noqa: E402
from bevnext_tools.cli.main import main as bevnext  # noqa: E402
from training.run.processes import join_processes, leave_processes  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", required=True, metavar="FOLDER")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    options, others = parser.parse_known_args(arguments)
    command = ["evaluate", "--checkpoint", options.checkpoint, "--version", "v1.0-trainval", "--split", "val", *others]
    files = ["--out", f"{options.out}/results.json", "--submission-out", f"{options.out}/submission.json"]
    try:
        processes = join_processes(options.device)
        return bevnext([*command, *files, "--device", str(processes.device)])
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    finally:
        leave_processes()


if __name__ == "__main__":
    sys.exit(main())
