# SPDX-License-Identifier: Apache-2.0
"""The node as a process whose rclpy calls back as Humble's does: with the message only, whatever the signature."""

from __future__ import annotations

import sys

from rclpy.subscription import Subscription

from tests.ros.node_process import main


def set_callback(self, callback) -> None:
    self._callback = callback
    self._callback_type = Subscription.CallbackType.MessageOnly


if __name__ == "__main__":
    Subscription.callback = property(lambda self: self._callback, set_callback)
    sys.exit(main())
