"""Write tables of measured numbers into README.md and docs/performance.md, from benchmarks/results; --check compares.

A table stands under a marker, `<!-- table: NAME -->`, and ends at the next blank line. "goals" is what `make bench`
prints at its end; "rivals" sets omniprep beside other programs; "choose" sets the codecs beside each other; "gpu_…" are
those of gpu_tables.py; any other name is a file of results, whole.
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


def results_of(name: str) -> list[dict[str, Any]]:
    """The rows that a benchmark has left."""
    rows: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
    return rows


def rivals() -> list[dict[str, str]]:
    """What omniprep does beside what people use now, each pair from one benchmark."""
    build = {row["rows"]: row for row in results_of("build")}
    by_kind = ", ".join(f"{kind} {build[kind]['ratio']:.1f}" for kind in ("text", "image", "audio", "video"))
    jpeg = {row["library"]: row["photographs_per_cpu_second"] for row in results_of("load_jpeg")}
    raw = {row["library"]: row["later_gb_per_cpu_second"] for row in results_of("load_rivals")}
    packed = {row["method"]: row for row in results_of("pack") if row["rows"] == 1_000_000}
    stored = next(row for row in results_of("storage") if (row["rows"], row["codec"]) == ("all", "delta"))
    ranks = {row["order"]: row["slowest_of_mean"] for row in results_of("balance") if row["ranks"] == 8}
    waits = {row["side"]: row["share_of_step_waiting"] for row in results_of("train_wait")}
    windows, ours = packed["windows of 1000 (binpacking)"], packed["omniprep.pack"]

    def best(figures: dict[str, float]) -> tuple[str, float]:
        """The fastest of the other libraries."""
        return max(((name, figure) for name, figure in figures.items() if "omniprep" not in name), key=lambda x: x[1])

    (jpeg_name, jpeg_best), (raw_name, raw_best) = best(jpeg), best(raw)
    whole = build["all"]
    lines = [
        (
            "building a dataset, against encoding in ms-swift 3.9.3",
            f"{whole['omniprep_tokens_per_second']:,} tokens/s",
            f"{whole['ms_swift_tokens_per_second']:,} tokens/s",
            f"{whole['ratio']:.1f} times ({by_kind})",
        ),
        (
            "loading a bin in training, against ms-swift's encoding of its rows",
            f"{whole['ms_swift_tokens_per_second'] * whole['loading_ratio'] / 1e6:.1f}M tokens/s",
            f"{whole['ms_swift_tokens_per_second']:,} tokens/s",
            f"{whole['loading_ratio']} times",
        ),
        (
            "share of a training step spent waiting for data, one worker, against ms-swift",
            f"{waits['omniprep']:.1%}",
            f"{waits['ms-swift, encoding on the fly']:.0%}",
            "",
        ),
        (
            f"loading photographs (default codec), against {jpeg_name}, the fastest of four",
            f"{jpeg['omniprep, delta']:,.0f}/s",
            f"{jpeg_best:,.0f}/s",
            f"{jpeg['omniprep, delta'] / jpeg_best:.1f} times",
        ),
        (
            f"loading raw bins from memory, against {raw_name}, the fastest of four",
            f"{raw['omniprep']:.1f} GB/s",
            f"{raw_best:.1f} GB/s",
            f"{raw['omniprep'] / raw_best:.2f} times",
        ),
        (
            "bytes on the disk (default codec), against ms-swift's bf16 tensors",
            f"{stored['bytes_a_token']:,.0f} a token",
            f"{stored['bf16_bytes_a_token']:,.0f} a token",
            f"{stored['of_bf16']:.1%} of them",
        ),
        (
            "packing 1,000,000 rows, against ms-swift's windows of 1,000",
            f"{ours['seconds']:.1f} s, fill {ours['fill']:.3%}",
            f"{windows['seconds']:.1f} s, fill {windows['fill']:.1%}",
            f"{windows['seconds'] / ours['seconds']:.0f} times",
        ),
        (
            "work of the most loaded of 8 GPUs, of the mean, against a random order",
            f"{ranks['balanced']:.3f}",
            f"{ranks['random']:.3f}",
            "",
        ),
    ]
    return [dict(zip(("one CPU core", "omniprep", "the other", "ratio"), line, strict=True)) for line in lines]


def choose() -> list[dict[str, str]]:
    """What each codec takes on the disk, in loading and in building."""
    stored = {(row["rows"], row["codec"]): row for row in results_of("storage")}
    lines = []
    for loaded in results_of("load_codecs"):
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
    if name == "rivals":
        return markdown(rivals())
    return markdown(measured()) if name == "goals" else results(name)


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
