# SPDX-License-Identifier: Apache-2.0
"""What is published: the source distribution is the repository, and its wheel shows the demo in another environment."""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from bevnext_tools.draw.video import h264_encoder
from tests.paths import ROOT

PACKAGES = ("bevnext_core", "bevnext_tools", "bevnext_ros", "bevnext_world", "bevnext_benchmarks")
EXTRAS = {"all", "completion", "demo", "export", "nuscenes", "peers", "test", "train", "view", "weights"}


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX", "VIRTUAL_ENV")}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=kept | env, capture_output=True, text=True, timeout=800
    )


def repository() -> list[str]:
    """Its files, by their paths."""
    done = run("git", "ls-files", cwd=ROOT)
    if done.returncode:
        pytest.skip("this is no git checkout")
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    for name in repository():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    done = run(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=folder / "tree")
    assert done.returncode == 0, done.stderr
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder)
    done = run(sys.executable, "-m", "pip", "wheel", *options, unpacked, cwd=folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return source, wheel


def test_source_distribution_is_the_repository(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert set(repository()) <= held
    assert {name for name in held - set(repository()) if "egg-info" not in name} == {"PKG-INFO"}


def test_wheel_holds_the_packages_and_what_they_read(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        held = archive.namelist()
        (metadata,) = (name for name in held if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(metadata))
    expected = [name for name in repository() if name.startswith(tuple(f"{package}/" for package in PACKAGES))]
    assert set(expected) <= set(held)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(held)
    for name in ("weights/demo_stage2.safetensors", "config/detector.yaml", "launch/detector.launch.py"):
        assert any(path.endswith(f"data/share/bevnext_ros/{name}") for path in held), name
    assert not [name for name in held if name.startswith(("tests/", "training/", "scripts/"))]

    assert about["Description-Content-Type"] == "text/markdown" and about["License-File"] == "LICENSE"
    assert set(about.get_all("Provides-Extra") or ()) == EXTRAS
    text = str(about.get_payload())
    assert "bevnext_ros" in text.splitlines()[0]
    assert all(link.startswith("http") for link in re.findall(r"\]\(([^)]*)\)", text))
    assert not [line for line in about.get_all("Requires-Dist") if line.startswith("nuscenes-devkit")]


@pytest.fixture(scope="module")
def environment(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another environment with the wheel; what it needs comes from this one, the checkout does not."""
    folder = tmp_path_factory.mktemp("environment")
    done = run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    assert done.returncode == 0, done.stderr
    (packages,) = (folder / "venv").glob("lib/python3*/site-packages")
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", folder / "venv/bin/python", "install", "--no-deps", "--quiet")
    done = run(*pip, "--ignore-installed", distributions[1], cwd=folder)
    assert done.returncode == 0, done.stderr
    where = run(folder / "venv/bin/python", "-c", "import bevnext_world; print(bevnext_world.__file__)", cwd=folder)
    assert str(packages) in where.stdout
    return folder / "venv"


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no compiler"])
def test_demo_from_the_wheel(environment: Path, tmp_path: Path, compiler: bool) -> None:
    """Two seconds of its drive with the demo's weights; without a compiler the drive that the wheel carries."""
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    settings = {"OMP_NUM_THREADS": "1"}
    if not compiler:
        settings |= {"PATH": str(environment / "bin"), "BEVNEXT_CACHE_DIR": str(tmp_path / "cache")}
    out = tmp_path / "out"
    drive = ("--drive", tmp_path / "drive") if compiler else ()
    options = ("demo", "--key-frames", "4", "--device", "cpu", "--out", out)
    done = run(environment / "bin" / "bevnext", *options, *drive, cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("no C++ compiler found" in done.stderr) is not compiler
    numbers = json.loads((out / "numbers.json").read_text())
    assert (numbers["key_frames"], numbers["frames"]) == ((4, 19) if compiler else (6, 31))
    assert numbers["mean_ap"] > 0.05
    for line in (f"mAP {numbers['mean_ap']:.4f}", f"NDS {numbers['nd_score']:.4f}", str(out / "index.html")):
        assert line in done.stdout
    assert not [line for line in done.stderr.splitlines() if str(ROOT) in line]
    video = {"drive.mp4"} if h264_encoder() else set()
    names = {"contact_sheet.png", "drive.webp", "frame.jpg", "index.html", "numbers.json", "submission.json"}
    assert {path.name for path in out.iterdir()} == video | names
