# SPDX-License-Identifier: Apache-2.0
"""A rig of cameras as files: its calibration, its images, its poses; without ROS and without nuScenes."""
