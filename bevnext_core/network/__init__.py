# SPDX-License-Identifier: Apache-2.0
"""The network, one file per block. :class:`~bevnext_core.network.bevnext.BEVNeXt` puts them together."""
