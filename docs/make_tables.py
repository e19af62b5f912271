"""Write tables of measured numbers into README.md and docs/performance.md, from benchmarks/results; --check compares.

A table stands under a marker, `<!-- table: NAME -->`, and ends at the next blank line. "goals" is what `make bench`
prints at its end; "short" is its lines that a newcomer asks for; "choose" sets the codecs beside each other; "gpu_…"
are those of gpu_tables.py; any other name is a file of results, whole.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from gpu_tables import gpu_rows

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("performance", "training", "reliability")))
MARKED = re.compile(r"(<!-- table: (?P<name>\w+)[^>]*-->\n)(?:\|[^\n]*\n)*")
SHORT = {
    "build, all kinds, against ms-swift's encode": "build, tokens a second a core, of ms-swift's encode",
    "build, text rows": "the same, text rows alone",
    "loading, tokens/s against ms-swift's encode": "loading a bin, of ms-swift's encode of its rows",
    "loading, one bin, of a memory copy": "loading a bin, of a plain memory copy",
    "bytes stored, of bf16, raw": "bytes stored, of what the collator would hold in bf16",
    "bytes stored, of bf16, delta": "the same, with `--pixel-codec delta` (lossless, the default)",
    "packing 1,000,000 rows, seconds": "packing 1,000,000 rows, seconds on one core",
    "packing, fill": "fill of the bins, one million rows",
    "most loaded of 8 ranks, of the mean": "most loaded of 8 ranks, of a step's mean",
}


def measured() -> list[dict[str, str]]:
    """What is claimed, the goal, the number, its spread."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from record import RESULTS
    from summary import CLAIMS

    lines = []
    for what, goal, name, take in CLAIMS:
        path = RESULTS / f"{name}.json"
        try:
            value, spread = take(json.loads(path.read_text())["rows"])
        except (FileNotFoundError, KeyError, StopIteration):  # no result, or one from before the benchmark was changed
            value, spread = "not measured", ""
        text = f"{value:,}" if isinstance(value, int | float) else str(value)
        lines.append({"what": what, "goal": goal, "measured": text, "met": met(goal, value), "spread": str(spread)})
    return lines


def met(goal: str, value: object) -> str:
    """Whether a measured value reaches its goal: yes, no, or "" without the one or the other."""
    if goal == "all" and isinstance(value, str) and " of " in value:
        found, wanted = value.split(" of ")
        return "yes" if found == wanted else "no"
    if not isinstance(value, int | float) or goal[:1] not in ("≤", "≥"):
        return ""
    bound = float(goal[1:].replace(",", ""))
    return "yes" if (value <= bound if goal[0] == "≤" else value >= bound) else "no"


H100_TOKENS = 9_000
"""Tokens a second that a 7B model trained whole takes on an H100 (docs/training.md)."""


def choose() -> list[dict[str, str]]:
    """What each codec takes on the disk, in loading and in building."""

    def rows(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
        return found

    stored = {(row["rows"], row["codec"]): row for row in rows("storage")}
    lines = []
    for loaded in rows("load_codecs"):
        codec = loaded["codec"]
        image, line = stored["image", codec], {"codec": f"`{codec}`"}
        for kind in ("image", "screen", "video"):
            line[f"bytes a token, {kind}s"] = _cell(stored[kind, codec]["bytes_a_token"])
        line["images, of their JPEG files"] = f"{image['bytes_a_token'] / image['source_bytes_a_token']:.1f}"
        line["loaded tokens a CPU second"] = _cell(loaded["tokens_per_cpu_second"])
        line["H100s that one core feeds"] = f"{loaded['tokens_per_cpu_second'] / H100_TOKENS:.0f}"
        line["built tokens a CPU second"] = _cell(loaded.get("built_tokens_per_cpu_second", ""))
        lines.append(line)
    return lines


def table(name: str) -> str:
    """A table as Markdown."""
    if name.startswith("gpu_"):
        return markdown(gpu_rows(name.removeprefix("gpu_")))
    if name == "choose":
        return markdown(choose())
    if name not in ("goals", "short"):
        return results(name)
    lines = measured()
    if name == "short":
        found = {line["what"]: line for line in lines}
        lines = [{**found[what], "what": text} for what, text in SHORT.items() if what in found]
    columns = ("what", "goal", "measured") if name == "short" else ("what", "goal", "measured", "met", "spread")
    rows = [columns, ("---",) * len(columns), *(tuple(line[column] for column in columns) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows as a Markdown table; "" without any."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else ""


def results(name: str) -> str:
    """The rows of benchmarks/results/NAME.json as Markdown, or nothing where that benchmark has not run."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "goal"))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    head = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)] if rows else []
    return "".join(f"| {' | '.join(row)} |\n" for row in head + cells)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def main() -> int:
    """Write or check the pages."""
    stale = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = MARKED.sub(lambda match: match[1] + table(match["name"]), text)
        if new != text and "--check" in sys.argv[1:]:
            print(f"{page.relative_to(ROOT)}: tables are stale: run python docs/make_tables.py", file=sys.stderr)
            stale = 1
        elif new != text:
            page.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
