"""What cameras and lidar see."""
