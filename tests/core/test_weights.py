# SPDX-License-Identifier: Apache-2.0
"""Published weights by name, fetched from a server on this machine that speaks the hub's file interface."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from bevnext_core import checkpoint as checkpoints
from bevnext_core import weights
from bevnext_core.checkpoint import load_checkpoint, named_checkpoint
from bevnext_core.errors import CheckpointError
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_ros.node.detector_factory import make_detector
from bevnext_ros.node.parameters import make_options
from bevnext_tools.cli.main import main
from tests.published import config_of, published_state

NAME = "bevnext-r50-stage2"
FILE = weights.PUBLISHED[NAME].file
CONTENT = bytes(range(256)) * 49_152  # 12 MiB: the library writes what it got in pieces of 10


@dataclass
class Hub:
    """What the server holds and how it misbehaves: bytes after which it hangs up, once; a file that it damages."""

    content: bytes = CONTENT
    hang_up_after: int | None = None
    damaged: bool = False
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    state = Hub()
    path = f"/{weights.REPOSITORY}/resolve/{weights.REVISION}/{FILE}"
    # its handler would write to the standard error of another test
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            if self.path != path:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            wanted = self.headers.get("Range") if body else None
            if body:
                state.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            content = state.content[start:]
            self.send_response(206 if wanted else 200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(state.content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            if wanted:
                total = len(state.content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            if not body:
                return
            if state.damaged:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if state.hang_up_after is not None:
                content, state.hang_up_after = content[: state.hang_up_after], None
                self.close_connection = True
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("BEVNEXT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(weights.ACCEPT_VARIABLE, raising=False)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def small_published(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The server holds the small network under the published names, and that is what the name stands for."""
    config = config_of("small2")
    monkeypatch.setattr(checkpoints, "published_config", lambda stage: config)
    file = io.BytesIO()
    torch.save({"state_dict": published_state(BEVNeXt(config), "small2")}, file)
    hub.content = file.getvalue()
    return hub.content


def test_terms_come_first_and_are_accepted_once(hub: Hub, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"non-commercial use only.*bevnext weights accept") as error:
        weights.published_file(NAME)
    assert "\n" not in str(error.value) and not hub.ranges
    monkeypatch.setenv(weights.ACCEPT_VARIABLE, "1")
    assert weights.terms_accepted()
    monkeypatch.setenv(weights.ACCEPT_VARIABLE, "0")
    assert not weights.terms_accepted()
    assert main(["weights", "accept"]) == 0 and "nuScenes" in capsys.readouterr().out
    assert weights.published_file(NAME).read_bytes() == CONTENT
    weights.published_file(NAME)
    assert len(hub.ranges) == 1  # the second time it is here


def test_an_interrupted_download_goes_on(hub: Hub) -> None:
    weights.accept_terms()
    hub.hang_up_after = 11 << 20
    assert weights.published_file(NAME).read_bytes() == CONTENT
    assert hub.ranges == [None, f"bytes={10 << 20}-"]


def test_a_damaged_download_is_refused_and_fetched_again(hub: Hub) -> None:
    weights.accept_terms()
    hub.damaged = True
    with pytest.raises(CheckpointError, match=r"came damaged from http.*SHA-256.*try again"):
        weights.published_file(NAME)
    assert not (weights.folder() / FILE).exists()
    hub.damaged = False
    assert weights.published_file(NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", ""])
def test_without_the_file_one_line_says_where_it_is_and_where_it_goes(
    hub: Hub, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.accept_terms()
    if endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)  # nobody listens
    else:
        monkeypatch.setattr(weights, "REVISION", "gone")
    place = weights.folder() / FILE
    with pytest.raises(CheckpointError, match="could not be fetched") as error:
        weights.published_file(NAME)
    assert weights.PUBLISHED[NAME].address in str(error.value) and str(place) in str(error.value)
    place.write_bytes(b"put there by hand")
    assert weights.published_file(NAME) == place


def test_without_the_hubs_library(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.accept_terms()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'bevnext_ros\[weights\]'"):
        weights.published_file(NAME)


def test_a_name_is_a_checkpoint(small_published: bytes, capsys: Any) -> None:
    assert main(["weights", "accept"]) == 0
    assert load_checkpoint(NAME).config.name == "bevnext_r50_stage2"
    capsys.readouterr()
    assert main(["weights"]) == 0
    listed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[:4])
    assert listed == {name: "converted" if name == NAME else "-" for name in weights.PUBLISHED}


def test_a_file_that_was_put_there_is_converted_without_a_network(
    small_published: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    weights.folder().mkdir(parents=True)
    (weights.folder() / FILE).write_bytes(small_published[:-1000])
    with pytest.raises(CheckpointError, match="if it was not fetched whole, delete it"):
        named_checkpoint(NAME, download=False)
    (weights.folder() / FILE).write_bytes(small_published)
    assert named_checkpoint(NAME, download=False).name == f"{NAME}.safetensors"


def test_the_node_never_fetches(small_published: bytes, hub: Hub) -> None:
    weights.accept_terms()
    with pytest.raises(CheckpointError, match=f"run 'bevnext weights get {NAME}' first"):
        make_detector(make_options({"checkpoint": NAME}, "test"))
    assert not hub.ranges
    assert main(["weights", "get", NAME]) == 0
    detector = make_detector(make_options({"checkpoint": NAME, "device": "cpu"}, "test"))
    assert detector.config.name == "bevnext_r50_stage2"


def test_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_bytes(b"mine")
    assert named_checkpoint(NAME) == Path(NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get"], "get which weights?"),
        (["get", "bevnext-r101"], "no published weights are called 'bevnext-r101': there are bevnext-r50-stage1"),
        (["list", NAME], "'weights list' takes no names"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: Any) -> None:
    assert main(["weights", *arguments]) == 2
    assert message in capsys.readouterr().err
