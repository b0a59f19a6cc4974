# SPDX-License-Identifier: Apache-2.0
"""The depth CRF's mean field: ``plain.py`` (the entry and the plain form), ``operator.py``, ``crf.cpp``, ``crf.cu``."""

from bevnext_core.ops.crf.plain import mean_field, mean_field_form, mean_field_plain

__all__ = ["mean_field", "mean_field_form", "mean_field_plain"]
