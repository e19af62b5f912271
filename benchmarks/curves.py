"""Cost of a build against the bin length, and against the share of tokens that are media.

CPU time on one thread of whole builds (report.html apart), all corpora in turns; medians. Beside it what a longer bin
buys (fill) and costs (peak memory is that of the largest bin, of its media above all).

    python benchmarks/curves.py --model CHECKPOINT [--data FOLDER] [--rounds 3]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from corpus import make
from record import leave_out_report, record

LENGTHS = (4096, 8192, 32768, 131072)
SHARES = (0, 25, 50, 75, 100)
MIXED = {"text": 600, "image": 24, "audio": 12, "video": 4}
TOKENS = 60_000
"""Of each corpus of a share, about."""
FIRST = 40
"""Rows that tell how many tokens a row of each kind has."""


def build(inputs: list[Path], model: str, length: int, row_length: int | None) -> tuple[float, dict[str, Any], int]:
    """CPU seconds of a build, its manifest, bytes of its largest bin."""
    import omniprep.compiler.build as run
    from omniprep.bars import reporter
    from omniprep.config import BuildConfig
    from omniprep.shards.index import read_index

    leave_out_report()
    with tempfile.TemporaryDirectory(prefix="omniprep-curves-") as folder, reporter(quiet=True) as progress:
        config = BuildConfig(
            inputs=tuple(map(str, inputs)), model=model, bin_length=length, max_length=row_length,
            out=f"{folder}/out", workers=0,
        )  # fmt: skip
        begin = time.process_time()
        manifest = run.build(config, progress)
        seconds = time.process_time() - begin
        assert not manifest["counts"]["rows"]["rejected"], manifest["counts"]
        return seconds, manifest, int(read_index(f"{folder}/out/index.parquet")["length"].max())


def share_files(folder: Path, model: str, data: Path | None) -> dict[int, list[Path]]:
    """For each share, files of text rows and of image rows that make about so many of the tokens."""
    each = {}
    for kind in ("text", "image"):
        few = make(folder / f"few-{kind}", {kind: FIRST}, data)
        each[kind] = build([few[kind]], model, 8192, None)[1]["counts"]["tokens"] / FIRST
    most = {kind: round(TOKENS / each[kind]) for kind in each}
    files = make(folder / "shares", most, data)
    corpora: dict[int, list[Path]] = {}
    for share in SHARES:
        corpora[share] = []
        for kind, part in (("text", 100 - share), ("image", share)):
            lines = files[kind].read_text().splitlines(keepends=True)
            if count := round(most[kind] * part / 100):
                path = files[kind].with_name(f"{kind}-{part}.jsonl")
                path.write_text("".join(lines[:count]))
                corpora[share].append(path)
    return corpora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(prefix="omniprep-curves-") as name:
        mixed = list(make(Path(name) / "mixed", MIXED, options.data).values())
        runs: dict[tuple[str, int], tuple[list[Path], int]] = {}
        runs |= {("bin length", length): (mixed, length) for length in LENGTHS}
        shares = share_files(Path(name), options.model, options.data)
        runs |= {("% of tokens in image rows", share): (files, 8192) for share, files in shares.items()}
        found: dict[tuple[str, int], list[tuple[float, dict[str, Any], int]]] = {}
        for turn in range(options.rounds + 1):
            for key, (files, length) in runs.items():
                answer = build(files, options.model, length, min(LENGTHS) if key[0] == "bin length" else None)
                if turn:  # the first warms caches
                    found.setdefault(key, []).append(answer)
    rows = []
    for (what, at), answers in found.items():
        seconds = median(answer[0] for answer in answers)
        _, manifest, largest = answers[0]
        tokens = manifest["counts"]["tokens"]
        rows.append(
            {
                "against": what,
                "value": at,
                "tokens": tokens,
                "microseconds_a_token": round(seconds / tokens * 1e6, 2),
                "tokens_per_second": round(tokens / seconds),
                "fill": round(manifest["fill"], 4),
                "largest_bin_mb": round(largest / 1e6, 1),
                "shard_bytes_a_token": round(sum(shard["bytes"] for shard in manifest["shards"]) / tokens, 1),
            }
        )
    record("curves", rows, mixed=MIXED, rounds=options.rounds)


if __name__ == "__main__":
    main()
