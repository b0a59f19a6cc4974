# SPDX-License-Identifier: Apache-2.0
"""BEVNeXt: dense bird's-eye-view detection from several cameras (CVPR 2024), without ROS.

The network's blocks are in :mod:`bevnext_core.network`, the streaming detector in
:mod:`bevnext_core.detector`, readers of recorded data in :mod:`bevnext_core.datasets`.
"""

__version__ = "0.2.0"
