"""Readers that turn recorded data into :class:`bevnext_core.frame.CameraFrame`."""
