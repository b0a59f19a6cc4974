"""``python -m bevnext_world demo ...``: its commands and the core's, without being installed."""

import sys

from bevnext_core.cli import registry
from bevnext_core.cli.main import main
from bevnext_world import commands

registry.add(commands)
sys.exit(main())
