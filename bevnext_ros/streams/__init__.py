"""Streams of images, calibrations and poses -> frames. No ROS: shared by node, bags and tests."""
