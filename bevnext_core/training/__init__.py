"""Everything that training needs beside the network: targets, losses, data, schedule, restart. Never ROS."""
