# SPDX-License-Identifier: Apache-2.0
"""Compiled code and its cache: what is damaged is built again, what cannot be used says why, nothing else is loaded.

Each look into the cache is a process of its own: loading what is not whole may end it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bevnext_core.files import CACHE_VARIABLE, cache_directory

CODE = """
import json, sys
from bevnext_core.ops import native

{before}
compile, count = native._compile, []
native._compile = lambda *arguments: (count.append(1), compile(*arguments))
try:
    for _ in range(2):
        answer = native.load(sys.argv[1]).answer()
        native.load.cache_clear()
except native.NativeBuildError as error:
    answer = str(error)
print(json.dumps([answer, len(count)]))
"""
SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() {{ return {}; }}\n'


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one library, which answers 42."""
    folder = tmp_path_factory.mktemp("native") / "cache"
    (folder.parent / "part.cpp").write_text(SOURCE.format(42))
    assert load(folder, **{CACHE_VARIABLE: str(folder)}) == (42, 1)
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "part.cpp").write_text(SOURCE.format(42))
    return tmp_path / "cache"


@pytest.fixture
def cache(empty: Path, built: Path) -> Path:
    """A copy of that cache."""
    return Path(shutil.copytree(built, empty))


def load(cache: Path, before: str = "", **environment: str) -> tuple[int | str, int]:
    """What the code answers when it is loaded twice, or the error; and how often something was compiled for it."""
    command = [sys.executable, "-c", CODE.format(before=before), str(cache.parent / "part.cpp")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)
    assert run.returncode == 0, f"the process ended with {run.returncode}: {run.stderr}"
    assert not run.stderr
    answer, compiled = json.loads(run.stdout)
    return answer, compiled


def library_in(cache: Path) -> Path:
    (library,) = cache.glob("part-*.so")
    return library


def test_built_once(empty: Path) -> None:
    assert load(empty) == (42, 1)
    assert load(empty) == (42, 0)
    assert empty.stat().st_mode & 0o777 == 0o700
    assert library_in(empty).stat().st_mode & 0o777 == 0o600
    (empty.parent / "part.cpp").write_text(SOURCE.format(43))
    assert load(empty) == (43, 1)


def emptied(library: Path) -> None:
    library.write_bytes(b"")


def cut(library: Path) -> None:
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])


def flipped(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def without_its_end(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:-1])


def zeros_of_the_same_size(library: Path) -> None:
    library.write_bytes(bytes(library.stat().st_size))


def text(library: Path) -> None:
    library.write_text("<html>not found</html>\n")


def of_an_earlier_version(library: Path) -> None:
    """Without a digest."""
    library.write_bytes(library.read_bytes().partition(b"bevnext")[0])


def another_machines(library: Path) -> None:
    """Whole, but for a processor that this one is not."""
    from bevnext_core.ops.native import _seal

    content = bytearray(library.read_bytes()[: -len(_seal(b""))])
    content[18:20] = (0x1234).to_bytes(2, sys.byteorder)  # e_machine
    library.write_bytes(content + _seal(bytes(content)))


def dangling_link(library: Path) -> None:
    library.unlink()
    library.symlink_to("gone")


def link_to_itself(library: Path) -> None:
    library.unlink()
    library.symlink_to(library.name)


def open_to_others(library: Path) -> None:
    """Anybody may have written it: what it says is not what counts."""
    library.chmod(0o666)


@pytest.mark.parametrize(
    "damage",
    [
        emptied,
        cut,
        flipped,
        without_its_end,
        zeros_of_the_same_size,
        text,
        of_an_earlier_version,
        another_machines,
        dangling_link,
        link_to_itself,
        open_to_others,
    ],
)
def test_what_cannot_be_used_is_built_again(damage: Callable[[Path], None], cache: Path) -> None:
    damage(library_in(cache))
    assert load(cache) == (42, 1)


def test_a_umask_that_lets_others_write(empty: Path) -> None:
    assert load(empty, "import os; os.umask(0)") == (42, 1)


