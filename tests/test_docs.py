"""Pages that are generated from the code must be those that the code generates now, and the README must not lie."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from omniprep.cli.main import COMMANDS
from omniprep.errors import RejectCode
from omniprep.shards.schema import FORMAT

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
]


def test_rejects_page_is_current():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_rejects.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_reject_code_is_explained():
    assert all(len(code.doc) > 20 and code.doc.endswith(".") for code in RejectCode)


def test_format_page_names_the_format_version():
    assert f"format version {FORMAT}" in (ROOT / "docs" / "format.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_the_docs_exist(page):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for command in re.findall(r"^(?:\$ )?omniprep ([a-z][a-z-]+)", "\n".join(blocks), re.MULTILINE):
        assert command in COMMANDS, f"{page}: omniprep {command}"


def test_no_paths_of_one_machine_in_the_tree():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    marks = [re.compile(rf"(?<![\w.]){mark}") for mark in ("/[r]oot/", "/home/[a-z]+/")]
    for name in files.stdout.splitlines():
        path = Path(ROOT / name)
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".json", ".jsonl"} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(mark.search(text) for mark in marks), name
