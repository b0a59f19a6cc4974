"""From a world to nuScenes tables: rig, scenes, splits."""
