# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression in the BEV plane."""
