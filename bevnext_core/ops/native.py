"""C++ and CUDA parts: compiled on first use with the system's compilers, cached, and loaded through ctypes.

Each part is one source file with a C interface, so that neither Python's nor torch's headers are needed and
building takes seconds. The cached library's name holds a digest of the source, the flags, the compiler and
(where the code is tuned for it) the processor: a change of any of them builds anew, nothing goes stale.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bevnext_core.errors import BevnextError
from bevnext_core.files import atomic_path

CACHE_VARIABLE = "BEVNEXT_CACHE_DIR"
BASE_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden")
CUDA_FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden")
# The cards (compute capabilities) that CUDA parts are written for; newer ones compile the last one's PTX.
CUDA_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0))
BUILD_TIMEOUT = 300.0

_log = logging.getLogger(__name__)


class NativeBuildError(BevnextError):
    """There is no C++ or CUDA compiler, or it failed."""


def cache_directory() -> Path:
    """Where built libraries (and other things that can be made again) are kept; created when missing.

    ``BEVNEXT_CACHE_DIR``, else ``XDG_CACHE_HOME/bevnext_ros``, else ``~/.cache/bevnext_ros``; a private
    folder below the system's temporary one where that cannot be written.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bevnext_ros"
    try:
        base = base.expanduser()
        base.mkdir(parents=True, exist_ok=True)
        if os.access(base, os.W_OK):
            return base
    except (OSError, RuntimeError):
        pass
    # Not a shared name: somebody else's file must never be loaded as code.
    private = Path(tempfile.gettempdir()) / f"bevnext_ros-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise NativeBuildError(
            f"{private} belongs to another user: set {CACHE_VARIABLE} to a folder of yours"
        )
    return private


@functools.lru_cache(maxsize=1)
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


def load(source: str | Path, *, tuned: bool = True, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The shared library of one C++ source file, built when it is not in the cache.

    Args:
        source: path of the ``.cpp``.
        tuned: for this processor (``-march=native``). False gives the same results, bit for bit, on every
            processor of one architecture.
        flags: further compiler flags.

    Raises:
        NativeBuildError: no compiler, or the source does not compile; the message holds the first error.
    """
    return _load(str(Path(source).resolve()), tuned, tuple(flags))


@functools.lru_cache(maxsize=1)
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


def load_cuda(source: str | Path, capabilities: Sequence[tuple[int, int]]) -> ctypes.CDLL:
    """The shared library of one CUDA source file, built when it is not in the cache.

    Args:
        source: path of the ``.cu``.
        capabilities: the cards it shall run on. One that the compiler does not know yet gets the newest older
            PTX, which its driver compiles.

    Raises:
        NativeBuildError: no compiler, or the source does not compile; the message holds the first error.
    """
    return _load_cuda(str(Path(source).resolve()), tuple(capabilities))


@functools.cache
def _load_cuda(source: str, capabilities: tuple[tuple[int, int], ...]) -> ctypes.CDLL:
    command = cuda_compiler()
    return _built(Path(source), command, (*CUDA_FLAGS, *_cuda_targets(command, capabilities)), [])


def _cuda_targets(command: tuple[str, ...], capabilities: Sequence[tuple[int, int]]) -> list[str]:
    try:
        listed = subprocess.run([*command, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NativeBuildError(f"{command[0]} does not run: {error}") from error
    known = sorted(int(line.removeprefix("compute_")) for line in listed.stdout.split() if line[-1].isdigit())
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
        flags += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]
    return flags


@functools.cache
def _load(source: str, tuned: bool, flags: tuple[str, ...]) -> ctypes.CDLL:
    all_flags = (*BASE_FLAGS, *(("-march=native",) if tuned else ("-ffp-contract=off",)), *flags)
    return _built(Path(source), compiler(), all_flags, [_processor()] if tuned else [])


def _built(path: Path, command: tuple[str, ...], all_flags: tuple[str, ...], more: list[str]) -> ctypes.CDLL:
    """``more``: what else the cached file depends on."""
    parts = [_text(path), " ".join(all_flags), platform.machine(), _compiler_version(command), *more]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = cache_directory() / f"{path.stem}-{digest}.so"
    if not library.is_file():
        _log.info("compiling %s", path.name)
        with atomic_path(library) as temporary:
            _run([*command, *all_flags, str(path), "-o", str(temporary)], path.name)
    return ctypes.CDLL(str(library))


def _text(path: Path) -> str:
    """The source with the headers beside it that it includes."""
    text = path.read_text()
    headers = (path.parent / name for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE))
    return "\0".join([text, *(_text(header) for header in headers if header.is_file())])


def _run(command: list[str], name: str) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]} could not compile {name}: {error}") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise NativeBuildError(
            f"{command[0]} could not compile {name}: {lines[0] if lines else result.returncode}"
        )


def _compiler_version(command: tuple[str, ...]) -> str:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return result.stdout  # nvcc says its version further down


def _processor() -> str:
    """What ``-march=native`` depends on: a cache folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
