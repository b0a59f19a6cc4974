# SPDX-License-Identifier: Apache-2.0
"""``bevnext demo``: a drive that was never trained on, detected, scored and shown."""
