"""Time until `omniprep --help` answers (the goal is 0.4 s), what `import omniprep.data` leaves out, and a small build.

The build is of the 40-odd rows of data_samples with `--workers 0`, report included, in a process of its own; what it
takes to import is told apart.

    python benchmarks/cli.py [--model CHECKPOINT] [--rounds 7]
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

from record import record

PROGRAMS = {
    "omniprep --help": [sys.executable, "-m", "omniprep", "--help"],
    "omniprep build --help": [sys.executable, "-m", "omniprep", "build", "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}
BUILD = """
import json, sys, time
begin = time.perf_counter()
import torch, torchvision, transformers, librosa
from omniprep.build.run import build
from omniprep.config import BuildConfig
from omniprep.progress import reporter
imported = time.perf_counter()
with reporter(quiet=True) as progress:
    model, out, *inputs = sys.argv[1:]
    manifest = build(BuildConfig(inputs=tuple(inputs), model=model, bin_length=4096, out=out, workers=0), progress)
print(json.dumps([imported - begin, time.perf_counter() - imported, manifest["counts"]["rows"]["read"]]))
"""
SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
LEFT_OUT = "import sys, omniprep.data; sys.exit(any(name in sys.modules for name in ('transformers', 'ray')))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {}
    for turn in range(options.rounds + 1):
        for name, command in PROGRAMS.items():
            begin = time.perf_counter()
            cpu = _children()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:
                seconds.setdefault(name, []).append((time.perf_counter() - begin, _children() - cpu))
    subprocess.run([sys.executable, "-c", LEFT_OUT], check=True)
    rows = [
        {
            "command": name,
            "seconds": round(median(wall for wall, _ in times), 3),
            "cpu_seconds": round(median(cpu for _, cpu in times), 3),
            "spread": f"{min(wall for wall, _ in times):.2f} to {max(wall for wall, _ in times):.2f}",
            "goal": 0.4,
        }
        for name, times in seconds.items()
    ]
    if options.model:
        rows += small_build(options.model)
    record("cli", rows, import_of_data_loads_transformers_or_ray=False)


def small_build(model: str) -> list[dict[str, Any]]:
    inputs = [str(path) for path in sorted(SAMPLES.glob("*.json*")) if path.stem != "broken"]
    answers = []
    for _ in range(4):
        with tempfile.TemporaryDirectory(prefix="omniprep-cli-") as folder:
            command = [sys.executable, "-c", BUILD, model, f"{folder}/out", *inputs]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            answers.append(json.loads(done.stdout.splitlines()[-1]))
    found = []
    for at, name in enumerate(("imports of a build", f"build of {answers[0][2]} rows after them")):
        times = [answer[at] for answer in answers[1:]]  # the first compiled the kernels, perhaps
        spread = f"{min(times):.2f} to {max(times):.2f}"
        found.append({"command": name, "seconds": round(median(times), 3), "spread": spread})
    return found


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
