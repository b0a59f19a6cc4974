"""``python -m bevnext_ros play ...``: its commands and the core's, without being installed."""

import sys

from bevnext_core.cli import registry
from bevnext_core.cli.main import main
from bevnext_ros import commands

registry.add(commands)
sys.exit(main())
