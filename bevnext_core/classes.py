# SPDX-License-Identifier: Apache-2.0
"""The ten nuScenes detection classes and the six tasks (groups that share a head), in published order."""

CAMERAS = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
ANCHOR_CAMERA = "CAM_FRONT"
"""Its stamp defines the ego frame in which a frame's boxes are given."""

CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
