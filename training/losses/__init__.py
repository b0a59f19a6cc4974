"""What a training run minimises: targets and losses."""
