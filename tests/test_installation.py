# SPDX-License-Identifier: Apache-2.0
"""What set-up decides: the builds of PyTorch, the files of pins, uv or pip. Nothing is installed here."""

from __future__ import annotations

import http.server
import importlib.metadata
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_packaging import read_pins
from tests.test_ros_environment import load_script

HASH = "0123456789abcdef" * 4
VERSIONS = {"torch": "2.15.0", "torchvision": "0.29.2"}


def wheel(name: str, version: str, python: str = "cp312", machine: str = "manylinux_2_28_x86_64") -> str:
    return f'<a href="/whl/{name}-{version}%2Bcpu-{python}-{python}-{machine}.whl#sha256={HASH}">wheel</a>\n'


@pytest.fixture
def builds() -> ModuleType:
    module = load_script("torch_builds")
    module.TIMEOUT = 1.0
    return module


@pytest.fixture
def index() -> Iterator[tuple[str, dict[str, str]]]:
    """(address, pages) of an index of packages on this machine; a page that is not in ``pages`` is missing."""
    pages: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.strip("/"))
            self.send_response(404 if page is None else 200)
            self.end_headers()
            self.wfile.write((page or "").encode())

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/cpu", pages
    server.shutdown()
    server.server_close()


def test_a_fitting_pair_of_cpu_builds_is_taken_with_its_hashes(builds, index) -> None:
    address, pages = index
    others = wheel("torch", "2.14.0") + wheel("torch", "2.15.0", "cp313") + wheel("torch", "2.15.0", "cp312t")
    others += wheel("torch", "2.15.0", machine="manylinux_2_28_aarch64") + wheel("torch", "2.15.0", machine="win_amd64")
    others += wheel("torch", "2.15.0", machine="musllinux_1_2_x86_64")
    pages["cpu/torch"] = others + wheel("torch", "2.15.0")
    pages["cpu/torchvision"] = wheel("torchvision", "0.29.2")
    found = builds.cpu_pair(address, VERSIONS, "cp312", "x86_64").splitlines()
    host = address.removesuffix("/cpu")
    assert found == [
        f"{name} @ {host}/whl/{name}-{version}%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl --hash=sha256:{HASH}"
        for name, version in VERSIONS.items()
    ]
    pages["cpu/torch"] = others
    with pytest.raises(builds.NoPairError, match=r"has no torch 2\.15\.0\+cpu with a hash for cp312 on x86_64"):
        builds.cpu_pair(address, VERSIONS, "cp312", "x86_64")


@pytest.mark.parametrize(
    "torchvision",
    [
        None,
        wheel("torchvision", "0.29.1"),
        wheel("torchvision", "0.30.0"),
        wheel("torchvision", "0.29.2").replace("%2Bcpu", ""),
        wheel("torchvision", "0.29.2").replace("cpu", "cu132"),
        wheel("torchvision", "0.29.2", python="cp311"),
        wheel("torchvision", "0.29.2").replace("#sha256=", "#md5="),
    ],
    ids=["none", "older", "newer", "plain", "of CUDA", "other Python", "no hash"],
)
def test_torch_without_its_torchvision_is_not_taken(builds, index, torchvision) -> None:
    address, pages = index
    pages["cpu/torch"] = wheel("torch", "2.15.0")
    if torchvision is not None:
        pages["cpu/torchvision"] = torchvision
    with pytest.raises(builds.NoPairError, match="torchvision"):
        builds.cpu_pair(address, VERSIONS, "cp312", "x86_64")


