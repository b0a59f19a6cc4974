"""What ``bevnext benchmark`` (:mod:`bevnext_core.benchmark`) is made of: inputs, measuring, reporting."""
