"""What all benchmarks share: builds without a report, the machine, the table they print, the JSON in results/."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def leave_out_report() -> None:
    """Builds of this process write no report.html: its plots take longer than the builds that are measured."""
    import omniprep.compiler.build as run

    assert hasattr(run, "write_dataset_report")  # under another name it would be timed without a word
    run.write_dataset_report = lambda *_: None


def load_kernels() -> None:
    """Load all compiled code now: a process does so after 128 pictures, and small corpora would be half without it."""
    import omniprep.shards.codecs.delta_kernels  # noqa: F401
    from omniprep.media.resample import image_is_fast, video_is_fast

    assert image_is_fast() and video_is_fast()


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": model, "cores": cores, "memory_gib": round(memory, 1), "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Of the packages that the numbers depend on."""
    found = {}
    for name in (
        "omniprep",
        "torch",
        "transformers",
        "tokenizers",
        "pyarrow",
        "numpy",
        "numba",
        "pillow",
        "av",
        "decord",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def record(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Print the rows as a table and write them, with machine and versions, to results/NAME.json."""
    show(rows)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "versions": versions(), **facts, "rows": rows}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return f"{value:,.5g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
