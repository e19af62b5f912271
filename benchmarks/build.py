"""Tokens a second a core of building and of loading, against ms-swift's encode of the same rows.

Processes stay warm and take turns, kind by kind and round by round, so all see the same machine; what is compared is
the CPU time of a process on one thread (a busy machine lengthens both). ms-swift's side counts template.encode alone;
the build counts all from reading the rows to the renamed shard and its manifest (report.html is apart), loading counts
all from the open dataset to the contiguous host tensors of each bin. Beside them, transformers' own processor row by
row (no labels, no writing; by tokens a second, since it takes other frames of videos), and the whole command
`swift export --to_cached_dataset`, which writes to disk as we do, less its start-up. ms-swift 3.9.x lives in an
environment of its own: give its Python with --rival or OMNIPREP_SWIFT_PYTHON.

    python benchmarks/build.py --model CHECKPOINT [--rival PYTHON] [--data FOLDER] [--rounds 3]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from corpus import make
from record import leave_out_report, load_kernels, record

ROWS = {"text": 600, "image": 18, "audio": 9, "video": 4}
GOALS = {"text": 5.0, "image": 3.5, "video": 4.0, "all": 4.0}
LOADS = 5
EXPORTS, LARGER = 3, 5
HERE = Path(__file__).resolve().parent


def load(folder: str) -> float:
    """CPU seconds of one pass over a built dataset: the median of some, bins already in the page cache."""
    from omniprep.data import PackedDataset, stack

    dataset = PackedDataset(folder)
    seconds = []
    for _ in range(LOADS):
        begin = time.process_time()
        for number in range(len(dataset)):
            stack([dataset[number]])
        seconds.append(time.process_time() - begin)
    return median(seconds)


def worker(model: str) -> None:
    """Build, then load, each file that standard input names; answer with CPU seconds and tokens."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import omniprep.compiler.build as run
    from omniprep.bars import reporter
    from omniprep.config import BuildConfig
    from omniprep.garbage import collect_seldom

    collect_seldom()  # as the command does
    leave_out_report()
    load_kernels()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="omniprep-bench-") as folder, reporter(quiet=True) as progress:
            options = BuildConfig(inputs=(line.strip(),), model=model, bin_length=32768, out=f"{folder}/out", workers=0)
            begin = time.process_time()
            counts = run.build(options, progress)["counts"]
            seconds = time.process_time() - begin
            loading = load(f"{folder}/out")
        assert not counts["rows"]["rejected"], counts
        answer = {"seconds": seconds, "loading": loading, "tokens": counts["tokens"], "rows": counts["rows"]["packed"]}
        print(json.dumps(answer), file=answers, flush=True)


def start(command: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)
    ask(process)
    return process


def ask(process: "subprocess.Popen[str]", path: Path | None = None) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    if path is not None:
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"benchmarks/build.py: {process.args!r} ended; run it by hand to see why")
    answer: dict[str, Any] = json.loads(line)
    return answer


