# SPDX-License-Identifier: Apache-2.0
"""The metadata agree with each other, name no ROS package, and install what is needed."""

import configparser
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = [ROOT / "constraints" / f"{name}.txt" for name in ("demo", "torch", "tools", "numpy1")]
PYTHONS = [f"3.{minor}" for minor in range(10, 15)]

# Names that belong to ROS. On the Python index they are missing (anyone could register them) or somebody
# else's; only the pinned `ros-` wheels of constraints/ros-pypi.txt come from there.
ROS_NAMES = {
    "ament-index-python", "builtin-interfaces", "cv-bridge", "diagnostic-msgs", "diagnostic-updater",
    "geometry-msgs", "image-transport", "launch", "launch-ros", "launch-testing", "lifecycle-msgs",
    "message-filters", "nav-msgs", "rcl-interfaces", "rclpy", "ros2bag", "ros2cli", "rosbag2-py",
    "rosgraph-msgs", "rosidl-runtime-py", "sensor-msgs", "sensor-msgs-py", "std-msgs", "tf2-geometry-msgs",
    "tf2-msgs", "tf2-py", "tf2-ros", "vision-msgs", "visualization-msgs",
}  # fmt: skip

def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return normalised(match[0])


def read_pins(path: Path, python: str, machine: str = "x86_64") -> dict[str, str]:
    """{name: version} for a Python version; every entry must be an exact pin with hashes."""
    here = {"python_version": python, "platform_machine": machine}
    pins = {}
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    for block in re.split(r"\n(?=\S)", text):
        first, *hashes = block.split(" \\\n")
        requirement = Requirement(first)
        version = str(requirement.specifier)
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", version), f"{path.name}: {first!r}"
        assert hashes and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert requirement.name not in pins, f"{path.name}: {requirement.name} twice for Python {python}"
            pins[normalised(requirement.name)] = version.removeprefix("==")
    return pins


@pytest.fixture(scope="module")
def package():
    """The distribution that setup.py describes, read without running a command."""
    pytest.importorskip("setuptools")  # brings distutils, which Python itself has no more
    core = importlib.import_module("distutils.core")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return core.run_setup("setup.py", stop_after="init")
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def manifest():
    return ElementTree.parse(ROOT / "package.xml").getroot()


def all_requirements(package) -> list[str]:
    extras = [line for lines in package.extras_require.values() for line in lines]
    return [*package.install_requires, *extras]


def test_no_requirement_is_a_ros_name(package):
    names = {requirement_name(line) for line in all_requirements(package)}
    assert not names & ROS_NAMES
    assert not {name for name in names if name.startswith("ros-")}


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_no_pin_is_a_ros_name(path):
    names = {name for python in PYTHONS for name in read_pins(path, python)}
    assert not names & ROS_NAMES
    assert not {name for name in names if name.startswith("ros-")}


def test_package_xml_agrees_with_setup(package, manifest):
    assert manifest.get("format") == "3"
    assert manifest.findtext("name") == package.get_name() == "bevnext_ros"
    assert manifest.findtext("version") == package.get_version()
    assert manifest.findtext("license") == package.get_license() == "Apache-2.0"
    assert manifest.findtext("description", "").rstrip(".") == package.get_description()
    assert manifest.findtext("export/build_type") == "ament_python"
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")


def test_package_xml_names_the_ros_packages_that_are_imported(manifest):
    keys = {element.text for element in manifest.iter() if element.tag.endswith("depend")}
    assert len(keys) == sum(element.tag.endswith("depend") for element in manifest.iter()), "one key twice"
    imported = set()
    pattern = re.compile(r"^\s*(?:import|from)\s+([a-z0-9_]+)", re.MULTILINE)
    for folder in ("bevnext_ros", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            imported |= set(pattern.findall(path.read_text()))
    missing = {name for name in imported if normalised(name) in ROS_NAMES and name not in keys}
    # sensor_msgs_py and the like are only used where they happen to be there
    assert not missing


def test_python_versions(package):
    assert str(package.python_requires) == f">={PYTHONS[0]}"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_direct_requirement_is_pinned(python, package):
    demo, torch, tools, numpy1 = (read_pins(path, python) for path in CONSTRAINTS)
    extras = package.extras_require
    wanted = {requirement_name(line) for line in [*package.install_requires, *extras["demo"]]}
    wanted |= {"pip", "setuptools", "nuscenes-devkit"}
    assert wanted <= set(demo | torch)
    more = {
        requirement_name(line)
        for name in ("train", "test")
        for line in extras[name]
        if (marker := Requirement(line).marker) is None or marker.evaluate({"python_version": python})
    }
    assert more <= set(demo | torch | tools)
    assert not set(demo) & set(torch) and not set(demo | torch) & set(tools), "a name in two files"
    assert not {"pytest", "ruff", "mypy", "onnxruntime", "tensorboard"} & set(demo | torch)
    assert {"torch", "torchvision", "triton"} <= set(torch)
    assert demo["numpy"].startswith("2.")
    assert numpy1.get("numpy", "none") == ("1.26.4" if int(python[2:]) < 13 else "none")
    assert set(numpy1) <= set(demo | tools)
    # both opencv builds write the same files
    assert "opencv-python" not in demo | tools
    assert int(demo["setuptools"].split(".")[0]) < 80, "colcon needs setuptools < 80"
    assert int(tools["pytest"].split(".")[0]) < 9, "the pytest plugins of ROS distributions need pytest < 9"


def test_no_file_of_pins_names_an_index():
    """Their hashes say what is meant; where it comes from is the machine's own configuration."""
    for path in (ROOT / "constraints").iterdir():
        assert not re.search(r"://|--(extra-)?index|--find-links|@ ", path.read_text()), path.name


def test_the_command_that_adds_the_devkit_names_the_pinned_release():
    from bevnext_core.datasets.nuscenes_tables import ADD_DEVKIT

    assert f"--no-deps nuscenes-devkit=={read_pins(CONSTRAINTS[0], '3.12')['nuscenes-devkit']}" in ADD_DEVKIT


def test_configuration_and_launch_files_are_installed(package):
    installed = {(destination, Path(file)) for destination, files in package.data_files for file in files}
    for folder in ("config", "launch"):
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT)
            if path.is_file() and path.suffix != ".pyc":
                assert (f"share/bevnext_ros/{relative.parent}", relative) in installed
    assert ("share/bevnext_ros", Path("package.xml")) in installed
    marker = ("share/ament_index/resource_index/packages", Path("resource/bevnext_ros"))
    assert marker in installed and (ROOT / marker[1]).is_file()


