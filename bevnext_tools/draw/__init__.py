"""Pictures: camera images with boxes, the scene from above, and videos of them."""
