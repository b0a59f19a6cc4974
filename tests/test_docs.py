# SPDX-License-Identifier: Apache-2.0
"""What the pages link to is there; files that other tools read follow their schemas."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.paths import ROOT

PAGES = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("weights/*.md")))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page) -> None:
    missing = [
        link
        for link in LINK.findall(page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not missing


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("vendor.github-workflows", ".github/workflows/*.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/*.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_the_forge_follow_their_schemas(schema: str, pattern: str) -> None:
    pytest.importorskip("check_jsonschema")
    files = sorted(map(str, ROOT.glob(pattern)))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_source_files_name_their_licence() -> None:
    folders = [path.parent for path in ROOT.glob("*/__init__.py")] + [ROOT / "scripts", ROOT / "launch"]
    sources = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".py", ".cpp", ".cu", ".h", ".cuh") and path.stat().st_size
    ]
    assert len(sources) > 300
    missing = [
        str(path.relative_to(ROOT))
        for path in sources
        if "SPDX-License-Identifier: Apache-2.0" not in path.read_text().split("\n\n")[0]
    ]
    assert not missing
