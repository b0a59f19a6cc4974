# SPDX-License-Identifier: Apache-2.0
"""Package metadata of bevnext_ros: one ament_python package with several import packages.

They are installed by pip and by colcon alike.
ROS packages are dependencies of package.xml only: on the Python index their names are missing or
belong to others.
"""

import os
import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.develop import develop

NAME = "bevnext_ros"
# The network, what works with it, the ROS 2 package, the world, the benchmarks. training/ runs from a checkout.
PACKAGES = ("bevnext_core", "bevnext_tools", "bevnext_ros", "bevnext_world", "bevnext_benchmarks")
SHARE = f"share/{NAME}"
# What nuscenes-devkit needs beside what is needed anyway. Its own metadata ask for numpy < 2, which its code does not
# need, and no dependency can take that back: it is added with --no-deps (bevnext_core.datasets.nuscenes_tables).
DEVKIT_NEEDS = [
    "cachetools",
    "descartes",
    "fire",
    "matplotlib>=3.6",
    "parameterized",
    "pycocotools>=2.0.1",
    "scikit-learn",
    "scipy",
    "shapely>=2.0.3",
]
TRAIN = ["tensorboard"]
WEIGHTS = ["huggingface_hub"]  # fetches the published weights by name
EXPORT = ["onnx", "onnxscript"]
COMPLETION = ["shtab"]
VIEW = ["rerun-sdk>=0.41; python_version >= '3.11'"]  # needs numpy 2


def shared_files(folder):
    """The (destination, files) pairs that install `folder` with its sub-folders under share/."""
    pairs = []
    for root, folders, names in sorted(os.walk(folder)):
        folders[:] = [name for name in folders if name != "__pycache__"]
        files = sorted(os.path.join(root, name) for name in names if not name.endswith((".pyc", "~")))
        if files:
            pairs.append((f"{SHARE}/{root}", files))
    return pairs


def other_files(package):
    """What else than Python goes with `package`: C++ and CUDA, compiled where they are installed, and what it reads."""
    found = []
    for root, _, names in sorted(os.walk(package)):
        found += [
            os.path.relpath(os.path.join(root, name), package)
            for name in sorted(names)
            if name.endswith((".cpp", ".cu", ".h", ".cuh", ".j2", ".zip")) or name == "py.typed"
        ]
    return found


def description():
    """The README without its pictures and with links into the repository as plain text: it is read elsewhere."""
    readme = Path("README.md")
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def interpreter():
    """What the first line of the executables that colcon installs shall name.

    colcon writes its own interpreter, which on a ROS distribution is the system's and has no torch.
    An active environment with torch goes first, then the .venv that `make setup` creates here; where
    there is neither, the interpreter is searched for in PATH when the node starts.
    """
    here = os.path.dirname(os.path.realpath(__file__))  # colcon --symlink-install runs a link to this file
    for environment in (os.environ.get("VIRTUAL_ENV"), os.path.join(here, ".venv")):
        if environment and glob(os.path.join(environment, "lib", "python3*", "site-packages", "torch")):
            return os.path.join(environment, "bin", "python")
    return "/usr/bin/env python3"


class DevelopWithInterpreter(develop):
    """`colcon build --symlink-install`: this command does not look at `build_scripts`' executable."""

    def write_script(self, script_name, contents, mode="t", *blockers):
        first, newline, rest = contents.partition("\n")
        if first.startswith("#!"):
            contents = f"#!{interpreter()}{newline}{rest}"
        return super().write_script(script_name, contents, mode, *blockers)


setup(
    name=NAME,
    version="0.2.0",
    description="BEVNeXt for ROS 2: six cameras and ego poses in, 3D boxes out",
    long_description=description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["ROS 2", "3D object detection", "bird's-eye view", "camera", "nuScenes"],
    project_urls={
        "Paper": "https://arxiv.org/abs/2312.01696",
        "Published weights": "https://huggingface.co/Zzxxxxxxxx/bevnext",
    },
    maintainer="bevnext_ros contributors",
    maintainer_email="bevnext_ros@users.noreply.github.com",
    python_requires=">=3.10",
    packages=find_packages(include=[name for package in PACKAGES for name in (package, f"{package}.*")]),
    package_data={package: other_files(package) for package in PACKAGES},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (SHARE, ["package.xml"]),
        *shared_files("config"),
        *shared_files("launch"),
        *shared_files("ros_msgs"),
        *shared_files("weights"),
    ],
    install_requires=[
        "torch",
        "torchvision",
        "numpy",
        # 10.1: its own font in any size
        "pillow>=10.1",
        "pyyaml",
        # the second major version, which older distributions do not have: no key in package.xml
        "pydantic>=2.9",
        "typing-extensions",
        "safetensors",
        "tqdm",
        "opencv-python-headless",
        # videos in H.264: what OpenCV's wheel can encode, browsers do not play
        "av",
        # writes bags and knows the message types; reading goes file by file, by mcap and sqlite3
        "rosbags",
        "mcap>=1.6",
        "zstandard",
        "pyquaternion",
        "jinja2",
    ],
    extras_require={
        "nuscenes": DEVKIT_NEEDS,
        "demo": DEVKIT_NEEDS,
        "train": TRAIN,
        "weights": WEIGHTS,
        "export": EXPORT,
        "view": VIEW,
        "completion": COMPLETION,
        "all": [*DEVKIT_NEEDS, *TRAIN, *WEIGHTS, *EXPORT, *VIEW, *COMPLETION],
        # what the benchmark of peers runs the ONNX files in
        "peers": [*EXPORT, "onnxruntime", "openvino"],
        # pytest 9 refuses the pytest plugins of ROS distributions (launch_testing).
        "test": [
            "pytest>=8,<9",
            *WEIGHTS,
            *EXPORT,
            *COMPLETION,
            *VIEW,
            "onnxruntime",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "psutil",
            "shapely",
            "ruff",
            "mypy",
            "import-linter",
            "check-jsonschema",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    entry_points={
        "console_scripts": [
            "bevnext = bevnext_tools.cli.main:main",
            "detector_node = bevnext_ros.node.main:main",
            "nuscenes_to_bag = bevnext_ros.bags.nuscenes_to_bag:main",
        ],
        # what each package adds to the command `bevnext`
        "bevnext.commands": [f"{name} = {name}.commands" for name in PACKAGES[2:]],
    },
    options={"build_scripts": {"executable": interpreter()}},
    cmdclass={"develop": DevelopWithInterpreter},
    zip_safe=False,
)
