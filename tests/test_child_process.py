"""Work of a Python process of its own: its answer, its failure, what it prints, and what it may import."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omniprep.child_process import call_in_child, start_in_child

WORK = """
import os, sys

def answer(argument):
    print("a library says something")
    return f"{argument['text']} {os.getcwd()} {os.getpid()}".encode()

def nothing(argument):
    return None

def fail(argument):
    raise ValueError("not here")

def die(argument):
    os.kill(os.getpid(), 9)

def wait(argument):
    print("begun", file=sys.stderr, flush=True)
    import time
    time.sleep(600)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work_of_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_answer_and_not_what_is_printed(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = call_in_child("work_of_test:answer", {"text": "中"})
    assert answer is not None
    text, folder, pid = answer.decode().split()
    assert (text, folder) == ("中", os.getcwd()) and int(pid) != os.getpid()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "a library says something\n")


@pytest.mark.parametrize("function", ["nothing", "fail", "die", "absent"])
def test_no_answer_leaves_the_work_to_the_caller(work: Path, function: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert call_in_child(f"work_of_test:{function}", {}) is None
    assert "Traceback" not in capfd.readouterr().err, "the caller meets the same error, and tells it"


def test_without_an_interpreter_there_is_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert call_in_child("json:dumps", {}) is None and start_in_child("json:dumps", {}) is None


def test_ctrl_c_ends_the_child_without_a_word_of_its_own(work: Path) -> None:
    code = "from omniprep.child_process import call_in_child; call_in_child('work_of_test:wait', {})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(work), *filter(None, sys.path)])},
    )  # fmt: skip
    assert process.stderr is not None and process.stderr.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGINT)
    said = process.stderr.read()  # to its end: no process holds the pipe any more
    assert process.wait(60) != 0
    assert said.count("Traceback") == 1 and "time.sleep" not in said
