# SPDX-License-Identifier: Apache-2.0
"""What a training run does: forward pass, schedule, start, restart, progress."""
