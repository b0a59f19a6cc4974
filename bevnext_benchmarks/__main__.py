"""``python -m bevnext_benchmarks benchmark ...``: its commands and the core's, without being installed."""

import sys

from bevnext_benchmarks import commands
from bevnext_core.cli import registry
from bevnext_core.cli.main import main

registry.add(commands)
sys.exit(main())
