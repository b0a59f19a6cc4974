# SPDX-License-Identifier: Apache-2.0
"""BEVNeXt for ROS 2: the detector node, the nuScenes-to-bag converter, the bag tools."""
