# SPDX-License-Identifier: Apache-2.0
"""The published weights by name: what there is, where a downloaded file lies, and how it is fetched.

Names stand for files of the authors' repository on the Hugging Face hub. A file is fetched by ``huggingface_hub``,
which goes on where an interrupted download stopped, once the terms of use were accepted; or put into
:func:`folder` by hand, where there is no network.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

from bevnext_core.errors import CheckpointError, one_line
from bevnext_core.files import atomic_path, cache_directory

REPOSITORY = "Zzxxxxxxxx/bevnext"
REVISION = "main"  # no revision of these files is known to be the final one
HUB = "https://huggingface.co"
ACCEPT_VARIABLE = "BEVNEXT_ACCEPT_WEIGHTS_TERMS"
TERMS = (
    "The published weights were trained on nuScenes, whose terms (CC BY-NC-SA 4.0, "
    "https://www.nuscenes.org/terms-of-use) allow non-commercial use only; "
    "they belong to their authors, and this project's licence does not cover them."
)
EXTRA = "pip install 'bevnext_ros[weights]'"


class PublishedWeights(NamedTuple):
    """One of the authors' files, and the stage and name of the configuration that it was trained with."""

    file: str
    stage: Literal[1, 2]
    config: str

    @property
    def address(self) -> str:
        return f"{_endpoint()}/{REPOSITORY}/resolve/{REVISION}/{self.file}"


PUBLISHED = {
    "bevnext-r50-stage1": PublishedWeights("bevnext_stage1.pth", 1, "bevnext_r50_stage1"),
    "bevnext-r50-stage2": PublishedWeights("bevnext_stage2.pth", 2, "bevnext_r50_stage2"),
    "bevnext-r50-perspective-stage1": PublishedWeights(
        "bevnext_perspective_stage1.pth", 1, "bevnext_r50_perspective_stage1"
    ),
    "bevnext-r50-perspective-stage2": PublishedWeights(
        "bevnext_perspective_stage2.pth", 2, "bevnext_r50_perspective_stage2"
    ),
}


def folder() -> Path:
    """Where published files and what was made of them are kept."""
    return cache_directory() / "weights"


def terms_accepted() -> bool:
    """By ``bevnext weights accept`` or by the variable."""
    return os.environ.get(ACCEPT_VARIABLE, "") not in ("", "0") or (folder() / "terms_accepted").is_file()


def accept_terms() -> None:
    """Remember that the user accepted :data:`TERMS`."""
    with atomic_path(folder() / "terms_accepted") as path:
        path.write_text(TERMS + "\n")


def published_file(name: str, download: bool = True) -> Path:
    """The ``.pth`` file of published weights, fetched where it is missing.

    Args:
        download: ``False``: never use the network.

    Raises:
        CheckpointError: it is not here and may not or cannot be fetched; one line with its address and its place.
    """
    weights = PUBLISHED[name]
    place = folder() / weights.file
    if place.is_file():
        return place
    by_hand = f"or download {weights.address} to {place}"
    if not terms_accepted():
        raise CheckpointError(
            f"'{name}' is not here yet. {TERMS} If you accept that: 'bevnext weights accept' (or {ACCEPT_VARIABLE}=1), "
            f"then 'bevnext weights get {name}'; {by_hand}"
        )
    if not download:
        raise CheckpointError(f"'{name}' is not here yet: run 'bevnext weights get {name}' first, {by_hand}")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download
    except ImportError:
        raise CheckpointError(f"'{name}' is fetched by huggingface_hub: {EXTRA}, {by_hand}") from None
    try:
        expected = get_hf_file_metadata(weights.address)
        hub = folder() / "hub"
        path = hf_hub_download(REPOSITORY, weights.file, revision=REVISION, local_dir=hub, endpoint=_endpoint())
        fetched = Path(path)
    except Exception as error:  # of the hub's library, its HTTP library and the system: all say that it did not come
        raise CheckpointError(f"'{name}' could not be fetched ({one_line(error, 200)}): try again, {by_hand}") from None
    # the entity tag of a large file is its SHA-256; the library itself compares the size only
    tag = (expected.etag or "").strip('"')
    if len(tag) == 64 and _sha256(fetched) != tag:
        fetched.unlink()
        raise CheckpointError(f"'{name}' came damaged from {weights.address} (its SHA-256 differs): try again")
    fetched.replace(place)
    return place


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", HUB)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
