"""``bevnext demo``: a drive that was never trained on, detected, scored and shown."""
