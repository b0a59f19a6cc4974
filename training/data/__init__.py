"""What a training run sees: index, samples, augmentation, order."""
