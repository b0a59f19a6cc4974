# SPDX-License-Identifier: Apache-2.0
"""``python -m bevnext_world demo ...``: its commands and those of bevnext_tools, without being installed."""

import sys

from bevnext_tools.cli import registry
from bevnext_tools.cli.main import main
from bevnext_world import commands

registry.add(commands)
sys.exit(main())
