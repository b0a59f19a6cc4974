"""The network compiled ahead of time: packages that the detector runs."""
