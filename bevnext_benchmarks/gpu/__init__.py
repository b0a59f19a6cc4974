"""``make gpu``: one command that proves and measures everything on a GPU; see ``__main__.py``."""
