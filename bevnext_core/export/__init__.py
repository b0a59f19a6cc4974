# SPDX-License-Identifier: Apache-2.0
"""The network compiled ahead of time: packages that the detector runs."""
