"""Full disk, read-only disk, no permission, SIGTERM, Ctrl-C, a clock that jumps: a clear last line, and the same
command goes on."""

import builtins
import ctypes
import errno
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omniprep import io
from omniprep.io import files
from tests.reliability import command, in_fork, make_chats, outcome, run_cli, wait_for, warm


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[list[Path], dict[str, str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    warm(model_dir)
    inputs = make_chats(folder / "in", rows=30)
    assert wait_for(in_fork(lambda: run_cli(command(inputs, model_dir, folder / "out")), folder / "log")) == 0
    return inputs, outcome(folder / "out")


def failing(args: list[str], budget: int, number: int) -> int:
    """A disk that takes `budget` bytes and then answers every write with error `number`."""
    left = budget

    class Disk:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            nonlocal left
            left -= memoryview(data).nbytes
            if left < 0:
                raise OSError(number, os.strerror(number))
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> "Disk":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

    def opened(name: Any, mode: str = "r", *more: Any) -> Any:
        file = builtins.open(name, mode, *more)
        return Disk(file) if "w" in mode else file

    files.open = opened  # type: ignore[attr-defined]
    return run_cli(args)


def last_line(log: Path) -> str:
    return log.read_text().strip().splitlines()[-1]


SAID = {
    errno.ENOSPC: "no space is left",
    errno.EROFS: "read-only",
    errno.EACCES: "no permission",
    errno.EIO: "input/output error",
}


@pytest.mark.parametrize("number", SAID, ids=errno.errorcode.get)
def test_a_disk_that_fails(tmp_path: Path, model_dir: Path, undisturbed, number: int) -> None:
    inputs, expected = undisturbed
    out, log = tmp_path / "out", tmp_path / "log"
    args = command(inputs, model_dir, out)
    rng = random.Random(number)
    for budget in (0, *(rng.randrange(60_000) for _ in range(3))):
        status = wait_for(in_fork(lambda budget=budget: failing(args, budget, number), log))
        assert status == 1, log.read_text()
        assert SAID[number] in last_line(log) and str(out) in last_line(log) and "Traceback" not in log.read_text()
        assert not list(out.rglob("*.tmp")), "half-written files stay"
    assert wait_for(in_fork(lambda: run_cli(args), log)) == 0, log.read_text()
    assert outcome(out) == expected


def interrupted(args: list[str], number: int, at: int) -> int:
    """Send ourselves a signal at the at-th write."""
    writes = 0
    write: Callable[..., Any] = io.write_atomic

    def counted(uri: str, data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes == at:
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        write(uri, data)

    io.write_atomic = counted
    return run_cli(args)


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 1, "Terminated"), (signal.SIGINT, 130, "Interrupted")]
)
def test_signals(tmp_path: Path, model_dir: Path, undisturbed, number: int, status: int, word: str) -> None:
    inputs, expected = undisturbed
    out, log = tmp_path / "out", tmp_path / "log"
    args = command(inputs, model_dir, out)
    for at in (3, 4, 5):  # of 16 writes; each run makes those again that only it can have made
        assert wait_for(in_fork(lambda at=at: interrupted(args, number, at), log)) == status, log.read_text()
        assert last_line(log) == f"{word}. The same command again goes on where this one stopped."
        assert not list(out.rglob("*.tmp")) and not (out / "lease.json").exists()
    assert wait_for(in_fork(lambda: run_cli(args), log)) == 0, log.read_text()
    assert outcome(out) == expected


def test_a_clock_that_jumps(tmp_path: Path, model_dir: Path, undisturbed) -> None:
    """Wall time enters nothing: a build under a clock that leaps back and forth by years gives the same bytes."""
    inputs, expected = undisturbed

    def under_a_wild_clock() -> int:
        rng, real = random.Random(1), time.time
        time.time = lambda: real() + rng.uniform(-1e8, 1e8)
        return run_cli(command(inputs, model_dir, tmp_path / "out"))

    assert wait_for(in_fork(under_a_wild_clock, tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    assert outcome(tmp_path / "out") == expected


def without_privileges(work: Callable[[], int]) -> int:
    """Do the work bound by permissions as everybody is: in a container tests run as root, whom they do not bind."""
    if os.geteuid() == 0:
        header = struct.pack("Ii", 0x20080522, 0)  # capset(2), version 3, this process
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capset(header, bytes(24)) == 0, os.strerror(ctypes.get_errno())
    return work()


def test_folders_that_may_not_be_written(tmp_path: Path, model_dir: Path, undisturbed) -> None:
    """chmod -w on --out, on its parent, and on the folder of shards in the middle of a build."""
    inputs, expected = undisturbed
    log = tmp_path / "log"
    log.touch()
    parent, out = tmp_path / "parent", tmp_path / "parent" / "out"
    out.mkdir(parents=True)

    def run(target: Path) -> int:
        args = command(inputs, model_dir, target)
        return wait_for(in_fork(lambda: without_privileges(lambda: run_cli(args)), log))

    for folder, target in ((out, out), (parent, parent / "new")):
        folder.chmod(0o555)
        assert run(target) == 1, log.read_text()
        assert "no permission to write" in last_line(log) and str(target) in last_line(log)
        assert "Traceback" not in log.read_text() and not list(out.iterdir())
        folder.chmod(0o755)
    (out / "shards").mkdir(mode=0o555)
    assert run(out) == 1 and "no permission to write" in last_line(log) and "shards" in last_line(log), log.read_text()
    assert not (out / "manifest.json").exists() and not (out / "lease.json").exists()
    (out / "shards").chmod(0o755)
    assert run(out) == 0, log.read_text()
    assert outcome(out) == expected


def test_places_that_cannot_be_written(tmp_path: Path, model_dir: Path, undisturbed) -> None:
    inputs, _ = undisturbed
    log = tmp_path / "log"
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for out, said in (
        (tmp_path / "file", "a folder is needed"),
        (tmp_path / "full", "holds no omniprep build"),
        (Path("/proc/out"), "/proc/out"),
    ):
        assert wait_for(in_fork(lambda out=out: run_cli(command(inputs, model_dir, out)), log)) == 1
        assert said in last_line(log) and "Traceback" not in log.read_text(), log.read_text()
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
