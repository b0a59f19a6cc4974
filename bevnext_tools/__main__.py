# SPDX-License-Identifier: Apache-2.0
"""``python -m bevnext_tools``: the command ``bevnext`` without installation."""

import sys

from bevnext_tools.cli.main import main

sys.exit(main())
