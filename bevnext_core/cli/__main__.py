"""``python -m bevnext_core.cli``: the command ``bevnext`` without installation."""

import sys

from bevnext_core.cli.main import main

sys.exit(main())