# ------------------------------------------------------------------------------------------- what cannot be mended
def refused(cache: Path, *words: str, before: str = "", **environment: str) -> int:
    message, compiled = load(cache, before, **environment)
    assert isinstance(message, str) and all(word in message for word in words), message
    assert "\n" not in message
    return compiled


def test_a_folder_in_its_place(cache: Path) -> None:
    library = library_in(cache)
    library.unlink()
    (library / "something").mkdir(parents=True)
    refused(cache, library.name, "directory")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o770])
def test_a_folder_that_others_may_write_to(mode: int, cache: Path) -> None:
    before = "from types import SimpleNamespace as Of\nnative.grp.getgrgid = lambda _: Of(gr_name='robots', gr_mem=[])"
    cache.chmod(mode)
    assert refused(cache, str(cache), "others may write", "chmod 700", CACHE_VARIABLE, before=before) == 0
    cache.chmod(0o750)
    assert load(cache, before) == (42, 0)


def test_the_users_own_group_is_nobody_else(cache: Path) -> None:
    """On many systems everybody has a group of his own name, and what he makes is writable for it."""
    cache.chmod(0o770)
    group = "native.grp.getgrgid = lambda _: Of(gr_name={}, gr_mem=[{}])"
    before = "from types import SimpleNamespace as Of\nme = native.pwd.getpwuid(native.os.getuid()).pw_name\n"
    assert load(cache, before + group.format("me", "")) == (42, 0)
    assert load(cache, before + group.format("me", "me")) == (42, 0)
    assert refused(cache, "others may write", before=before + group.format("me", "me, 'friend'")) == 0


def test_what_somebody_else_owns(cache: Path) -> None:
    before = "stat, me = native.Path.stat, native.os.getuid()\n"
    before += (
        "def of_another(*a, **k): s = stat(*a, **k); return native.os.stat_result((*s[:4], me + 7, *s[5:]))\n"
    )
    before += "native.Path.stat = of_another"
    assert refused(cache, "others may write", before=before) == 0


def test_noexec(cache: Path) -> None:
    before = "from types import SimpleNamespace as Of\nnative.os.statvfs = lambda _: Of(f_flag=native.os.ST_NOEXEC)"
    assert refused(cache, str(cache), "noexec", CACHE_VARIABLE, before=before) == 0


def test_a_full_disk(empty: Path) -> None:
    """No file can grow beyond 4 KiB: the compiler fails, and nothing is left behind."""
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    refused(empty, "part.cpp", before=before)
    assert not list(empty.iterdir())


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exit 0", ("cannot be used",)),  # says that it compiled, and wrote nothing
        ('for last; do :; done; [ $# = 1 ] || echo not a library > "$last"', ("cannot be used",)),
        ("exit 3", ("could not compile", "3")),
        ("printf 'part.cpp:1: error: \\377\\n' >&2; exit 1", ("could not compile", "error")),  # not in UTF-8
        ('[ "$1" = --version ] && rm "$0"', ("does not run", "No such file")),  # goes away between two calls
        ("kill -9 $$", ("could not compile", "-9")),
    ],
)
def test_compilers_that_do_not(text: str, words: tuple[str, ...], empty: Path, tmp_path: Path) -> None:
    refused(empty, *words, CXX=script(tmp_path / "c++", text))
    assert not empty.is_dir() or not list(empty.glob(".*"))


def test_no_compiler(empty: Path, tmp_path: Path) -> None:
    assert refused(empty, "no C++ compiler found", "CXX", PATH=str(tmp_path), CXX="gone") == 0


# ------------------------------------------------------------------------------------------- the folder
def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert cache_directory() == tmp_path / "home/.cache/bevnext_ros"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg/bevnext_ros"
    monkeypatch.setenv(CACHE_VARIABLE, "~/mine")
    assert cache_directory() == tmp_path / "home/mine" and cache_directory().is_dir()


def test_without_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_directory()
    assert folder == tmp_path / f"bevnext_ros-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
