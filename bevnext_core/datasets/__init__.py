# SPDX-License-Identifier: Apache-2.0
"""Readers that turn recorded data into :class:`bevnext_core.frame.CameraFrame`."""
