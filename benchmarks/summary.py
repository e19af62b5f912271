"""The table of goals: what was asked, what the last results in benchmarks/results/ measured, and their spread.

python benchmarks/summary.py
"""

import json
from collections.abc import Callable
from typing import Any

from record import RESULTS, show

Rows = list[dict[str, Any]]


def row(found: Rows, /, **wanted: Any) -> dict[str, Any]:
    return next(r for r in found if all(r[name] == value for name, value in wanted.items()))


CLAIMS: list[tuple[str, str, str, Callable[[Rows], tuple[Any, str]]]] = [
    ("rows and samples equal to the reference, of those tested", "all", "exact", lambda r: _equal(r[0])),
    ("builds killed with -9, equal to those never killed", "all", "exact", lambda r: _equal(r[1])),
    ("build, all kinds, against ms-swift's encode", "≥ 4", "build", lambda r: _ratio(row(r, rows="all"))),
    ("build, text rows", "≥ 5", "build", lambda r: _ratio(row(r, rows="text"))),
    ("build, image rows", "≥ 3.5", "build", lambda r: _ratio(row(r, rows="image"))),
    ("build, audio rows", "", "build", lambda r: _ratio(row(r, rows="audio"))),
    ("build, video rows", "≥ 4", "build", lambda r: _ratio(row(r, rows="video"))),
    ("build, 2 workers against 1", "≥ 1.8", "scale_workers", lambda r: _workers(row(r, workers=2))),
    (
        "loading with delta, GB of pixels a core second",
        "≥ 1",
        "load_codecs",
        lambda r: _codec(r, "gb_of_pixels_per_cpu_second"),
    ),
    ("loading with delta, against webp", "≥ 6", "load_codecs", lambda r: _codec(r, "times_webp")),
    ("loading, one bin, of a memory copy", "≥ 0.5", "load", lambda r: (_load(r, "omniprep, one bin"), "")),
    ("loading, tokens/s against ms-swift's encode", "≥ 25", "build", lambda r: _loading(row(r, rows="all"))),
    ("bytes stored, of bf16, raw", "≤ 0.25", "storage", lambda r: (row(r, rows="all", codec="raw")["of_bf16"], "")),
    ("bytes stored, of bf16, delta", "≤ 0.10", "storage", lambda r: (row(r, rows="all", codec="delta")["of_bf16"], "")),
    ("bytes stored, of bf16, webp", "≤ 0.10", "storage", lambda r: (row(r, rows="all", codec="webp")["of_bf16"], "")),
    ("bytes stored, source, of the files of photographs", "≤ 1.15", "storage", lambda r: _of_files(r, "image")),
    ("bytes stored, source, of the files of videos", "≤ 1.15", "storage", lambda r: _of_files(r, "video")),
    ("packing 1,000,000 rows, seconds", "≤ 3", "pack", lambda r: (row(r, method="omniprep.pack")["seconds"], "")),
    ("packing, fill", "≥ 0.999", "pack", lambda r: (row(r, method="omniprep.pack")["fill"], "")),
    ("most loaded of 8 ranks, of the mean", "≤ 1.05", "balance", lambda r: _balance(row(r, ranks=8, order="balanced"))),
    (
        "most loaded of 64 ranks, of the mean",
        "≤ 1.05",
        "balance",
        lambda r: _balance(row(r, ranks=64, order="balanced")),
    ),
    ("first batch of 10,000 shards, CPU seconds", "≤ 3", "cli", lambda r: _cpu(_small(r, "first batch"))),
    ("plan of 15 rows, whole command, CPU seconds", "≤ 1.5", "cli", lambda r: _cpu(row(r, command="plan of 15 rows"))),
    ("build of 39 small rows, whole command, CPU seconds", "≤ 4", "cli", lambda r: _cpu(_small(r, "build of 39"))),
    ("omniprep --help, CPU seconds", "≤ 0.4", "cli", lambda r: _cpu(row(r, command="omniprep --help"))),
    ("driver of a build of 10,000,000 rows, peak MiB", "≤ 2048", "planner", lambda r: (r[-1]["peak_mib"], "")),
    ("text rows, largest build: peak MiB", "", "scale", lambda r: (r[-1]["peak_mib"], f"{r[-1]['rows']:,} rows")),
    ("training on a GPU, share of a step that it is busy", "≥ 0.95", "gpu", lambda r: _gpu(r, "full, profile", "busy")),
    ("training on a GPU, counted MFU", "≥ 0.4", "gpu", lambda r: _gpu(r, "full", "mfu")),
    ("waits of the host in a step", "≤ 2", "gpu", lambda r: _gpu(r, "full, waits of the host in a step", "number")),
    ("data wait of a step", "≤ 0.01", "gpu", lambda r: _data_wait(row(r, part="steps", what="full"))),
]


def _ratio(found: dict[str, Any]) -> tuple[Any, str]:
    return found["ratio"], found["spread"]


def _balance(found: dict[str, Any]) -> tuple[Any, str]:
    above = f"{100 * found['steps_above_goal']:.2g} % of steps above, worst {found['worst_step']}"
    return found["slowest_of_mean"], above


def _equal(found: dict[str, Any]) -> tuple[Any, str]:
    return f"{found['equal']:,} of {found['compared']:,}", f"{found['skipped']} skipped" if found["skipped"] else ""


def _codec(rows: Rows, column: str) -> tuple[Any, str]:
    return row(rows, codec="delta")[column], ""


def _small(rows: Rows, begins: str) -> dict[str, Any]:
    return next(r for r in rows if r["command"].startswith(begins))


def _cpu(found: dict[str, Any]) -> tuple[Any, str]:
    return found["cpu_seconds"], found["spread"]


def _of_files(rows: Rows, kind: str) -> tuple[Any, str]:
    found = row(rows, rows=kind, codec="source")
    share = round(found["bytes_a_token"] / found["source_bytes_a_token"], 3)
    return share, "ids, labels and positions: 20 bytes a token"


def _load(rows: Rows, method: str) -> Any:
    return row(rows, method=method)["of_plain_copy"]


def _workers(found: dict[str, Any]) -> tuple[Any, str]:
    return found["speedup"], f"one core a worker; {found['spread']}"


def _loading(found: dict[str, Any]) -> tuple[Any, str]:
    return found["loading_ratio"], found["loading_spread"]


def _gpu(rows: Rows, what: str, column: str) -> tuple[Any, str]:
    return round(row(rows, part="steps", what=what)[column], 3), ""


def _data_wait(step: dict[str, Any]) -> tuple[Any, str]:
    return round(step["data_wait_ms"] / step["step_ms"], 4), f"{step['data_wait_ms']} ms"


def main() -> None:
    lines = []
    for what, goal, name, take in CLAIMS:
        path = RESULTS / f"{name}.json"
        measured: Any = "not measured"
        spread = ""
        if path.exists():
            measured, spread = take(json.loads(path.read_text())["rows"])
        lines.append({"what": what, "goal": goal, "measured": measured, "spread": spread})
    show(lines)


if __name__ == "__main__":
    main()
