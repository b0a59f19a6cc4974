# SPDX-License-Identifier: Apache-2.0
"""``bevnext doctor``: what this machine has and how the operators run on it; text to paste into a report."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial

from bevnext_core.datasets.nuscenes_tables import ADD_DEVKIT
from bevnext_core.errors import BevnextError, one_line
from bevnext_core.files import cache_directory
from bevnext_core.weights import PUBLISHED
from bevnext_tools.checkpoints import DEMO, DEMO_FILE
from bevnext_tools.cli.main import version
from bevnext_tools.cli.weights import state
from bevnext_tools.resources import share_folders

PACKAGES = (
    "torch", "torchvision", "numpy", "pydantic", "opencv-python-headless", "av", "nuscenes-devkit", "rosbags",
    "onnxruntime", "tensorboard", "rerun-sdk",
)  # fmt: skip
ROS_PACKAGES = ("rclpy", "vision_msgs", "tf2_msgs", "message_filters", "cv_bridge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Print a line per fact; what is missing is said, never an error."""
    for name, fact in facts():
        print(f"{name:<24}{fact}")
    return 0


def facts() -> Iterator[tuple[str, str]]:
    """(what, how it is here)."""
    yield "bevnext_ros", version("bevnext_ros")
    yield "Python", f"{platform.python_version()}, {sys.prefix}"
    yield "system", f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores"
    for name in PACKAGES:
        yield name, version(name)
    if importlib.util.find_spec("nuscenes") is None:
        yield "", f"reading and scoring nuScenes needs the devkit: {ADD_DEVKIT}"
    yield "weights", _or_why_not(_weights)
    yield from _torch()
    yield from _compilers()
    yield "ROS", os.environ.get("ROS_DISTRO", "no distribution is sourced")
    yield "", ", ".join(f"{name}: {'yes' if importlib.util.find_spec(name) else 'no'}" for name in ROS_PACKAGES)
    for name in sorted(os.environ):
        if name.startswith(("BEVNEXT_", "OMP_", "RMW_", "ROS_DOMAIN", "FASTDDS_", "FASTRTPS_")):
            yield name, os.environ[name]


def _weights() -> str:
    """Those at hand."""
    names = [DEMO] if any((folder / DEMO_FILE).is_file() for folder in share_folders()) else []
    names += [f"{name} ({state(name)})" for name in PUBLISHED if state(name) != "-"]
    return f"{', '.join(names) or 'none'}; all there are: bevnext weights"


def _torch() -> Iterator[tuple[str, str]]:
    import torch

    from bevnext_core.device import processor

    yield "processor", f"{processor()}, {torch.get_num_threads()} threads"
    cards = torch.cuda.device_count()
    if not cards:
        yield "CUDA", f"no device (torch is built for CUDA {torch.version.cuda or 'none'})"
    for index in range(cards):
        card = torch.cuda.get_device_properties(index)
        capability = f"{card.major}.{card.minor}"
        yield f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, capability {capability}"
    from bevnext_core.ops.bev_pool import bev_pool_form
    from bevnext_core.ops.crf import mean_field_form
    from bevnext_core.precision import precision_text

    for device in ("cpu", "cuda")[: 2 if cards else 1]:
        yield f"precision auto, {device}", precision_text("auto", device)
        for what, form in (("BEV pooling", bev_pool_form), ("CRF", mean_field_form)):
            yield f"{what}, {device}", _or_why_not(partial(form, device))


def _compilers() -> Iterator[tuple[str, str]]:
    from bevnext_core.ops import native

    yield "C++ compiler", _or_why_not(lambda: " ".join(native.compiler()))
    yield "nvcc", _or_why_not(lambda: " ".join(native.cuda_compiler()))
    yield "cache", _or_why_not(_cache)


def _cache() -> str:
    folder = cache_directory()
    return f"{folder}, {shutil.disk_usage(folder).free / 1e9:.1f} GB free"


def _or_why_not(fact: Callable[[], str]) -> str:
    try:
        return fact()
    except (BevnextError, OSError) as error:
        return one_line(error)