def measure(model: str, rival: str, data: Path | None, rounds: int, folder: Path) -> list[dict[str, Any]]:
    files = make(folder / "corpus", ROWS, data)
    warm = make(folder / "warm", dict.fromkeys(ROWS, 2), data)
    sides = {
        "omniprep": start([sys.executable, str(Path(__file__).resolve()), "--worker", "--model", model]),
        "ms-swift": start([rival, str(HERE / "ms_swift_worker.py"), model]),
        "processor": start([sys.executable, str(HERE / "processor_worker.py"), model]),
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    tokens: dict[str, int] = {}
    rate: dict[str, list[float]] = {}
    try:
        for path in warm.values():
            for process in sides.values():
                ask(process, path)
        for _ in range(rounds):
            for kind, path in files.items():
                for side, process in sides.items():
                    answer = ask(process, path)
                    seconds.setdefault((side, kind), []).append(answer["seconds"])
                    if side == "processor":
                        rate.setdefault(kind, []).append(answer["tokens"] / answer["seconds"])
                        continue
                    if "loading" in answer:
                        seconds.setdefault(("loading", kind), []).append(answer["loading"])
                    assert tokens.setdefault(kind, answer["tokens"]) == answer["tokens"], (side, kind, answer)
    finally:
        for process in sides.values():
            process.kill()
            process.wait()
    for side in ("omniprep", "ms-swift", "loading"):
        seconds[side, "all"] = [sum(parts) for parts in zip(*(seconds[side, kind] for kind in files), strict=True)]
    tokens["all"] = sum(tokens.values())
    rows = []
    for kind in (*files, "all"):
        ours, theirs = seconds["omniprep", kind], seconds["ms-swift", kind]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        loads = [b / a for a, b in zip(seconds["loading", kind], theirs, strict=True)]
        rows.append(
            {
                "rows": kind,
                "tokens": tokens[kind],
                "ms_swift_tokens_per_second": round(tokens[kind] / median(theirs)),
                "omniprep_tokens_per_second": round(tokens[kind] / median(ours)),
                "ratio": round(median(ratios), 2),
                "spread": f"{min(ratios):.2f} to {max(ratios):.2f}",
                "goal": GOALS.get(kind, ""),
                "processor_tokens_per_second": round(median(rate[kind])) if kind in rate else "",
                "loading_ratio": round(median(loads)),
                "loading_spread": f"{min(loads):.0f} to {max(loads):.0f}",
            }
        )
    return rows


def export(model: str, rival: str, files: dict[str, Path], folder: Path) -> float:
    """CPU seconds of `swift export --to_cached_dataset` over some files, start and end of the program included."""
    command = [str(Path(rival).with_name("swift")), "export", "--model", model, "--model_type", "qwen2_5_omni"]
    command += ["--dataset", *map(str, files.values()), "--to_cached_dataset", "true", "--output_dir", str(folder)]
    command += ["--max_length", str(1 << 17), "--split_dataset_ratio", "0", "--dataset_num_proc", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["HF_DATASETS_CACHE"] = str(folder.with_name(f"{folder.name}-cache"))  # nothing of a run before
    where = next(iter(files.values())).parent
    before = os.times()
    subprocess.run(
        command, check=True, cwd=where, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def exported(model: str, rival: str, data: Path | None, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The whole command against ours over all kinds: its seconds on a larger corpus (its start-up takes longer than the
    small one) less those on two rows of each kind.
    """
    files = make(folder / "large", {kind: LARGER * number for kind, number in ROWS.items()}, data)
    few = make(folder / "warm", dict.fromkeys(ROWS, 2), data)
    seconds = sorted(
        export(model, rival, files, folder / f"all{turn}") - export(model, rival, few, folder / f"few{turn}")
        for turn in range(EXPORTS)
    )
    whole = next(row for row in rows if row["rows"] == "all")
    ours = LARGER * whole["tokens"] / whole["omniprep_tokens_per_second"]
    return {
        "rows": "all, against `swift export`",
        "tokens": LARGER * whole["tokens"],
        "ratio": round(median(seconds) / ours, 2),
        "spread": f"{seconds[0] / ours:.2f} to {seconds[-1] / ours:.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--rival", default=os.environ.get("OMNIPREP_SWIFT_PYTHON"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-export", dest="export", action="store_false", help="leave out `swift export`")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.model)
        return
    if not options.model or not options.rival or not Path(options.rival).exists():
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL) and the Python of an environment with ms-swift 3.9.x,")
        print("         --rival (OMNIPREP_SWIFT_PYTHON)")
        return
    with tempfile.TemporaryDirectory(prefix="omniprep-build-") as name:
        rows = measure(options.model, options.rival, options.data, options.rounds, Path(name))
        if options.export:
            rows.append(exported(options.model, options.rival, options.data, rows, Path(name)))
    record("build", rows, corpus=ROWS, rounds=options.rounds)


if __name__ == "__main__":
    main()
