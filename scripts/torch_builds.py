# SPDX-License-Identifier: Apache-2.0
"""Which builds of PyTorch fit this machine: for set-up, on the standard library alone.

The Python index has builds with CUDA for Linux, with 3 GB of libraries. An index of CPU builds, such as PyTorch's
own, has torch and torchvision without them as versions of the form ``2.15.0+cpu``.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from shutil import which

from installer import blocks, megabytes, say

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
PACKAGES = ("torch", "torchvision")
TIMEOUT = 5.0  # seconds: set-up waits no longer for an index that does not answer


class NoPairError(Exception):
    """There is no fitting pair of CPU builds; the message says why."""


class _Links(HTMLParser):
    """The addresses of a page of an index (PEP 503)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def has_nvidia_driver() -> bool:
    """Whether this machine has a driver for NVIDIA's GPUs."""
    return Path("/proc/driver/nvidia").exists() or bool(which("nvidia-smi") or ctypes.util.find_library("cuda"))


def cpu_pair(index: str, versions: dict[str, str], python: str, machine: str) -> str:
    """The two requirements with address and hash, one a line, of CPU builds from an index.

    Only the releases that are pinned are taken, of both packages: another torchvision cannot be imported.

    Args:
        index: the index's address.
        versions: the pinned release of torch and of torchvision.
        python: such as ``cp311``.
        machine: such as ``x86_64``.

    Raises:
        NoPairError: the index does not answer, or lacks one of the two for this Python and machine.
    """
    lines = []
    for name in PACKAGES:
        page = f"{index.rstrip('/')}/{name}/"
        try:
            context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
            with urllib.request.urlopen(page, timeout=TIMEOUT, context=context) as answer:
                base, text = answer.geturl(), answer.read().decode(errors="replace")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise NoPairError(f"{page} does not answer ({reason})") from None
        lines.append(_requirement(name, f"{versions[name]}+cpu", python, machine, base, text))
    return "\n".join(lines)


def _requirement(name: str, version: str, python: str, machine: str, base: str, page: str) -> str:
    links = _Links()
    links.feed(page)
    form = rf"{name}-{re.escape(version)}-{python}-{python}-[\w.]*(?<!musl)linux_[\w.]*{machine}\.whl"
    for link in links.found:
        address, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(base, link))
        hashed = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
        if hashed and re.fullmatch(form, urllib.parse.unquote(address.rpartition("/")[2])):
            return f"{name} @ {address} --hash=sha256:{hashed[1]}"
    raise NoPairError(f"{base} has no {name} {version} with a hash for {python} on {machine}")


def choose_torch(wanted: str, pins: Path) -> tuple[str, str]:
    """(``cpu``, its two requirements), or (``cuda``, nothing); says what will be downloaded."""
    reason = "wanted with TORCH=cuda" if wanted == "cuda" else "there is an NVIDIA driver; less with TORCH=cpu"
    if wanted == "cpu" or (not wanted and not has_nvidia_driver()):
        python = "cp{}{}".format(*sys.version_info)
        index = os.environ.get("TORCH_INDEX") or TORCH_INDEX
        try:
            pair = cpu_pair(index, torch_versions(pins), python, platform.machine())
            say(f"PyTorch's CPU builds, from {index}")
            return "cpu", pair
        except NoPairError as error:
            reason = f"no CPU builds: {error}; TORCH_INDEX=... says where else they are"
    size = megabytes(pins)
    hint = "" if wanted else ": docs/installation.md"
    say(f"PyTorch with CUDA, {size / 1000:.1f} GB to download, {-(-size // 1200)} minutes at 20 MB/s ({reason}{hint})")
    return "cuda", ""


def torch_versions(pins: Path) -> dict[str, str]:
    """The pinned releases of torch and torchvision for this Python."""
    found = {}
    for name in PACKAGES:
        for version, sign, minor in re.findall(
            rf'^{name}==([\d.]+)(?: ; python_version (<=|>=|==) "3.(\d+)")?', blocks(pins)[name], re.MULTILINE
        ):
            here = sys.version_info[1]
            fits = {"": True, "<=": here <= int(minor or 0), ">=": here >= int(minor or 0), "==": minor == str(here)}
            if fits[sign]:
                found[name] = version
    return found
