"""Time until `omniprep --help` answers, and what `import omniprep.data` leaves out; the goal is 0.4 s.

python benchmarks/cli.py [--rounds 7]
"""

import argparse
import subprocess
import sys
import time
from statistics import median

from record import record

PROGRAMS = {
    "omniprep --help": [sys.executable, "-m", "omniprep", "--help"],
    "omniprep build --help": [sys.executable, "-m", "omniprep", "build", "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}
LEFT_OUT = "import sys, omniprep.data; sys.exit(any(name in sys.modules for name in ('transformers', 'ray')))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    record("cli", rows, import_of_data_loads_transformers_or_ray=False)


def _children() -> float:
    import os

    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
