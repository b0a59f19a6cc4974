# SPDX-License-Identifier: Apache-2.0
"""From detections to the official nuScenes score."""
