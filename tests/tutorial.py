"""Runs a page of documentation as a reader would: its blocks in order, in one folder, commands and Python alike.

A block under a comment `<!-- not run: REASON -->` is left out, and one under `<!-- run by: TEST -->` is that test's. `omniprep` commands run in this process, which saves the
seconds of each start; everything else in bash. Names that a reader has, the folder has: chats.jsonl and chats/,
the checkpoint Qwen/Qwen2.5-Omni-7B (the small one), CHECKPOINT, build/demo/model, and packed/, a dataset built from
them.
"""

import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

FENCE = re.compile(r"(?:^<!-- *(?P<mark>[^>]*?) *-->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
FILE = re.compile(r"# (\w+\.py)\n")
"""First line of a block that the reader saves under that name."""
NOT_RUN = "not run: "
RUN_BY = "run by: "
MODEL = "Qwen/Qwen2.5-Omni-7B"


@dataclass(frozen=True)
class Block:
    """A fenced block, the heading above it, and why it is not run ("" where it is)."""

    language: str
    text: str
    reason: str
    heading: str = ""

    @property
    def runner(self) -> str:
        """The test that runs it in place of the one that runs the page, or ""."""
        return self.reason.removeprefix(RUN_BY) if self.reason.startswith(RUN_BY) else ""


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found, text = [], page.read_text()
    for match in FENCE.finditer(text):
        mark = match["mark"] or ""
        reason = mark.removeprefix(NOT_RUN).strip() if mark.startswith(NOT_RUN) else ""
        if mark.startswith(RUN_BY):
            reason = mark.strip()
        assert not mark.startswith(NOT_RUN.strip()) or reason, (
            f"{page.name}: a block is not run, but no reason is given"
        )
        heading = (re.findall(r"^#+ (.+)$", text[: match.start()], re.M) or [""])[-1]
        found.append(Block(match["language"], match["text"], reason, heading))
    return found


def commands_of(text: str) -> list[str]:
    """The lines of a bash block, continued ones joined, without comments."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def furnish(folder: Path, model: Path, packed: Path | None = None) -> None:
    """Give a folder what a reader has."""
    for name in ("data_samples", "pipelines"):
        (folder / name).symlink_to(ROOT / name)
    for name in (MODEL, "build/demo/model", "CHECKPOINT"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(model)
    (folder / "chats").mkdir()
    (folder / "chats" / "media").symlink_to(ROOT / "data_samples" / "media")
    (folder / "media").symlink_to(ROOT / "data_samples" / "media")
    for name in ("images.jsonl", "audio.jsonl"):
        shutil.copy(ROOT / "data_samples" / name, folder / "chats")
    rows = [path.read_text() for path in sorted((folder / "chats").glob("*.jsonl"))]
    (folder / "chats.jsonl").write_text("".join(rows))
    if packed is not None:
        shutil.copytree(packed, folder / "packed")


@dataclass
class Reader:
    """Runs blocks in the current folder.

    Args:
        omniprep: The fixture.
        swaps: Texts of commands that are others here, such as fewer processes.
        skip: Lines with one of these texts are run by another test.
        names: What the page's Python may name besides what it imports.
    """

    omniprep: Callable[..., Any]
    swaps: dict[str, str]
    skip: Sequence[str] = ()
    names: dict[str, Any] | None = None
    ran: int = 0

    def read(self, page: Path) -> None:
        """Run all of a page."""
        for block in blocks_of(page):
            if not block.reason:
                self.run(block)

    def run(self, block: Block) -> None:
        if block.language == "bash":
            for line in commands_of(block.text):
                self.command(line)
        elif block.language == "python" and (name := FILE.match(block.text)):
            Path(name[1]).write_text(block.text)
        elif block.language == "python" and not any(text in block.text for text in self.skip):
            self.python(block.text)
            self.ran += 1
        elif block.language == "json":
            for text in re.split(r"\n(?={)", block.text):  # rows may take several lines, each begins one
                json.loads(text)
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.text))
        elif block.language == "toml":
            tomllib.loads(block.text)

    def python(self, text: str) -> None:
        exec(compile(text, "page", "exec"), {"__name__": "page", **(self.names or {})})

    def command(self, line: str) -> None:
        if any(text in line for text in self.skip):
            return
        for before, after in self.swaps.items():
            line = line.replace(before, after)
        self.ran += 1
        words = shlex.split(line, comments=True)
        if words[0] != "omniprep" or {">", ">>", "|", "&&"} & set(words):
            env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            return
        found = [sorted(glob.glob(word)) or [word] if "*" in word else [word] for word in words[1:]]
        result = self.omniprep(*(word for part in found for word in part))
        assert result.code == 0, f"{line}\n{result.out[-2000:]}\n{result.err[-3000:]}"
