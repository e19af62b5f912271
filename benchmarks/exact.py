"""Rows equal to the reference, and builds that were killed: the tests that compare them, counted.

python benchmarks/exact.py [--slow]
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import record

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "rows equal to the reference": ("tests/test_parity.py", "tests/test_samples.py"),
    "killed builds equal to those never killed": ("tests/test_resume_kill.py",),
}


def counted(files: tuple[str, ...], marked: list[str]) -> dict[str, Any]:
    """How many tests passed, failed and were left out."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *marked, *files]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-2000:]}")
    found = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    found |= {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    equal, compared = found["passed"], found["passed"] + found["failed"] + found["error"]
    return {"equal": equal, "compared": compared, "skipped": found["skipped"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="all deaths, not a sample of them")
    options = parser.parse_args()
    marked = ["-v"] if options.slow else ["-v", "-m", "not slow"]
    record("exact", [{"what": what, **counted(files, marked)} for what, files in TESTS.items()])


if __name__ == "__main__":
    main()
