"""The time limit of rows: what it ends, and that it leaves rows alone that come before and after."""

import subprocess
import sys

import pytest

PRELUDE = """
import re, threading, time
from omniprep.compiler.isolate.deadline import row_deadline, row_deadlines
before = threading.active_count()
def hang_with_the_interpreter_locked():
    re.match("(a+)+b", "a" * 64)  # no other Python thread runs until it ends, in years
def rows(number):
    for _ in range(number):
        with row_deadline("a fast row"):
            pass
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PRELUDE + body], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("rows_before", [0, 1000])
def test_a_row_that_hangs_ends_the_process_with_its_label(rows_before: int) -> None:
    done = run(f"""
with row_deadlines(0.2):
    rows({rows_before})
    with row_deadline("clip.mp4"):
        time.sleep(30)
""")
    assert done.returncode == 1 and "Error: clip.mp4: decoding did not end within 0.2 s." in done.stderr


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_a_row_that_hangs_with_the_interpreter_locked_ends_the_process(pause: float) -> None:
    """Right after other rows, whose alarm it uses, and after a pause, in which that alarm was canceled."""
    done = run(f"""
with row_deadlines(0.2):
    rows(1000)
    time.sleep({pause})
    with row_deadline("clip.mp4"):
        hang_with_the_interpreter_locked()
""")
    assert done.returncode == 1 and "Timeout" in done.stderr and "hang_with_the_interpreter_locked" in done.stderr


def test_what_lasts_between_rows_and_after_them_is_no_hung_row() -> None:
    """1.5 s is more than the limit and than the alarm's 0.125 + 1 + 0.01 s."""
    done = run("""
with row_deadlines(0.1):
    rows(1000)
    time.sleep(1.5)
    rows(1)
    with row_deadlines(0.2):
        rows(1)
    rows(1)
time.sleep(1.5)
assert threading.active_count() == before
print("done")
""")
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_many_rows_together_may_take_longer_than_one() -> None:
    done = run("""
with row_deadlines(0.3):
    for _ in range(30):
        with row_deadline("a row"):
            time.sleep(0.07)
print("done")
""")
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