def test_all_sub_packages_are_found(package):
    names = {"bevnext_core", "bevnext_tools", "bevnext_ros", "bevnext_world", "bevnext_benchmarks"}
    for name in names:
        for path in (ROOT / name).rglob("*.py"):
            folder = path.parent
            dotted = ".".join(folder.relative_to(ROOT).parts)
            assert dotted in package.packages, f"{path.relative_to(ROOT)} is in no package (no __init__.py?)"
    assert {name.split(".")[0] for name in package.packages} <= names


def test_sources_and_templates_travel(package):
    for name, declared in package.package_data.items():
        for suffix in (".cpp", ".cu", ".h", ".cuh", ".j2"):
            for path in (ROOT / name).rglob(f"*{suffix}"):
                assert str(path.relative_to(ROOT / name)) in declared
    assert {"renderer/renderer.cpp", "demo/page.html.j2"} <= set(package.package_data["bevnext_world"])


def test_executables_go_where_ros2_run_looks(package):
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    assert config["install"]["install_scripts"] == "$base/lib/bevnext_ros"
    assert config["develop"]["script_dir"] == "$base/lib/bevnext_ros"
    scripts = {line.split("=")[0].strip() for line in package.entry_points["console_scripts"]}
    assert scripts == {"bevnext", "detector_node", "nuscenes_to_bag"}


def test_interpreter_of_the_executables(package, tmp_path):
    """setup.py, in a copy: an environment with torch beside it is named, else PATH decides."""

    def executable(**changes):
        env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | changes
        code = (
            "import setuptools\n"
            "from distutils.core import run_setup\n"
            "package = run_setup('setup.py', stop_after='init')\n"
            "print(package.get_option_dict('build_scripts')['executable'][1])"
        )
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    (tmp_path / "setup.py").write_text((ROOT / "setup.py").read_text())
    assert executable() == "/usr/bin/env python3"
    (tmp_path / ".venv/lib/python3.12/site-packages/torch").mkdir(parents=True)
    assert executable() == str(tmp_path / ".venv/bin/python")
    (tmp_path / "other/lib/python3.12/site-packages/torch").mkdir(parents=True)
    assert executable(VIRTUAL_ENV=str(tmp_path / "other")) == str(tmp_path / "other/bin/python")
    assert executable(VIRTUAL_ENV=str(tmp_path / "none")) == str(tmp_path / ".venv/bin/python")


def test_continuous_integration_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1].startswith("exec make test")


