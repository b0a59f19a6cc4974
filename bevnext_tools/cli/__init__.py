# SPDX-License-Identifier: Apache-2.0
"""The command ``bevnext``: one file per subcommand, imported only when it is called."""
