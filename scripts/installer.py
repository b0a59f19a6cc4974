# SPDX-License-Identifier: Apache-2.0
"""Running commands and installing pinned packages: for set-up, on the standard library alone."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# uv's names of pip's settings, and what separates several values there
UV_NAMES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "cert": ("SSL_CERT_FILE", " "),
}


class SetupError(Exception):
    """The environment cannot be made; the message is one line that says what to do."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run(command: list[str | Path], what: str, env: dict[str, str] | None = None) -> None:
    """Run a command; its output is shown only when it fails, or all along with VERBOSE=1."""
    verbose = bool(os.environ.get("VERBOSE"))
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=None if verbose else subprocess.PIPE,
        stderr=None if verbose else subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if result.returncode != 0:
        if result.stdout:
            sys.stderr.write("\n".join(result.stdout.splitlines()[-40:]) + "\n")
        raise SetupError(f"{what} failed (exit code {result.returncode}); VERBOSE=1 shows everything")


def digest(*parts: Path | str) -> str:
    """A digest of texts and files; a missing file counts as empty."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else (part.read_bytes() if part.is_file() else b"")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def blocks(*pins: Path) -> dict[str, str]:
    """{package: its lines} of files of pins; a package in a later file takes the place of an earlier one's."""
    found: dict[str, str] = {}
    for path in pins:
        here: dict[str, str] = {}
        for block in re.split(r"\n(?=\S)", path.read_text()):
            name = block.partition("==")[0]
            if not block.startswith("#"):
                here[name] = "\n".join(filter(None, [here.get(name), block.rstrip()]))
        found |= here
    return found


def megabytes(*pins: Path) -> int:
    """What is to be downloaded, as the files' headers have it."""
    return sum(int(re.search(r"are (\d+) MB", path.read_text())[1]) for path in pins)


def install(venv: Path, *arguments: str | Path, what: str, into: Path | None = None) -> None:
    """Install into an environment, or into that of the Python ``into``: with uv where it is in PATH, else with pip."""
    python = venv / "bin" / "python"
    settings = pip_settings(python)
    if (uv := shutil.which("uv")) and "no-index" not in settings:  # which uv knows as an option alone
        try:
            # As pip does: where Python may not write bytecode, every process would compile all that it imports.
            command = [uv, "pip", "install", "--compile-bytecode", "--python", into or python]
            run([*command, *arguments], what, uv_environment(settings))
            return
        except SetupError:
            if not (venv / "bin" / "pip").exists():
                raise
            say(f"{what} failed with uv, now with pip")
    command: list[str | Path] = [python, "-m", "pip", *(["--python", into] if into else []), "install"]
    run([*command, "--disable-pip-version-check", "--no-input", *arguments], what)


def pip_settings(python: Path) -> dict[str, str]:
    """What pip is configured with, by its files and the environment."""
    command = [python, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    lines = [line.partition("=") for line in listed.splitlines()]
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, _, value in lines if value}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment for uv, which does not read what pip is configured with: the same indexes."""
    if any(name.startswith("UV_") and ("INDEX" in name or "CONFIG" in name) for name in os.environ):
        return dict(os.environ)
    # a version may be in any of the indexes, as for pip; the hashes say that it is the right one
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for setting, (name, separator) in UV_NAMES.items():
        if setting in settings:
            found[name] = separator.join(settings[setting].split())
    return found | os.environ
