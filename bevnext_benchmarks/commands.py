"""What the benchmarks adds to the command ``bevnext``."""

from bevnext_core.cli.registry import Command

COMMANDS = {
    "benchmark": Command("bevnext_benchmarks.step", "measure time and memory of the network"),
    "peers": Command("bevnext_benchmarks.peers", "measure the network beside onnxruntime and OpenVINO"),
}
