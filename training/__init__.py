# SPDX-License-Identifier: Apache-2.0
"""Runnable recipes over bevnext_core."""