def test_an_index_that_does_not_answer_is_no_error(builds, index, monkeypatch, capsys) -> None:
    pins = Path(load_script("setup_environment").PINS["torch"])
    monkeypatch.setattr(builds, "has_nvidia_driver", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        monkeypatch.setenv("TORCH_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert builds.choose_torch("", pins) == ("cuda", "")
    for bad in ("http://127.0.0.1:9", "http://nowhere.invalid/cpu", "no address"):
        monkeypatch.setenv("TORCH_INDEX", bad)
        assert builds.choose_torch("cpu", pins) == ("cuda", "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("setup: PyTorch with CUDA, 3.0 GB to download") for line in lines), lines
    assert all("no CPU builds: " in line and "does not answer" in line for line in lines), lines


def test_the_builds_are_found_out_or_told(builds, index, monkeypatch, tmp_path) -> None:
    address, pages = index
    minor = sys.version_info[1]
    pins = tmp_path / "torch.txt"
    pins.write_text(
        "# The wheels are 2997 MB.\n"
        f'torch==2.14.1 ; python_version <= "3.{minor - 1}" \\\n    --hash=sha256:{HASH}\n'
        f'torch==2.15.0 ; python_version >= "3.{minor}" \\\n    --hash=sha256:{HASH}\n'
        f"torchvision==0.29.2 \\\n    --hash=sha256:{HASH}\n"
    )
    assert builds.torch_versions(pins) == VERSIONS
    machine = f"linux_{builds.platform.machine()}"
    for name, version in VERSIONS.items():
        pages[f"cpu/{name}"] = wheel(name, version, f"cp3{minor}", machine)
    monkeypatch.setenv("TORCH_INDEX", address)
    monkeypatch.setattr(builds, "has_nvidia_driver", lambda: False)
    kind, pair = builds.choose_torch("", pins)
    assert kind == "cpu" and pair.count(HASH) == 2
    assert builds.choose_torch("cuda", pins) == ("cuda", "")
    monkeypatch.setattr(builds, "has_nvidia_driver", lambda: True)
    assert builds.choose_torch("", pins) == ("cuda", "")
    assert builds.choose_torch("cpu", pins) == ("cpu", pair)


@pytest.mark.parametrize("minor", range(10, 15))
def test_the_pinned_releases_are_those_of_the_running_python(builds, monkeypatch, minor) -> None:
    path = Path(load_script("setup_environment").PINS["torch"])
    monkeypatch.setattr(builds.sys, "version_info", (3, minor, 0))
    pinned = read_pins(path, f"3.{minor}")
    assert builds.torch_versions(path) == {name: pinned[name] for name in VERSIONS}


# --- what is installed ------------------------------------------------------------------------------------


@pytest.fixture
def setup(monkeypatch, tmp_path) -> ModuleType:
    """scripts/setup_environment.py in an empty folder, whose installations are recorded: what they say of PyTorch."""
    module = load_script("setup_environment")
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "VENV_PYTHON", tmp_path / ".venv" / "bin" / "python")
    for name in ("ROS_DISTRO", "TORCH", "TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    module.installed, module.choices, module.broken = [], [], False

    def create() -> None:
        (module.VENV / "bin").mkdir(parents=True, exist_ok=True)

    def choose(wanted: str, pins: Path) -> tuple[str, str]:
        module.choices.append(wanted)
        return ("cuda", "") if wanted == "cuda" else ("cpu", "torch @ here\ntorchvision @ here")

    def install(venv: Path, *arguments: object, what: str, into: Path | None = None) -> None:
        if "-r" in arguments:
            module.installed.append((venv / "requirements.txt").read_text())

    def run(command: list[object], what: str, env: object = None) -> None:
        if module.broken:
            raise module.SetupError("no torchvision")

    for name, function in {"create_venv": create, "choose_torch": choose, "install": install, "run": run}.items():
        monkeypatch.setattr(module, name, function)
    monkeypatch.setattr(module, "venv_fits", lambda: (module.VENV / "bin").is_dir())
    return module


def test_the_demo_has_no_tools_and_a_repeat_does_nothing(setup) -> None:
    setup.setup_packages("demo")
    (demo,) = setup.installed
    assert "\nnumpy==2" in demo and "\nnuscenes-devkit==" in demo and "\npip==" in demo
    assert not any(f"\n{name}==" in demo for name in ("pytest", "ruff", "mypy", "tensorboard", "onnx"))
    setup.setup_packages("demo")
    assert len(setup.installed) == 1
    setup.setup_packages("base")
    setup.setup_packages("demo")
    assert len(setup.installed) == 2 and "\npytest==" in setup.installed[1], "base has all that the demo needs"
    assert setup.choices == [""], "once"


def test_cpu_builds_replace_torch_and_its_libraries(setup, monkeypatch) -> None:
    setup.setup_packages("demo")
    assert "torch @ here\ntorchvision @ here\n" in setup.installed[0]
    assert "\ntorch==" not in setup.installed[0] and "\nnvidia-" not in setup.installed[0]
    # other builds: a new environment, for what belongs to the old ones is not known to anybody
    (setup.VENV / "old").touch()
    monkeypatch.setenv("TORCH", "cuda")
    setup.setup_packages("demo")
    assert "\ntorch==" in setup.installed[1] and "\nnvidia-" in setup.installed[1] and "@" not in setup.installed[1]
    assert not (setup.VENV / "old").exists()
    monkeypatch.delenv("TORCH")
    setup.setup_packages("demo")
    setup.setup_packages("base")
    assert len(setup.installed) == 3 and "\ntorch==" in setup.installed[2], "what was chosen stays chosen"
    monkeypatch.setenv("TORCH", "gpu")
    with pytest.raises(setup.SetupError, match="TORCH=gpu: either cpu or cuda"):
        setup.setup_packages("demo")


def test_cpu_builds_that_cannot_be_imported_give_way_to_the_plain_ones(setup, capsys) -> None:
    setup.broken = True
    setup.setup_packages("demo")
    assert [("torch @ here" in text, "\ntorch==" in text) for text in setup.installed] == [(True, False), (False, True)]
    assert "do not do here (no torchvision)" in capsys.readouterr().out


@pytest.mark.parametrize(("distribution", "version", "kept"), [("jazzy", (3, 12), True), ("", (3, 12), False),
                                                               ("lyrical", (3, 14), False)])  # fmt: skip
def test_a_distribution_keeps_numpy_below_2(setup, monkeypatch, distribution, version, kept) -> None:
    monkeypatch.setenv("ROS_DISTRO", distribution)
    monkeypatch.setattr(sys, "version_info", (*version, 1))
    setup.setup_packages("base")
    (text,) = setup.installed
    assert ("\nnumpy==1.26" in text, "\nnumpy==2" in text) == (kept, not kept)
    assert text.count("\nopencv-python-headless==") == 1


# --- uv and pip -------------------------------------------------------------------------------------------


@pytest.fixture
def installer(monkeypatch, tmp_path) -> ModuleType:
    """scripts/installer.py with commands that are recorded, and an environment with pip."""
    module = load_script("installer")
    module.commands, module.settings, module.uv = [], {}, True
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip").touch()

    def run(command: list[object], what: str, env: object = None) -> None:
        module.commands.append([str(part) for part in command])
        if command[0] == "/opt/uv" and not module.uv:
            raise module.SetupError("no")

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "pip_settings", lambda python: module.settings)
    monkeypatch.setattr(module.shutil, "which", lambda name: "/opt/uv")
    for name in [name for name in os.environ if name.startswith(("UV_", "SSL_"))]:
        monkeypatch.delenv(name)
    return module


def test_uv_is_used_where_it_is_and_pip_otherwise(installer, monkeypatch, tmp_path) -> None:
    def programs() -> list[str]:
        installer.commands.clear()
        installer.install(tmp_path, "-r", "file", what="installing")
        assert all(command[-2:] == ["-r", "file"] for command in installer.commands)
        return ["uv" if command[0] == "/opt/uv" else "pip" for command in installer.commands]

    assert programs() == ["uv"]
    python = str(tmp_path / "bin" / "python")
    assert installer.commands[0][1:6] == ["pip", "install", "--compile-bytecode", "--python", python]
    installer.uv = False
    assert programs() == ["uv", "pip"]
    installer.settings = {"no-index": "true"}
    assert programs() == ["pip"]
    installer.settings = {}
    monkeypatch.setattr(installer.shutil, "which", lambda name: None)
    assert programs() == ["pip"]


def test_uv_gets_pips_indexes_unless_it_has_its_own(installer, monkeypatch) -> None:
    settings = {"index-url": "https://a/simple", "extra-index-url": "https://b\nhttps://c", "find-links": "/x /y"}
    found = installer.uv_environment(settings | {"cert": "/ca.pem", "timeout": "9"})
    assert found["UV_DEFAULT_INDEX"] == "https://a/simple" and found["UV_INDEX"] == "https://b https://c"
    assert found["UV_FIND_LINKS"] == "/x,/y" and found["SSL_CERT_FILE"] == "/ca.pem"
    assert found["PATH"] == os.environ["PATH"]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://own")
    assert installer.uv_environment(settings) == dict(os.environ)


def test_pips_settings_are_those_of_its_files_and_of_the_environment(monkeypatch) -> None:
    # importing pip, or looking for it, would turn setuptools' distutils off for the whole process
    if not any(distribution.name == "pip" for distribution in importlib.metadata.distributions()):
        pytest.skip("this environment has no pip")
    monkeypatch.setenv("PIP_INDEX_URL", "https://a/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://b https://c")
    found = load_script("installer").pip_settings(Path(sys.executable))
    assert (found["index-url"], found["extra-index-url"]) == ("https://a/simple", "https://b https://c")
