# SPDX-License-Identifier: Apache-2.0
"""Operators that PyTorch and torchvision do not have."""
