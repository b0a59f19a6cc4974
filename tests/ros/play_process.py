# SPDX-License-Identifier: Apache-2.0
"""`bevnext play BAG` as a process of its own."""

from __future__ import annotations

import argparse
import sys

from bevnext_ros.bags import play


def main() -> int:
    parser = argparse.ArgumentParser()
    play.add_arguments(parser)
    return play.run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
