# SPDX-License-Identifier: Apache-2.0
"""``python -m bevnext_ros play ...``: its commands and those of bevnext_tools, without being installed."""

import sys

from bevnext_ros import commands
from bevnext_tools.cli import registry
from bevnext_tools.cli.main import main

registry.add(commands)
sys.exit(main())
