"""The synthetic world: drives in the nuScenes format, rendered and ray cast by this package alone."""
