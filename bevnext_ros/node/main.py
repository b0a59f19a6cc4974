# SPDX-License-Identifier: Apache-2.0
"""``ros2 run bevnext_ros detector_node``: starts the node, and ends it cleanly on SIGINT and SIGTERM."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from bevnext_core.errors import BevnextError, one_line
from bevnext_tools.threads import prepare_threads

_STOP_SECONDS = 3.0
"""How long a running inference may go on after a signal; ``ros2 launch`` repeats its own after five."""
_SPIN_SECONDS = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """The node with the real detector -> exit code: 0 after a signal, 1 when it cannot start."""
    prepare_threads()
    try:
        import torch  # noqa: F401  # the node's first need, and the one that fails most
    except ImportError as error:
        return _fail(
            f"{sys.executable} cannot import torch ({one_line(error)}): run `make setup` in the repository and "
            "build again with colcon, or start the node with the Python that has torch"
        )
    from bevnext_ros.node.detector_factory import make_detector

    return run(make_detector, argv)


def run(detector_factory: Callable[[Any], Any], argv: Sequence[str] | None = None) -> int:
    """The node with any detector. ``argv`` as of a program, its name first."""
    try:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from bevnext_ros.node.detector_node import DetectorNode
    except ImportError as error:
        return _fail(
            f"{sys.executable} cannot import ROS 2 ({one_line(error)}): source a distribution's setup.bash, or "
            "run `make setup`"
        )
    faulthandler.enable()
    arguments = list(sys.argv if argv is None else argv)
    files = [file for option, file in pairwise(arguments) if option == "--params-file"]
    stop = _StopFlag()
    node: Any = None
    ended = True
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = DetectorNode(detector_factory, files)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.requested and rclpy.ok():
            try:
                executor.spin_once(timeout_sec=_SPIN_SECONDS)
            except Exception as error:  # one bad message must not end the node
                node.get_logger().error(f"a callback failed: {type(error).__name__}: {one_line(error)}")
        executor.remove_node(node)
        executor.shutdown()
    except Exception as error:
        if not stop.requested:
            kind = "" if isinstance(error, BevnextError) else f"{type(error).__name__}: "
            return _fail(f"the node cannot start: {kind}{one_line(error)}")
    finally:
        if node is not None:
            ended = node.shut_down(_STOP_SECONDS)
            node.destroy_node()
        rclpy.try_shutdown()
        stop.ignore()
    if not ended:
        # a thread inside the network cannot be interrupted, and must not meet a dying interpreter
        sys.stderr.flush()
        os._exit(0)
    return 0


class _StopFlag:
    """Set by SIGINT and SIGTERM. Further signals change nothing while the node ends; the fourth ends it hard."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > 3:
            os._exit(128 + number)

    @staticmethod
    def ignore() -> None:
        """The node has ended: a signal that comes while the interpreter does must not look like a crash."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    @property
    def requested(self) -> bool:
        return self.count > 0


def _fail(message: str) -> int:
    print(f"detector_node: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
