# SPDX-License-Identifier: Apache-2.0
"""PyTorch's files, read without running anything: tensors and plain values. Other files are called what they are."""

from __future__ import annotations

import codecs
import contextlib
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from bevnext_core.errors import CheckpointError
from bevnext_core.files import user_path

_AGAIN = "download it again"
_BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer in place of the file: fetch it with 'git lfs pull', or "
    + _AGAIN,
    b"<": f"is a web page in place of the file: {_AGAIN}, from the file's own address",
    b"\x1f\x8b": "is a gzip archive: unpack it first",
    b"BZh": "is a bzip2 archive: unpack it first",
    b"\xfd7zXZ": "is an xz archive: unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"\x89HDF": "is an HDF5 file, which holds no PyTorch checkpoint",
    b"\x93NUMPY": "is a NumPy array, no PyTorch checkpoint",
}
_NAME_LIMIT, _NAMES = 160, 3


def existing_file(path: str | Path) -> Path:
    """The file. Raises CheckpointError: there is none."""
    path = user_path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, no checkpoint")
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    return path


def safe_torch_load(path: str | Path) -> Any:
    """``torch.load`` that only ever builds tensors, plain containers and numbers (NumPy's scalars among them).

    Raises:
        CheckpointError: when the file is missing, damaged, something else (says what), or holds another type (which
            is named).
    """
    path = existing_file(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings(), safe_globals(_NUMPY):
            types = _refused_types(path)
            if not types:
                warnings.filterwarnings("ignore", "Detected pickle protocol")  # nobody needs it
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything here: its own errors, pickle's, a zip reader's
        refusal = str(error) if isinstance(error, pickle.UnpicklingError) else ""
        found = re.search(r"GLOBAL ([\w.]+)", refusal) or re.search(r"class [`']?([\w.]+)", refusal)
        types = [found[1]] if found else _types_in_pickle(path)
    if types:
        raise CheckpointError(
            f"{path} holds an object of type {listed(types, _NAMES)}; only tensors and plain values are loaded, "
            f"because other types can run code"
        )
    # PyTorch's own words advise to unpickle freely
    raise CheckpointError(f"{path} {what_it_is(path) or 'is no PyTorch checkpoint, or is damaged'}")


def is_pytorch_file(path: Path) -> bool:
    """A zip archive or a pickle. A safetensors file may begin like one too, but its ninth byte opens a JSON header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] != b"{" and (zipfile.is_zipfile(path) or head[:1] == b"\x80")


def what_it_is(path: Path) -> str:
    """``is a web page ...``: what a file is that is no checkpoint, and what to do; empty where nothing is known."""
    with path.open("rb") as file:
        head = file.read(512)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return f"is empty: {_AGAIN}"
    if not text.strip(b"\0"):
        return f"begins with nothing but zeros, it was not written whole: {_AGAIN}"
    for beginning, what in _BEGINNINGS.items():
        if text.startswith(beginning) or head.startswith(beginning):
            return what
    if head[:2] == b"PK":
        return _what_zip(path)
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if head[8:9] == b"{":
        return "is a safetensors file, not one of PyTorch's"
    try:
        words = codecs.getincrementaldecoder("utf-8")().decode(text)  # the head may end within a letter
    except UnicodeDecodeError:
        return ""
    line = words.splitlines()[0]
    return f"is a text, no checkpoint; it begins {line[:60]!r}" if line.isprintable() else ""


def _what_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return f"is an archive that is not whole: {_AGAIN}"
    if any(name.endswith("constants.pkl") for name in names):
        return "is a TorchScript archive, which holds a program; what is wanted is a state dict"
    if any(name.endswith(".pt2") for name in names):
        return "is a compiled package, not a checkpoint"
    if not any(name.endswith("data.pkl") for name in names):
        return f"is a zip archive, but not PyTorch's (it holds {listed(names, _NAMES) or 'nothing'})"
    return f"is a damaged PyTorch file: {_AGAIN}"


def listed(names: list[str], limit: int) -> str:
    """The first names with commas, each cut to a readable length, and how many more there are."""
    short = [name if len(name) <= _NAME_LIMIT else name[: _NAME_LIMIT - 3] + "..." for name in names[:limit]]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(short) + more


def _refused_types(path: Path) -> list[str]:
    """What PyTorch would refuse; of a plain pickle only long names, over whose refusal it would sit for minutes."""
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return sorted(get_unsafe_globals_in_checkpoint(path))
    return [name for name in _types_in_pickle(path) if len(name) > _NAME_LIMIT]


def _types_in_pickle(path: Path) -> list[str]:
    """What plain pickles, one after the other, would import, read off their instructions without running them."""
    types: dict[str, None] = {}
    with path.open("rb") as file, contextlib.suppress(ValueError):  # no pickle, or its rest is missing
        while file.peek(1)[:1] == b"\x80":
            strings: list[str] = []
            memo: dict[Any, str] = {}
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    types[str(argument).replace(" ", ".")] = None
                elif opcode.name == "STACK_GLOBAL":
                    types[".".join(strings[-2:])] = None
                elif isinstance(argument, str):
                    strings.append(argument)
                elif opcode.name == "MEMOIZE":
                    memo[len(memo)] = strings[-1] if strings else ""
                elif "BINGET" in opcode.name:
                    strings.append(memo.get(argument, ""))
    return list(types)


class _Number:
    """Stands for ``numpy.dtype`` while a file is read; knows numbers and texts only, whose bytes cannot do harm."""

    def __init__(self, kind: str, *options: bool) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|U[1-9]\d{0,3}", kind):
            raise pickle.UnpicklingError(f"class numpy.dtype of kind {kind!r}")
        self.kind, self.order = kind, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(number: _Number, data: bytes) -> bool | int | float | str:
    """Stands for NumPy's function that makes a scalar of its bytes."""
    value: bool | int | float | str = np.frombuffer(data, number.order + number.kind, 1)[0].item()
    return value


_NUMPY = [(_Number, "numpy.dtype")] + [(_scalar, f"numpy.{c}.multiarray.scalar") for c in ("core", "_core")]
