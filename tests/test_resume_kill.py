"""Killed with -9 at any moment of any stage and run again: the bytes of a build that nobody killed, and nothing done
twice."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from omniprep import io
from omniprep.compiler.output import lease
from omniprep.compiler.output.progress_file import PROGRESS
from omniprep.errors import OmniprepError
from omniprep.io import files
from tests.reliability import command, in_fork, make_chats, outcome, run_cli, wait_for, warm

SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 40))]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> tuple[list[Path], dict[str, str], int, float]:
    """Inputs, the outcome of a build that nobody killed, its number of file commits, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    warm(model_dir)
    inputs = make_chats(folder / "in", rows=48, files=3)
    log, count = folder / "log", folder / "count"
    began = time.monotonic()
    assert wait_for(in_fork(lambda: counted(command(inputs, model_dir, folder / "out"), count), log)) == 0, (
        log.read_text()
    )
    return inputs, outcome(folder / "out"), int(count.read_text()), time.monotonic() - began


def counted(args: list[str], count: Path) -> int:
    calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1

    hook_commits(step)
    status = run_cli(args)
    count.write_text(str(calls))
    return status


def hook_commits(step: Callable[[], None]) -> None:
    """Call `step` before and after every rename and every write: the moments between which the state on disk
    differs. Not those of progress.json, which is written by the clock: builds of other speed would have other counts."""
    replace, remove = os.replace, io.remove
    io_open = open

    def counts(name: object) -> bool:
        return PROGRESS[-1] not in str(name)

    def hooked_replace(old: str, new: str) -> None:
        if counts(new):
            step()
        replace(old, new)
        if counts(new):
            step()

    def hooked_remove(uri: str) -> None:
        if counts(uri):
            step()
        remove(uri)
        if counts(uri):
            step()

    def hooked_open(name: object, mode: str = "r", *more: object) -> object:
        if "w" in mode and counts(name):
            step()
        return io_open(name, mode, *more)  # type: ignore[call-overload]

    os.replace = hooked_replace  # type: ignore[assignment]
    io.remove = hooked_remove
    files.open = hooked_open  # type: ignore[attr-defined]


def killed_at(args: list[str], at: int) -> int:
    calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)

    hook_commits(step)
    return run_cli(args)


def killed_before(args: list[str], name: str) -> int:
    """Killed when the file of this name is about to get it."""
    replace = os.replace

    def hooked(old: str, new: str) -> None:
        if Path(new).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    os.replace = hooked  # type: ignore[assignment]
    return run_cli(args)


