"""What ``bevnext benchmark`` (:mod:`bevnext_benchmarks.step`) is made of: inputs, measuring, reporting."""
