"""Operators that PyTorch and torchvision do not have."""
