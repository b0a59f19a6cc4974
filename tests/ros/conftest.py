# SPDX-License-Identifier: Apache-2.0
"""DDS between processes: a domain of its own per test process, this machine only."""

from __future__ import annotations

import pytest

from tests.ros import harness


@pytest.fixture(scope="module")
def dds():
    """rclpy, initialised; skips where ROS is not installed. The environment is as before when a file is done."""
    reason = harness.missing()
    if reason:
        pytest.skip(reason)
    import rclpy

    with pytest.MonkeyPatch.context() as patch:
        for name, value in harness.environment().items():
            patch.setenv(name, value)
        rclpy.init()
        yield rclpy
        rclpy.try_shutdown()


@pytest.fixture
def start(dds, tmp_path):
    """Starts a node process with a stand-in detector and a rig that feeds it: ``start(**parameters) -> Rig``."""
    rigs: list[harness.Rig] = []

    def starter(
        wait: float = 0.0,
        images: str = "small",
        command: list[str] | None = None,
        rig_tf: str = "/tf",
        **parameters,
    ):
        rig = harness.Rig(tmp_path, wait, parameters, images, command, len(rigs), rig_tf)
        rigs.append(rig)
        return rig

    yield starter
    for rig in rigs:
        rig.close()
