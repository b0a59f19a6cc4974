# SPDX-License-Identifier: Apache-2.0
"""BEV pooling: ``plain.py`` (the entry and the plain form), ``operator.py``, ``bev_pool.cpp``, ``bev_pool.cu``."""

from bevnext_core.ops.bev_pool.plain import PoolPlan, bev_pool, bev_pool_form, bev_pool_plain

__all__ = ["PoolPlan", "bev_pool", "bev_pool_form", "bev_pool_plain"]
