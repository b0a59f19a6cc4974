# SPDX-License-Identifier: Apache-2.0
"""What this package adds to the command ``bevnext``: measurements, and what they are made on."""

from bevnext_tools.cli.registry import Command

COMMANDS = {
    "doctor": Command("bevnext_benchmarks.doctor", "say what this machine has, for a report"),
    "benchmark": Command("bevnext_benchmarks.step", "measure time and memory of the network"),
    "precisions": Command("bevnext_benchmarks.precisions", "measure the streaming step in fp32 and half precision"),
    "peers": Command("bevnext_benchmarks.peers", "measure the network beside onnxruntime and OpenVINO"),
}
