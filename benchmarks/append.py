"""A lake that grows: what 1 % more rows cost against a fresh build, and what a merge of two days costs. CPU seconds.

Each command runs in a process of its own, as a user runs it, with report.html. What it costs before the first row
(imports, the tokenizer, the family's check, the plots of the report) is that of the same command on a few rows, and is
also given apart: `share` is of whole commands, `share_of_work` without that. Goals: 3 % of the work of a build; 5 s for
the work of merging 150,000 and 50,000 text rows.

    python benchmarks/append.py --model CHECKPOINT [--text 150000 --image 4000] [--only image]

With --only, the lines of the other kind stay in the record as they are.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import scale
from corpus import make
from record import RESULTS, record

FEW, FEWER = 20, 2
"""Rows of a build, and of an append, that take no time beside the start of the command."""


def cpu_seconds(*arguments: object) -> float:
    """CPU seconds, user and system, of an omniprep command; its output is shown where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "omniprep", *map(str, arguments), "--workers", "0", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cut(source: Path, name: str, first: int, last: int | None) -> Path:
    """Some lines of a file as a file beside it, where its media are found as well."""
    target = source.with_name(name)
    with source.open() as lines, target.open("w") as file:
        file.writelines(islice(lines, first, last))
    return target


def build(model: str, source: Path, out: Path) -> float:
    return cpu_seconds("build", source, "--model", model, "--bin-length", 8192, "--out", out)


def measure_append(model: str, kind: str, chats: Path, rows: int, folder: Path) -> dict[str, Any]:
    """Build `rows` rows and append 1 % more; the dataset that was built stays in `folder`/base."""
    more = max(rows // 100, 1)
    base, new = cut(chats, "base.jsonl", 0, rows), cut(chats, "new.jsonl", rows, rows + more)
    few, fewer = cut(chats, "few.jsonl", 0, FEW), cut(chats, "fewer.jsonl", FEW, FEW + FEWER)
    start = {"build": build(model, few, folder / "few"), "append": cpu_seconds("append", folder / "few", fewer)}
    whole = {"build": build(model, base, folder / "base")}
    shutil.copytree(folder / "base", folder / "grown")
    whole["append"] = cpu_seconds("append", folder / "grown", new)
    generation = json.loads((folder / "grown" / "manifest.json").read_text())["generations"][-1]
    assert generation["rows"]["packed"] == more, generation
    work = {name: whole[name] - start[name] for name in whole}
    return {
        "what": f"append of {kind} rows",
        "rows": rows,
        "more": more,
        "build_seconds": round(whole["build"], 2),
        "seconds": round(whole["append"], 2),
        "of_it_start": round(start["append"], 2),
        "share": round(whole["append"] / whole["build"], 4),
        "share_of_work": round(work["append"] / work["build"], 4),
        "fill_of_new_bins": generation["fill"],
    }


def measure_merge(base: Path, second: Path, few: Path, folder: Path) -> dict[str, Any]:
    """Merge two datasets into one."""
    start = cpu_seconds("repack", few, "--bin-length", 8192, "--out", folder / "few-again")
    seconds = cpu_seconds("repack", base, second, "--bin-length", 8192, "--out", folder / "both")
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (base, second, folder / "both")]
    rows = [manifest["counts"]["rows"]["packed"] for manifest in manifests]
    assert rows[2] == rows[0] + rows[1], rows
    return {
        "what": "merge of text rows",
        "rows": rows[0],
        "more": rows[1],
        "seconds": round(seconds, 2),
        "of_it_start": round(start, 2),
        "work_seconds": round(seconds - start, 2),
    }


def measure_text(model: str, rows: int, folder: Path) -> list[dict[str, Any]]:
    """An append of text rows, and a merge of what was built with a third as many rows of another day."""
    folder.mkdir()
    more, third = rows // 100, rows // 3
    scale.corpus(folder / "all.jsonl", rows + more + third)
    appended = measure_append(model, "text", folder / "all.jsonl", rows, folder)
    build(model, cut(folder / "all.jsonl", "second.jsonl", rows + more, None), folder / "second")
    return [appended, measure_merge(folder / "base", folder / "second", folder / "few", folder)]


def measure_images(model: str, rows: int, folder: Path) -> list[dict[str, Any]]:
    """An append of rows with a picture each."""
    chats = make(folder, {"image": rows + rows // 100 + FEW})["image"]
    return [measure_append(model, "image", chats, rows, folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=int, default=150_000)
    parser.add_argument("--image", type=int, default=4000)
    parser.add_argument("--only", choices=("text", "image"))
    options = parser.parse_args()
    before = json.loads((RESULTS / "append.json").read_text())["rows"] if options.only else []
    lines = [line for line in before if "image" in line["what"]] if options.only == "text" else []
    lines += [line for line in before if "text" in line["what"]] if options.only == "image" else []
    with tempfile.TemporaryDirectory(prefix="omniprep-append-") as name:
        if options.only != "image":
            lines[:0] = measure_text(options.model, options.text, Path(name, "text"))
        if options.only != "text":
            lines += measure_images(options.model, options.image, Path(name, "image"))
    record("append", lines, bin_length=8192)


if __name__ == "__main__":
    main()
