# SPDX-License-Identifier: Apache-2.0
"""Streams of images, calibrations and poses -> frames. No ROS: shared by node, bags and tests."""
