# SPDX-License-Identifier: Apache-2.0
"""ROS messages from and to this project's types."""
