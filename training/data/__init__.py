# SPDX-License-Identifier: Apache-2.0
"""What a training run sees: index, samples, augmentation, order."""