def make_dry(*arguments: str) -> str:
    """What make would run, without what a surrounding `make test` hands down."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_demo_needs_nothing_and_takes_a_data_set():
    alone = make_dry("demo")
    assert re.findall(r"setup_environment.py (\w+)", alone) == ["demo"]
    assert '.venv/bin/bevnext demo  --out "demo"' in alone and "detect" not in alone
    given = make_dry("demo", "DATAROOT=/data", "CHECKPOINT=a.safetensors", "OUT=results")
    assert 'bevnext detect --dataroot "/data" --version "v1.0-mini"' in given
    assert '--checkpoint "a.safetensors" --out "results"' in given and "bevnext demo" not in given


def test_demo_with_ros_sets_ros_up():
    assert re.search(r"setup_environment.py all.*scripts/demo_ros.py", make_dry("demo-ros"), re.DOTALL)


@pytest.fixture
def run_checks():
    spec = importlib.util.spec_from_file_location("run_checks", ROOT / "scripts" / "run_checks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_tests_run_those_on_jazzy_and_on_numpy_1_too(monkeypatch, run_checks, tmp_path, capsys):
    """With the libraries of each one's environment alone; where it is missing, continuous integration fails."""
    assert re.search(r"setup_environment.py test.*run_checks.py -n", make_dry("test"), re.DOTALL)
    assert re.search(r"setup_environment.py jazzy.*--jazzy-only -n", make_dry("test-jazzy"), re.DOTALL)
    called = []

    codes = {}

    def run(*arguments, python=sys.executable, output=None):
        called.append((python, arguments))
        if output:
            output.write(f"said by {python}")
        return codes.get(python, 0)

    monkeypatch.setattr(run_checks, "run", run)
    monkeypatch.setattr(run_checks, "REPORTS", tmp_path)
    monkeypatch.setattr(run_checks, "JAZZY", tmp_path / "bin" / "python")
    monkeypatch.setattr(run_checks, "NUMPY_1", tmp_path / "numpy1" / "bin" / "python")
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    monkeypatch.setattr(sys, "argv", ["run_checks", "-n", "2"])
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    monkeypatch.delenv("CI", raising=False)
    assert run_checks.main() == 0 and {python for python, _ in called} == {sys.executable}
    monkeypatch.setenv("CI", "true")
    assert run_checks.main() == 1
    assert re.search(r"failed: no Jazzy in .*, no numpy 1 in ", capsys.readouterr().out)
    for path in (run_checks.JAZZY, run_checks.NUMPY_1):
        path.parent.mkdir(parents=True)
        path.touch()
    called.clear()
    assert run_checks.main() == 0
    assert f"said by {run_checks.NUMPY_1}" in capsys.readouterr().out
    # what waits beside what computes, and together everything once
    ros, others = sorted(a[2:] for python, a in called if python == sys.executable and "pytest" in a)
    assert others == ("--junitxml=" + os.path.relpath(tmp_path / "pytest.xml", ROOT), "-n", "2", "--ignore=tests/ros")
    assert ros[1:] == ("-n", "2", "-n", "1", "-p", "no:cacheprovider", "tests/ros")
    (jazzy, arguments), (numpy1, tests) = (call for call in called if call[0] != sys.executable)
    assert jazzy == str(run_checks.JAZZY) and arguments[-3:] == ("-m", "ros and not slow", "tests/ros")
    assert numpy1 == str(run_checks.NUMPY_1) and " ".join(tests).endswith(" ".join(run_checks.NUMPY_1_TESTS))
    assert all((ROOT / name).is_file() for name in run_checks.NUMPY_1_TESTS[2:])
    codes[str(run_checks.JAZZY)] = 1
    assert run_checks.main() == 1
    assert "failed: pytest-jazzy\n" in capsys.readouterr().out
    codes.clear()
    for chosen in ("tests/core/test_boxes.py::test_x", "-kboxes", "--lf"):
        monkeypatch.setattr(sys, "argv", ["run_checks", "-n", "2", chosen])
        called.clear()
        assert run_checks.main() == 0
        assert [a[3:] for _, a in called if "pytest" in a] == [("-n", "2", chosen)]
    monkeypatch.setattr(sys, "argv", ["run_checks", "-n", "2"])
    run_checks.NUMPY_1.unlink()
    assert run_checks.main() == 1
    # numpy 1 has no build for it
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert run_checks.main() == 0
    monkeypatch.setenv("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "1")
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join([f"{sys.prefix}/lib", "/opt/cuda"]))
    clean = run_checks.clean_environment()
    assert clean["LD_LIBRARY_PATH"] == "/opt/cuda" and "_ROS_WHEELS_BOOTSTRAP_COMPLETE" not in clean


def test_no_more_is_begun_beside_what_is_interrupted(run_checks, monkeypatch, tmp_path):
    monkeypatch.setattr(run_checks, "REPORTS", tmp_path)
    begun, over = threading.Event(), threading.Event()
    ran = []

    def first(output=None):
        assert begun.wait(60)
        over.set()
        raise KeyboardInterrupt

    def beside(name):
        def started(output):
            ran.append(name)
            begun.set()
            assert over.wait(60)
            time.sleep(0.2)
            output.write(f"{name} has run")
            return (1, 0, 0), ""

        return started

    with pytest.raises(KeyboardInterrupt):
        run_checks.run_side_by_side(first, [beside("one"), beside("two")])
    assert ran == ["one"]


def test_summary_counts_every_case_once(tmp_path, run_checks):
    report = tmp_path / "pytest.xml"
    report.write_text(
        "<testsuites><testsuite>"
        "<testcase name='a'/><testcase name='b'/><testcase name='c'><failure/></testcase>"
        "<testcase name='d'><error/></testcase><testcase name='e'><skipped/></testcase>"
        "<testcase name='f'><failure/><error/></testcase>"
        "</testsuite></testsuites>"
    )
    assert run_checks.read_report(report) == (2, 3, 1)
