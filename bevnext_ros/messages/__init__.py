"""ROS messages from and to this project's types."""
