# SPDX-License-Identifier: Apache-2.0
"""Files that are no checkpoints are called what they are, on one short line; NumPy's scalars are read, nothing runs."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevnext_core.checkpoint import import_published, load_checkpoint, save_checkpoint
from bevnext_core.errors import CheckpointError
from bevnext_core.torch_files import safe_torch_load
from bevnext_tools.cli.main import main
from tests.paths import ROOT
from tests.published import build, published_state

SMALL2 = ROOT / "config" / "model" / "small_stage2.yaml"

PAGE = "<!doctype html><html><head><title>Sign in</title></head><body>Sign in</body></html>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return stream.getvalue()


def globals_of(*names: str) -> bytes:
    """A pickle that names things to import, one after the other."""
    return (
        b"\x80\x02"
        + b"".join(b"cmodule_%d\n%s\n0" % (n, name.encode()) for n, name in enumerate(names))
        + b"N."
    )


OTHER_FILES = {
    "page": (PAGE.encode(), "is a web page in place of the file: download it again"),
    "page after lines": (b"\xef\xbb\xbf\r\n \n" + PAGE.upper().encode(), "is a web page"),
    "page of XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "pointer": (POINTER.encode(), "is a Git LFS pointer in place of the file"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(4096), "was not written whole"),
    "text": (b"Entry not found", "is a text, no checkpoint; it begins 'Entry not found'"),
    "long text": (
        b"Access to this model is restricted. " * 1000,
        "is a text, no checkpoint; it begins 'Access to",
    ),
    "JSON": (b'{"error": "not found"}', "is a text, no checkpoint; it begins '{"),
    "zip": (
        zipped(a=b"1", b=b"2", c=b"3", d=b"4"),
        r"is a zip archive, .* \(it holds a, b, c and 1 more\)",
    ),
    "zip of much": (
        zipped(**{"x" * 3000 + str(n): b"" for n in range(20)}),
        "is a zip archive, but not PyTorch's",
    ),
    "empty zip": (zipped(), r"is a zip archive, but not PyTorch's \(it holds nothing\)"),
    "compiled package": (zipped(**{"encode.pt2": b"1"}), "is a compiled package"),
    "TorchScript": (zipped(**{"net/data.pkl": b"1", "net/constants.pkl": b"2"}), "is a TorchScript archive"),
    "half a zip": (
        saved({"a": torch.zeros(100)})[:700],
        "is an archive that is not whole: download it again",
    ),
    "gzip": (gzip.compress(b"weights"), "is a gzip archive: unpack it first"),
    "tar": (tarred(), "is a tar archive: unpack it first"),
    "NumPy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", "is a NumPy array"),
    "noise": (bytes(range(128, 256)) * 9, "is no PyTorch checkpoint, or is damaged"),
    "names": (
        globals_of(*("name" * 500 for _ in range(20))),
        "holds an object of type module_0.name.*; only tensors",
    ),
    "one name": (globals_of("name" * 8000), "holds an object of type module_0.name.*; only tensors"),
    "name in a zip": (
        zipped(**{"d/data.pkl": globals_of("n" * 30000), "d/version": b"3"}),
        "holds an object of type module_0.n.*; only tensors|is a damaged PyTorch file",
    ),
    "unpickled number": (
        pickle.dumps({"a": 1}),
        "is no PyTorch checkpoint, or is damaged",
    ),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_the_importer_says_what_a_file_is_on_one_short_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = OTHER_FILES[kind]
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        import_published(path, tmp_path / "out.safetensors")
    assert main(["import-checkpoint", str(path), "--out", str(tmp_path / "out.safetensors")]) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1 and len(text) < 900 and str(path) in text
    assert "weights_only" not in text and "nsafe" not in text
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_where_a_checkpoint_is_wanted_it_is_said_too(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(OTHER_FILES[kind][0])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert len(text) < 900 and str(path) in text and "weights_only" not in text and "header" not in text
    if kind not in ("noise", "unpickled number"):
        assert re.search(OTHER_FILES[kind][1], text), text


def test_a_converted_file_is_not_converted_again(tmp_path: Path) -> None:
    model = build("small2")
    save_checkpoint(tmp_path / "own.safetensors", model.state_dict(), model.config)
    for name in ("own.safetensors", "renamed.pth"):
        (tmp_path / "own.safetensors").rename(tmp_path / name)
        with pytest.raises(CheckpointError, match="is a checkpoint of this project already: there is"):
            import_published(tmp_path / name, tmp_path / "out.safetensors")
        (tmp_path / name).rename(tmp_path / "own.safetensors")


def test_a_safetensors_file_of_others_is_called_that(tmp_path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(3)}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="is a safetensors file, not one of PyTorch's"):
        import_published(tmp_path / "theirs.pth", tmp_path / "out.safetensors")


def test_a_folder_is_called_that(tmp_path: Path) -> None:
    for load in (safe_torch_load, load_checkpoint):
        with pytest.raises(CheckpointError, match="is a folder, no checkpoint"):
            load(tmp_path)


def test_weights_of_another_network_are_not_listed_by_the_thousand(tmp_path: Path) -> None:
    torch.save({f"backbone.layer.{n}.weight": torch.zeros(1) for n in range(1000)}, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"is no checkpoint of '.*': of .* entries it has 0, and 1000 others \(back"
    ) as c:
        import_published(tmp_path / "other.pth", tmp_path / "out.safetensors")
    assert len(str(c.value)) < 600
    torch.save(dict.fromkeys((f"name{n}" for n in range(3000)), 1), tmp_path / "values.pth")
    with pytest.raises(CheckpointError, match=r"3000 no tensors: name0, .* and 2980 more$") as c:
        import_published(tmp_path / "values.pth", tmp_path / "out.safetensors")
    assert len(str(c.value)) < 600


SCALARS: list[tuple[Any, Any]] = [
    *((np.dtype(f"{kind}").type(3), 3) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")),
    (np.float64(0.1), 0.1), (np.bool_(True), True), (np.str_("epoch"), "epoch"), (np.float64("inf"), float("inf")),
    (np.array(1.5, dtype=">f8")[()], 1.5), (np.int64(-(2**63)), -(2**63)),
]  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_scalars_of_numpy_are_read_as_plain_values(legacy: bool, tmp_path: Path) -> None:
    value = [scalar for scalar, _ in SCALARS]
    torch.save(value, tmp_path / "n.pth", _use_new_zipfile_serialization=not legacy)
    read = safe_torch_load(tmp_path / "n.pth")
    assert read == [plain for _, plain in SCALARS]
    assert {type(item) for item in read} == {int, float, bool, str}


def test_names_of_numpy_2_are_known(tmp_path: Path) -> None:
    """It moved its core to ``numpy._core``; a file of either is read with either."""
    old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    data = saved(np.float64(0.5))
    torch.save(np.float64(0.5), tmp_path / "n.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "n.pth").read_bytes()
    assert (old in data) != (new in data)
    (tmp_path / "n.pth").write_bytes(data.replace(old, new) if old in data else data.replace(new, old))
    assert safe_torch_load(tmp_path / "n.pth") == 0.5


def test_a_published_file_with_them_is_imported(tmp_path: Path) -> None:
    entries = published_state(build("small2"), "small2")
    meta = {"epoch": np.int64(12), "best": np.float32(0.5), "CLASSES": ["car"], "seed": None}
    torch.save({"state_dict": entries, "meta": meta}, tmp_path / "numpy.pth")
    import_published(tmp_path / "numpy.pth", tmp_path / "out.safetensors", SMALL2)
    load_checkpoint(tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.datetime64("2020-01-01"),
        lambda: np.array([object()], dtype=object),
        lambda: np.array([(1, 2.0)], dtype="i4,f8")[0],
        lambda: np.array([1.0, 2.0]),
        lambda: np.bytes_(b"a"),
        lambda: np.random.RandomState(0),
    ],
)
def test_other_things_of_numpy_are_refused_by_name(make: Callable[[], object], tmp_path: Path) -> None:
    torch.save({"meta": make()}, tmp_path / "n.pth")
    with pytest.raises(CheckpointError, match=r"holds an object of type .*numpy\.\w.*; only tensors"):
        safe_torch_load(tmp_path / "n.pth")


def scalar_pickle(kind: bytes, data: bytes, state: bytes = b"") -> bytes:
    """A legacy file whose only value is a NumPy scalar with this type and these bytes."""
    stream = io.BytesIO()
    torch.save(0, stream, _use_new_zipfile_serialization=False)
    head = stream.getvalue().partition(b"\x80\x02K\x00.")[0]
    text = b"X" + len(data).to_bytes(4, "little") + data
    number = b"cnumpy\ndtype\nX" + len(kind).to_bytes(4, "little") + kind + b"\x89\x88\x87R" + state
    body = b"\x80\x02cnumpy.core.multiarray\nscalar\n" + number
    return (
        head
        + body
        + b"c_codecs\nencode\n"
        + text
        + b"X\x06\x00\x00\x00latin1\x86R\x86R."
        + b"\x80\x02]q\x00."
    )


@pytest.mark.parametrize(
    ("kind", "data"),
    [(b"f8", b"1234567"), (b"f8", b""), (b"O", b"12345678"), (b"O8", b"12345678"), (b"V8", b"12345678"), (b"U0", b""),
     (b"U99999", b"1"), (b"f8,O", b"12345678"), (b"f16", b"1" * 16), (b"S8", b"12345678"), (b"i3", b"123")],
)  # fmt: skip
def test_made_up_scalars_do_no_harm(kind: bytes, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "n.pth").write_bytes(scalar_pickle(kind, data))
    with pytest.raises(CheckpointError, match=r"n\.pth"):
        safe_torch_load(tmp_path / "n.pth")
    (tmp_path / "n.pth").write_bytes(scalar_pickle(b"f8", b"\x00" * 8))
    assert safe_torch_load(tmp_path / "n.pth") == 0.0
