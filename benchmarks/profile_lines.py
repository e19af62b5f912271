"""Lines of our code that a build spends its time in, kind by kind, by line_profiler: pip install omniprep[bench].

The lines of a function are told apart where they call none of the profiled functions, so that no time is counted twice;
bins are written in the same thread here, which a build does in a thread of its own. Profiling itself costs time where
lines are short: shares below a hundredth are left out.

    python benchmarks/profile_lines.py --model CHECKPOINT [--data FOLDER] [--rounds 2]
"""

import argparse
import importlib
import linecache
import os
import re
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from corpus import make
from record import leave_out_report, record

ROWS = {"text": 600, "image": 36, "audio": 18, "video": 6}
SHOWN, LEAST = 7, 1.0
THROUGH = (
    r"function\(task|registered\(|write_plan\(|\.submit\(|wave = decode\(|yield|\.frames\(|_probe\(|_put_frames\("
    r"|_decode_packet\(|shard\.(put|finish)\(|cache\.compress\(|\.map_item\(|_wait\("
)
"""Lines that call profiled methods, or functions under another name."""
PROFILED = {
    "omniprep.compiler.build": ("build", "_build", "plan", "_encode"),
    "omniprep.compiler.run.stages": ("Stage.run",),
    "omniprep.compiler.run.workers": ("run_tasks", "_run_marked", "_run"),
    "omniprep.compiler.plan.split_task": ("PlanTask.run", "_Planning.run", "_Planning.plan_chunk"),
    "omniprep.compiler.encode.shard_task": ("EncodeTask.run", "_Encoding.run", "_Encoding.encode_bin", "_encode_row"),
    "omniprep.compiler.plan.rows": ("plan_rows", "_render", "_assemble"),
    "omniprep.compiler.plan.placeholders": ("find_placeholders", "fit"),
    "omniprep.compiler.plan.text_checks": ("check_text",),
    "omniprep.compiler.plan.probe": ("find_media", "_probe"),
    "omniprep.media.video": ("probe_video", "_probe", "read_frames", "_put_frames"),
    "omniprep.media.frames": ("VideoStream._decode", "VideoStream._decode_packet"),
    "omniprep.compiler.encode.rows": ("encode_planned", "_map_item", "_decode", "make_bin"),
    "omniprep.families.base": ("Family.map_item",),
    "omniprep.families.qwen.media": ("QwenVision.map_items", "QwenVision.image_pixels", "QwenVision.video_pixels"),
    "omniprep.families.qwen.vision": ("image_patches", "video_patches"),
    "omniprep.media.image": ("decode_image",),
    "omniprep.media.resample": ("resize", "_resize_image", "_pass_across", "_resize_frames"),
    "omniprep.media.audio": ("decode_audio",),
    "omniprep.families.mel": ("log_mel",),
    "omniprep.compiler.encode.shard_file": (
        "ShardFile.compress",
        "ShardFile.put",
        "ShardFile._wait",
        "ShardFile.finish",
        "ShardFile.__exit__",
    ),
    "omniprep.shards.writer": ("ShardWriter.write", "ShardWriter.close", "_arrays", "_media"),
}


class Inline:
    """An executor that does its work where it is asked to."""

    def __init__(self, *_: object) -> None: ...

    def submit(self, work: Any, *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(work(*args))
        return future

    def shutdown(self, cancel_futures: bool = False) -> None: ...


def functions() -> dict[str, Any]:
    """The profiled functions by the name that calls them."""
    found = {}
    for module, names in PROFILED.items():
        for name in names:
            target = importlib.import_module(module)
            for part in name.split("."):
                target = getattr(target, part, None)
            if target is not None:
                found[f"{module}:{name}"] = target
    return found


def profile(path: Path, model: str, rounds: int) -> tuple[Any, float]:
    """Statistics of the lines over some builds of a file, and their seconds."""
    from line_profiler import LineProfiler

    from omniprep.bars import reporter
    from omniprep.compiler.build import build
    from omniprep.config import BuildConfig

    profiler = LineProfiler(*functions().values())
    seconds = 0.0
    for turn in range(rounds + 1):
        with tempfile.TemporaryDirectory(prefix="omniprep-lines-") as folder, reporter(quiet=True) as progress:
            config = BuildConfig(inputs=(str(path),), model=model, bin_length=16384, out=f"{folder}/out", workers=0)
            if turn:  # the first warms caches
                profiler.enable()
            begin = time.perf_counter()
            build(config, progress)
            if turn:
                profiler.disable()
                seconds += time.perf_counter() - begin
    return profiler.get_stats(), seconds


def lines(kind: str, stats: Any, seconds: float) -> list[dict[str, Any]]:
    """The dearest lines that call no profiled function."""
    calls = {name for names in PROFILED.values() for name in names if "." not in name}
    inner = re.compile(rf"\b({'|'.join(sorted(calls))})\(|{THROUGH}")
    found = []
    for (file, _, function), timings in stats.timings.items():
        for number, _, ticks in timings:
            text = linecache.getline(file, number).strip()
            share = 100 * ticks * stats.unit / seconds
            if share >= LEAST and not inner.search(text) and not text.startswith("with "):
                where = f"{Path(file).parent.name}/{Path(file).name}, {function.split('.')[-1]}"
                found.append({"rows": kind, "share_%": round(share, 1), "where": where, "line": f"`{_short(text)}`"})
    return sorted(found, key=lambda line: -line["share_%"])[:SHOWN]


def _short(text: str) -> str:
    text = text.replace("|", "\\|")
    return text if len(text) <= 72 else text[:69] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if not options.model or importlib.util.find_spec("line_profiler") is None:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL) and line_profiler (pip install omniprep[bench])")
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import omniprep.compiler.build
    import omniprep.compiler.encode.shard_file

    leave_out_report()
    omniprep.compiler.encode.shard_file.ThreadPoolExecutor = Inline  # the profiler follows one thread
    rows = []
    with tempfile.TemporaryDirectory(prefix="omniprep-lines-") as name:
        for kind, path in make(Path(name), ROWS, options.data).items():
            rows += lines(kind, *profile(path, options.model, options.rounds))
    record("profile_lines", rows, corpus=ROWS, rounds=options.rounds)


if __name__ == "__main__":
    main()
