# SPDX-License-Identifier: Apache-2.0
"""What is where: roads, what stands at them, and what moves on them."""
