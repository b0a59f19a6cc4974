"""What a training run does: forward pass, schedule, start, restart, progress."""
