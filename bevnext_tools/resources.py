# SPDX-License-Identifier: Apache-2.0
"""Where the package's files are (configurations, layouts, messages, the demo's weights): checkout or installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bevnext_core.errors import ConfigError

NAME = "bevnext_ros"


def share_folders() -> list[Path]:
    """Folders that can hold the shared files, best first: the checkout, then installed places."""
    package = Path(__file__).resolve().parent
    folders = [package.parent, package.parent / "share" / NAME]  # a checkout; pip install --target
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    # pip installs beside the interpreter, colcon above lib/python3.X/site-packages
    prefixes += [str(parent) for parent in package.parents[1:5]]
    folders += [Path(prefix) / "share" / NAME for prefix in prefixes if prefix]
    return folders


def shared_file(relative: str) -> Path:
    """A file or folder of the package, for example ``config/detector.yaml`` or ``ros_msgs``.

    Raises:
        ConfigError: it is nowhere; names the places that were looked at.
    """
    folders = share_folders()
    for folder in folders:
        if (folder / relative).exists():
            return folder / relative
    raise ConfigError(f"'{relative}' of {NAME} is not installed; looked in {', '.join(map(str, folders))}")
