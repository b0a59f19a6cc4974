"""``bevnext doctor``: what this machine has and how the operators run on it; text to paste into a report."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator

from bevnext_core.errors import BevnextError, one_line

PACKAGES = (
    "torch", "torchvision", "numpy", "pydantic", "opencv-python-headless", "av", "nuscenes-devkit", "rosbags",
    "onnxruntime", "tensorboard",
)  # fmt: skip
ROS_PACKAGES = ("rclpy", "vision_msgs", "tf2_msgs", "message_filters", "cv_bridge")
DEVKIT = "pip install --no-deps nuscenes-devkit==1.2.0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Print a line per fact; what is missing is said, never an error."""
    for name, fact in facts():
        print(f"{name:<24}{fact}")
    return 0


def facts() -> Iterator[tuple[str, str]]:
    """(what, how it is here)."""
    yield "bevnext_ros", _version("bevnext_ros")
    yield "Python", f"{platform.python_version()}, {sys.prefix}"
    yield "system", f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores"
    for name in PACKAGES:
        yield name, _version(name)
    if importlib.util.find_spec("nuscenes") is None:
        yield "", f"reading and scoring nuScenes needs the devkit: {DEVKIT}"
    yield from _torch()
    yield from _compilers()
    yield "ROS", os.environ.get("ROS_DISTRO", "no distribution is sourced")
    yield "", ", ".join(f"{name}: {'yes' if importlib.util.find_spec(name) else 'no'}" for name in ROS_PACKAGES)
    for name in sorted(os.environ):
        if name.startswith(("BEVNEXT_", "OMP_", "RMW_", "ROS_DOMAIN", "FASTDDS_", "FASTRTPS_")):
            yield name, os.environ[name]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch() -> Iterator[tuple[str, str]]:
    import torch

    from bevnext_core.machine import processor

    yield "processor", f"{processor()}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "CUDA", f"no device (torch is built for CUDA {torch.version.cuda or 'none'})"
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        capability = f"{card.major}.{card.minor}"
        yield f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, capability {capability}"
    from bevnext_core.ops.bev_pool import bev_pool_form
    from bevnext_core.ops.crf import mean_field_form

    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for what, form in (("BEV pooling", bev_pool_form), ("CRF", mean_field_form)):
            try:
                yield f"{what}, {device}", form(device)
            except BevnextError as error:
                yield f"{what}, {device}", one_line(error)


def _compilers() -> Iterator[tuple[str, str]]:
    from bevnext_core.ops.native import cache_directory, compiler, cuda_compiler

    for what, find in (("C++ compiler", compiler), ("nvcc", cuda_compiler)):
        try:
            yield what, " ".join(find())
        except BevnextError as error:
            yield what, one_line(error)
    try:
        folder = cache_directory()
        yield "cache", f"{folder}, {shutil.disk_usage(folder).free / 1e9:.1f} GB free"
    except (BevnextError, OSError) as error:
        yield "cache", one_line(error)
