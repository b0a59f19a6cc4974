"""Runnable recipes over bevnext_core."""
