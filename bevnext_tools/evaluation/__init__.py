"""From detections to the official nuScenes score."""
