# SPDX-License-Identifier: Apache-2.0
"""C++ and CUDA parts: compiled on first use with the system's compilers, cached, and loaded through ctypes.

Each part is one source file with a C interface, so that neither Python's nor torch's headers are needed and
building takes seconds. The cached library's name holds a digest of the source, the flags, the compiler and
(where the code is tuned for it) the processor: a change of any of them builds anew, nothing goes stale. A digest of
the library itself stands behind it: one that is damaged is built again. What others may write to is not loaded.
"""

from __future__ import annotations

import ctypes
import functools
import grp
import hashlib
import logging
import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bevnext_core.errors import BevnextError
from bevnext_core.files import CACHE_VARIABLE, atomic_path, cache_directory

BASE_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden")
CUDA_FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden")
# The cards (compute capabilities) that CUDA parts are written for; newer ones compile the last one's PTX.
CUDA_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0))
BUILD_TIMEOUT = 300.0

_log = logging.getLogger(__name__)


class NativeBuildError(BevnextError):
    """There is no C++ or CUDA compiler, it failed, or what it built cannot be loaded."""


@functools.cache
def compiler() -> tuple[str, ...]:
    """The C++ compiler's command: ``CXX``, else c++, g++ or clang++.

    Raises:
        NativeBuildError: none is installed.
    """
    named = os.environ.get("CXX", "").split()
    if named and shutil.which(named[0]):
        return tuple(named)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    raise NativeBuildError("no C++ compiler found (c++, g++ or clang++): install one, or set CXX")


@functools.cache
def load(source: str | Path, *, tuned: bool = True, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The shared library of one C++ source file, built when it is not in the cache.

    Args:
        source: path of the ``.cpp``.
        tuned: for this processor (``-march=native``). False gives the same results, bit for bit, on every
            processor of one architecture.
        flags: further compiler flags.

    Raises:
        NativeBuildError: no compiler, the source does not compile (the message holds the first error), or what was
            built cannot be loaded.
    """
    all_flags = (*BASE_FLAGS, "-march=native" if tuned else "-ffp-contract=off", *flags)
    return _built(Path(source).resolve(), compiler(), all_flags, [_processor()] if tuned else [])


@functools.cache
def cuda_compiler() -> tuple[str, ...]:
    """nvcc's command: ``CUDACXX``, else below ``CUDA_HOME``, in PATH or below ``/usr/local/cuda``.

    Raises:
        NativeBuildError: none is installed.
    """
    candidates = [os.environ.get("CUDACXX", "")]
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(f"{home}/bin/nvcc")
    for name in (*candidates, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and (found := shutil.which(name)):
            return (found,)
    raise NativeBuildError("no CUDA compiler found (nvcc): install the CUDA toolkit, or set CUDA_HOME")


@functools.cache
def load_cuda(source: str | Path, capabilities: tuple[tuple[int, int], ...]) -> ctypes.CDLL:
    """The shared library of one CUDA source file, built when it is not in the cache.

    Args:
        source: path of the ``.cu``.
        capabilities: the cards it shall run on. One that the compiler does not know yet gets the newest older
            PTX, which its driver compiles.

    Raises:
        NativeBuildError: as :func:`load`.
    """
    command = cuda_compiler()
    return _built(Path(source).resolve(), command, (*CUDA_FLAGS, *_cuda_targets(command, capabilities)), [])


def _cuda_targets(command: tuple[str, ...], capabilities: Sequence[tuple[int, int]]) -> list[str]:
    listed = _run([*command, "--list-gpu-arch"]).stdout.split()
    known = sorted(int(line.removeprefix("compute_")) for line in listed if line[-1].isdigit())
    flags: list[str] = []
    for major, minor in capabilities:
        wanted = 10 * major + minor
        older = [number for number in known if number <= wanted]
        if not older:
            raise NativeBuildError(f"{command[0]} cannot compile for compute capability {major}.{minor}")
        code = f"sm_{wanted}" if older[-1] == wanted else f"compute_{older[-1]}"
        flags += ["-gencode", f"arch=compute_{older[-1]},code={code}"]
    if len(capabilities) > 1:  # for cards that are newer than all of these
        newest = 10 * max(capabilities)[0] + max(capabilities)[1]
        flags += ["-gencode", f"arch=compute_{newest},code=compute_{newest}", "--threads", "0"]
    return flags


def _built(path: Path, command: tuple[str, ...], all_flags: tuple[str, ...], more: list[str]) -> ctypes.CDLL:
    """``more``: what else the cached file depends on."""
    version = _run([*command, "--version"]).stdout  # all of it: nvcc says its version further down
    parts = [_text(path), " ".join(all_flags), platform.machine(), version, *more]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = _folder() / f"{path.stem}-{digest}.so"
    if cached := _cached(library):
        return cached
    _log.info("compiling %s", path.name)
    try:
        with atomic_path(library, private=True) as temporary:
            _compile([*command, *all_flags, str(path), "-o", str(temporary)], path.name)
            content = temporary.read_bytes()
            with temporary.open("ab") as file:
                file.write(_seal(content))
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NativeBuildError(f"{path.name} was compiled, but {library} cannot be used: {error}") from error


def _cached(library: Path) -> ctypes.CDLL | None:
    """What an earlier process built, when it is whole and nobody else's: loading half a file would end the process."""
    try:
        with library.open("rb") as file:
            status, content = os.fstat(file.fileno()), file.read()
        if _others_may_write(status):
            problem: object = "others may write to it"
        elif content[-len(_seal(b"")) :] != _seal(content[: -len(_seal(b""))]):
            problem = "it is not what was built"
        else:
            return ctypes.CDLL(str(library))
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = error
    _log.info("%s cannot be used, it is built again: %s", library, problem)
    return None


def _seal(content: bytes) -> bytes:
    """What stands behind a library, where the loader does not look: it was written to its end, and nothing changed."""
    return b"bevnext" + hashlib.sha256(content).digest()


def _folder() -> Path:
    """The cache, when code may be loaded from it."""
    try:
        folder = cache_directory().resolve()
        status, mount = folder.stat(), os.statvfs(folder).f_flag
    except (OSError, BevnextError) as error:
        raise NativeBuildError(str(error)) from error
    if _others_may_write(status):
        raise NativeBuildError(
            f"others may write to {folder}, and what is loaded from it runs: make it yours alone (chmod 700), "
            f"or set {CACHE_VARIABLE} to a folder that is"
        )
    if mount & getattr(os, "ST_NOEXEC", 0):
        raise NativeBuildError(
            f"{folder} is mounted noexec: set {CACHE_VARIABLE} to a folder that code may be loaded from"
        )
    return folder


def _others_may_write(status: os.stat_result) -> bool:
    """Another user than this one and root; the group of the user's own name, with nobody else in it, is none."""
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return True
    return group.gr_name != user or any(member != user for member in group.gr_mem)


def _text(path: Path) -> str:
    """The source with the headers beside it that it includes."""
    text = path.read_text()
    headers = (path.parent / name for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE))
    return "\0".join([text, *(_text(header) for header in headers if header.is_file())])


def _compile(command: list[str], name: str) -> None:
    result = _run(command)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise NativeBuildError(
            f"{command[0]} could not compile {name}: {lines[0] if lines else result.returncode}"
        )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=BUILD_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]} does not run: {error}") from error


def _processor() -> str:
    """What ``-march=native`` depends on: a cache folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