def receipts(out: Path) -> dict[str, int]:
    """Receipts of splits and shards, with the time they were written."""
    found = [*out.glob("plan/split-*.json"), *out.glob("receipts/*.json")]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in found}


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_commits(tmp_path: Path, model_dir: Path, undisturbed, seed: int) -> None:
    inputs, expected, commits, _ = undisturbed
    rng = random.Random(seed)
    args, log = command(inputs, model_dir, tmp_path / "out"), tmp_path / "log"
    done: dict[str, int] = {}
    for _ in range(rng.randint(1, 4)):
        status = wait_for(in_fork(lambda at=rng.randint(1, commits): killed_at(args, at), log))
        assert status in (0, -signal.SIGKILL), log.read_text()
        now = receipts(tmp_path / "out")
        assert done.items() <= now.items(), "a finished task was done again"
        done = now
    assert wait_for(in_fork(lambda: run_cli(args), log)) == 0, log.read_text()
    assert done.items() <= receipts(tmp_path / "out").items()
    assert outcome(tmp_path / "out") == expected
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".tmp", ".begun") or p.name == "lease.json"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_times(tmp_path: Path, model_dir: Path, undisturbed, seed: int) -> None:
    inputs, expected, _, seconds = undisturbed
    rng = random.Random(seed)
    args, log = command(inputs, model_dir, tmp_path / "out"), tmp_path / "log"
    done: dict[str, int] = {}
    for _ in range(3):
        pid = in_fork(lambda: run_cli(args), log)
        time.sleep(rng.uniform(0, seconds))
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)
        wait_for(pid)
        now = receipts(tmp_path / "out")
        assert done.items() <= now.items(), "a finished task was done again"
        done = now
    assert wait_for(in_fork(lambda: run_cli(args), log)) == 0, log.read_text()
    assert outcome(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_driver_and_workers_killed_on_ray(tmp_path: Path, model_dir: Path, undisturbed, seed: int) -> None:
    inputs, expected, _, _ = undisturbed
    rng = random.Random(seed)
    args, log = command(inputs, model_dir, tmp_path / "out", "--workers", 2), tmp_path / "log"
    pid = in_fork(lambda: run_cli(args), log)
    end = time.monotonic() + rng.uniform(5, 40)
    while time.monotonic() < end and not os.waitpid(pid, os.WNOHANG)[0]:
        for victim in ray_workers(pid):
            if rng.random() < 0.02:
                os.kill(victim, signal.SIGKILL)
        time.sleep(0.2)
    kill_tree(pid)
    done = receipts(tmp_path / "out")
    assert wait_for(in_fork(lambda: run_cli(args), log), 600) == 0, log.read_text()
    assert done.items() <= receipts(tmp_path / "out").items()
    assert outcome(tmp_path / "out") == expected


def descendants(pid: int) -> list[int]:
    found, stack = [], [pid]
    while stack:
        parent = stack.pop()
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = [int(text) for text in path.read_text().split()]
            except OSError:
                continue
            found += children
            stack += children
    return found


def ray_workers(pid: int) -> list[int]:
    """Workers of the build's own Ray that run a task."""
    result = []
    for child in descendants(pid):
        try:
            if b"ray::" in Path(f"/proc/{child}/cmdline").read_bytes():
                result.append(child)
        except OSError:
            continue
    return result


def kill_tree(pid: int) -> None:
    for victim in [*descendants(pid), pid]:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def test_a_second_build_stops(tmp_path: Path, model_dir: Path, undisturbed) -> None:
    inputs, _, _, _ = undisturbed
    out, log = tmp_path / "out", tmp_path / "log"
    with lease.hold(str(out)):
        assert wait_for(in_fork(lambda: run_cli(command(inputs, model_dir, out)), log)) == 1
    assert f"another build is at work there (process {os.getpid()}" in log.read_text()
    assert not (out / "lease.json").exists()


def write_foreign(out: Path, age: float, beat: int = 5) -> None:
    out.mkdir(exist_ok=True)
    entry = {
        "token": "x",
        "host": "elsewhere",
        "boot": "y",
        "pid": 7,
        "started": 1,
        "beat": beat,
        "time": time.time() - age,
    }
    (out / "lease.json").write_text(json.dumps(entry))


def test_a_lease_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alive: stop. Dead for long, or with a clock that is far off: watched, then taken over, unless it moves."""
    monkeypatch.setattr(lease, "WATCH", 0.6)
    out = tmp_path / "out"
    write_foreign(out, age=10)
    with (
        pytest.raises(OmniprepError, match=r"process 7 on elsewhere; its last sign of life is 1\d s old"),
        lease.hold(str(out)),
    ):
        pass
    for age in (1e4, -1e6):  # long dead; a clock from the future
        write_foreign(out, age)
        said: list[str] = []
        with lease.hold(str(out), said.append) as held:
            held.check()
            assert "watching" in said[0]
        assert not (out / "lease.json").exists()
    write_foreign(out, age=1e4)
    with (
        pytest.raises(OmniprepError, match="at work"),
        lease.hold(str(out), lambda text: write_foreign(out, 1e4, beat=6)),
    ):
        pass
    (out / "lease.json").write_text('{"tok')  # cut off
    with lease.hold(str(out)):
        pass


def test_a_lease_that_is_lost_stops_its_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    out = tmp_path / "out"
    with lease.hold(str(out)) as held:
        write_foreign(out, age=0)
        time.sleep(0.4)
        with pytest.raises(OmniprepError, match="process 7 on elsewhere has taken over"):
            held.check()
    assert (out / "lease.json").exists()


def test_a_killed_build_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    def die() -> None:
        with lease.hold(str(tmp_path / "out")):
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(in_fork(die)) == -signal.SIGKILL
    began = time.monotonic()
    with lease.hold(str(tmp_path / "out")):
        assert time.monotonic() - began < 1


def test_what_changed_is_named(tmp_path: Path, model_dir: Path, undisturbed) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    inputs = make_chats(tmp_path / "in", rows=6)
    assert wait_for(in_fork(lambda: run_cli(command(inputs, model_dir, out)), log)) == 0
    done = receipts(out)

    def again(*more: object, inputs: list[Path] = inputs) -> tuple[int, str]:
        log.unlink(missing_ok=True)
        return wait_for(in_fork(lambda: run_cli(command(inputs, model_dir, out, *more)), log)), log.read_text()

    status, text = again()
    assert status == 0 and "already built" in text and receipts(out) == done
    status, text = again("--seed", 3, "--max-pixels", 50000)
    assert status == 1 and "--seed: 0 → 3" in text and "--max-pixels: None → 50000" in text
    inputs[0].write_text(inputs[0].read_text().replace("question", "Question"))
    status, text = again()
    assert status == 1 and f"input {inputs[0]} was changed" in text and str(inputs[1]) not in text
    status, text = again(inputs=inputs[1:])
    assert status == 1 and f"input {inputs[0]} is gone" in text
    status, text = again("--overwrite")
    assert status == 0 and not set(receipts(out).values()) & set(done.values())


def test_a_shard_that_vanished_or_was_cut_is_done_again(tmp_path: Path, model_dir: Path, undisturbed) -> None:
    inputs, expected, _, _ = undisturbed
    out, log = tmp_path / "out", tmp_path / "log"
    args = command(inputs, model_dir, out)
    assert wait_for(in_fork(lambda: killed_before(args, "manifest.json"), log)) == -signal.SIGKILL
    shards = sorted(out.glob("shards/*.arrow"))
    assert not (out / "manifest.json").exists() and len(shards) > 2
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-10])
    assert wait_for(in_fork(lambda: run_cli(args), log)) == 0, log.read_text()
    assert outcome(out) == expected
