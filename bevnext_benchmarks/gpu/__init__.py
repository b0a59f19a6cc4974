# SPDX-License-Identifier: Apache-2.0
"""``make gpu``: one command that proves and measures everything on a GPU; see ``__main__.py``."""
