# SPDX-License-Identifier: Apache-2.0
"""From a world to nuScenes tables: rig, scenes, splits."""
