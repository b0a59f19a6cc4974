# SPDX-License-Identifier: Apache-2.0
"""What the synthetic world adds to the command ``bevnext``."""

from bevnext_tools.cli.registry import Command

COMMANDS = {
    "demo": Command(
        "bevnext_world.cli.demo",
        "detect, score and show a synthetic drive with the demo weights; needs no data",
    ),
    "synthesize": Command(
        "bevnext_world.cli.synthesize", "make drives of the synthetic world, as a nuScenes data set"
    ),
}
EXTENSIONS = {"example-drive": "bevnext_world.demo.drive:example_drive"}
