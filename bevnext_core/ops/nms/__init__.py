"""Non-maximum suppression in the BEV plane."""
