"""Two runs in one folder, one of which sleeps: stopped before any change of a file, taken for dead, woken. Whatever it
does then, the folder holds one dataset, whole.

The runs are repacks, which are builds with another source of rows (omniprep/compiler/driver.py): the same lease, fence,
stages and end, without a model.
"""

import itertools
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniprep import io
from omniprep.compiler.driver import run_in_folder
from omniprep.compiler.output import lease
from omniprep.compiler.output.fence import Fence, LostLeaseError
from omniprep.compiler.output.holder import parse
from omniprep.data.dataset import PackedDataset
from omniprep.errors import OmniprepError
from omniprep.io import files
from omniprep.progress import QuietReporter, Reporter
from omniprep.verify.files import check_rows, check_shards
from tests.reliability import command, in_fork, make_chats, outcome, run_cli, wait_for, warm


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """A small dataset to repack."""
    folder = tmp_path_factory.mktemp("source")
    warm(model_dir)
    inputs = make_chats(folder / "in", rows=24)
    assert wait_for(in_fork(lambda: run_cli(command(inputs, model_dir, folder / "out")), folder / "log")) == 0
    from omniprep.compiler.repack import repack  # imported before the forks

    assert repack
    return folder / "out"


def arguments(source: Path, out: Path, seed: int, *more: object) -> list[str]:
    """With another seed, other shards too, and another number of them."""
    size = {1: 1_000, 2: 15_000}[seed]
    fixed = ["repack", source, "--bin-length", 256, "--shard-size", size, "--out", out, "--seed", seed, "--quiet"]
    return [str(argument) for argument in (*fixed, *more)]


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str]]:
    """What undisturbed runs give, by seed."""
    folder = tmp_path_factory.mktemp("expected")
    for seed in (1, 2):
        assert wait_for(in_fork(lambda seed=seed: run_cli(arguments(source, folder / str(seed), seed)))) == 0
    found = {seed: outcome(folder / str(seed)) for seed in (1, 2)}
    assert found[1] != found[2] and len(found[1]) != len(found[2])
    return found


def steps(step: Callable[[], None]) -> None:
    """Call `step` before and after every change of a name, and before every file that is begun."""
    replace, link, unlink, begin = os.replace, os.link, os.unlink, open

    def around(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **more: Any) -> Any:
            step()
            result = change(*args, **more)
            step()
            return result

        return changed

    def opened(name: Any, mode: str = "r", **more: Any) -> Any:
        if "w" in mode:
            step()
        return begin(name, mode, **more)

    os.replace, os.link, os.unlink, files.open = around(replace), around(link), around(unlink), opened  # type: ignore[assignment, attr-defined]


BEAT, STALE, WATCH = 0.03, 0.15, 0.12


def driver(args: list[str], host: str, stops: set[int], kill: int = 0, clock: float = 0.0) -> int:
    """A run on a machine of that name, whose clock is off, that stops or kills itself at some steps."""
    calls = 0

    def step() -> None:
        nonlocal calls
        if threading.current_thread() is not threading.main_thread():
            return
        calls += 1
        if calls == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if calls in stops:
            os.kill(os.getpid(), signal.SIGSTOP)

    lease.BEAT, lease.STALE, lease.WATCH = BEAT, STALE, WATCH
    socket.gethostname = lambda: host
    real = time.time
    time.time = lambda: real() + clock
    steps(step)
    return run_cli(args)


class Runs:
    """Runs in processes of their own, each followed by its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0

    def start(self, args: list[str], stops: set[int] = frozenset(), kill: int = 0, clock: float = 0.0) -> int:  # type: ignore[assignment]
        self.number += 1
        host, log = f"machine-{self.number}", self.folder / f"{self.number}.log"
        pid = in_fork(lambda: driver(args, host, stops, kill, clock), log)
        self.logs = {**getattr(self, "logs", {}), pid: log}
        return pid

    def said(self, pid: int) -> str:
        return self.logs[pid].read_text()

    def follow(self, pid: int, seconds: float = 60) -> int | None:
        """Wait until a run stops (None) or ends (its exit status)."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if done and os.WIFSTOPPED(status):
                return None
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise AssertionError(f"a run did not end within {seconds} s: {self.said(pid)}")


def whole(out: Path, expected: dict[int, dict[str, str]]) -> int | None:
    """Which of the expected datasets a folder holds; None where it has no manifest."""
    if not (out / "manifest.json").exists():
        return None
    dataset = PackedDataset(out, verify="never")
    assert [*check_shards(dataset), *check_rows(dataset)] == []
    seed: int = dataset.manifest["config"]["seed"]
    assert outcome(out) == expected[seed]
    return seed


def left_over(out: Path) -> list[str]:
    return [p.name for p in out.rglob("*") if p.suffix in (".tmp", ".gone", ".begun") or p.name == "lease.json"]


def count_steps(source: Path, folder: Path) -> int:
    counted = folder / "count"

    def work() -> int:
        calls = 0

        def step() -> None:
            nonlocal calls
            calls += threading.current_thread() is threading.main_thread()

        steps(step)
        status = run_cli(arguments(source, folder / "counted", 1))
        counted.write_text(str(calls))
        return status

    assert wait_for(in_fork(work)) == 0
    return int(counted.read_text())


def asleep_and_woken(folder: Path, source: Path, expected: Any, at: int, *second: object) -> None:
    """A sleeps at a step, B takes the folder over and finishes, A wakes."""
    runs, out = Runs(folder), folder / "out"
    a = runs.start(arguments(source, out, 1), stops={at})
    assert runs.follow(a) is None
    was_done = whole(out, expected) == 1
    time.sleep(STALE + BEAT)
    seed = 2 if "--overwrite" in second else 1
    b = runs.start(arguments(source, out, seed, *second))
    assert runs.follow(b) == 0, runs.said(b)
    assert whole(out, expected) == seed
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    os.kill(a, signal.SIGCONT)
    status = runs.follow(a)
    said = runs.said(a)
    if status == 1:
        lost = ("has taken over", "is gone", "at the same moment", "is at work")
        assert any(text in said for text in (*lost, "other options")), said  # the last: it had not begun yet
        assert "Traceback" not in said and said.count("Error: ") == 1, said
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    else:  # it had written its manifest before B began, or found B's, which is the same
        assert status == 0 and (was_done or seed == 1), (status, said)
    assert whole(out, expected) == seed and left_over(out) == []


def test_a_run_that_slept_changes_nothing(tmp_path: Path, source: Path, expected) -> None:
    last = count_steps(source, tmp_path)
    for number, at in enumerate((last // 4, last // 2, last - 12, last - 8)):
        (tmp_path / str(number)).mkdir()
        asleep_and_woken(tmp_path / str(number), source, expected, at, "--overwrite")
    (tmp_path / "same").mkdir()
    asleep_and_woken(tmp_path / "same", source, expected, last // 2)


@pytest.mark.slow
@pytest.mark.parametrize("second", [("--overwrite",), ()], ids=["begins anew", "goes on"])
def test_a_run_that_slept_at_any_step(tmp_path: Path, source: Path, expected, second) -> None:
    """Also between its last look at the lease and the rename that follows."""
    last = count_steps(source, tmp_path)
    tried = 0
    for at in range(1, last - 3):  # after that, the lease and the run's folder are being removed
        folder = tmp_path / str(at)
        folder.mkdir()
        asleep_and_woken(folder, source, expected, at, *second)
        shutil.rmtree(folder)
        tried += 1
    assert tried > 40
    print(f"stopped at each of {tried} steps")


BUILD_STEPS = [30, *(pytest.param(at, marks=pytest.mark.slow) for at in range(4, 88, 7))]


@pytest.mark.parametrize("at", BUILD_STEPS)
def test_a_build_that_slept_changes_nothing(tmp_path: Path, model_dir: Path, source: Path, at: int) -> None:
    """Stopped while it plans or encodes; the other build begins anew with another seed."""
    inputs, out, runs = sorted((source.parent / "in").glob("*.jsonl")), tmp_path / "out", Runs(tmp_path)
    a = runs.start(command(inputs, model_dir, out), stops={at})
    assert runs.follow(a) is None, runs.said(a)
    time.sleep(STALE + BEAT)
    b = runs.start(command(inputs, model_dir, out, "--seed", 7, "--overwrite"))
    assert runs.follow(b) == 0, runs.said(b)
    before = outcome(out), (out / "manifest.json").read_bytes()
    os.kill(a, signal.SIGCONT)
    assert runs.follow(a) == 1, runs.said(a)
    last = runs.said(a).strip().splitlines()[-1]
    assert "has taken over" in last or "is gone" in last or "other options" in last, runs.said(a)
    assert (outcome(out), (out / "manifest.json").read_bytes()) == before and left_over(out) == []
    dataset = PackedDataset(out, verify="never")
    assert [*check_shards(dataset), *check_rows(dataset)] == []


def chaos(folder: Path, source: Path, expected: Any, seed: int, last: int) -> None:
    """Up to five runs with random options that stop, wake and die at random steps, under clocks that are off."""
    rng, runs, out = random.Random(seed), Runs(folder), folder / "out"
    alive: dict[int, bool] = {}
    """Runs by process id, and whether they are stopped."""

    def started() -> int:
        stops = {rng.randint(1, last) for _ in range(rng.randint(0, 2))}
        kill = rng.randint(1, last) if rng.random() < 0.2 else 0
        clock = rng.choice([0.0, 0.0, 1e6, -1e6, rng.uniform(-1, 1)])
        options = ["--overwrite"] if rng.random() < 0.5 else []
        return runs.start(arguments(source, out, rng.choice([1, 2]), *options), stops, kill, clock)

    for _ in range(rng.randint(3, 6)):
        if rng.random() < 0.6 or not alive:
            alive[pid := started()] = False
        else:
            pid = rng.choice(list(alive))
            if alive[pid]:
                os.kill(pid, signal.SIGKILL if rng.random() < 0.15 else signal.SIGCONT)
                alive[pid] = False
        if rng.random() < 0.3:  # beside the next one
            time.sleep(rng.uniform(0, 0.2))
            continue
        for other in [pid, *(p for p in alive if p != pid and not alive[p])]:
            status = runs.follow(other)
            if status is None:
                alive[other] = True
            else:
                assert status in (0, 1, -signal.SIGKILL) and "Traceback" not in runs.said(other), runs.said(other)
                del alive[other]
        whole(out, expected)  # where there is a manifest, it is of one dataset
    for pid in rng.sample(list(alive), len(alive)):
        while True:
            os.kill(pid, signal.SIGCONT)
            if (status := runs.follow(pid)) is not None:
                assert status in (0, 1, -signal.SIGKILL) and "Traceback" not in runs.said(pid), runs.said(pid)
                break
    whole(out, expected)
    ended = {}
    for number in (1, 2):  # the same command again, of the one that was last, finishes it; the other one is refused
        for _ in range(12):  # a lease whose clock was ahead counts for that much longer
            time.sleep(STALE)
            pid = runs.start(arguments(source, out, number))
            ended[number] = runs.follow(pid), runs.said(pid)
            if "is at work" not in runs.said(pid):
                break
    done = [number for number, (status, _) in ended.items() if status == 0]
    assert len(done) == 1, ended
    assert all("other options" in said for number, (_, said) in ended.items() if number != done[0]), ended
    assert whole(out, expected) == done[0] and left_over(out) == []


@pytest.mark.parametrize(
    "seeds", [range(3), pytest.param(range(3, 100), marks=pytest.mark.slow), pytest.param(range(100, 200), marks=pytest.mark.slow)]
)  # fmt: skip
def test_two_hundred_random_schedules(tmp_path: Path, source: Path, expected, seeds: range) -> None:
    last = count_steps(source, tmp_path)
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            chaos(folder, source, expected, seed, last)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
        shutil.rmtree(folder)


# The fence and the lease by themselves


def test_after_the_fence_is_closed_nothing_changes(tmp_path: Path) -> None:
    """A rename that comes after the last look at the lease, at a moment when the lease is still this run's."""
    out = str(tmp_path)
    with lease.hold(out) as held:
        (tmp_path / "kept").write_text("old")
        shutil.rmtree(held.fence.staging)
        for change in (
            lambda: io.write_atomic(f"{out}/new", b"x"),
            lambda: io.write_atomic(f"{out}/kept", b"x"),
            lambda: io.remove(f"{out}/kept"),
        ):
            with pytest.raises(LostLeaseError):
                change()
        assert (tmp_path / "kept").read_text() == "old" and not (tmp_path / "new").exists()
        with pytest.raises(LostLeaseError):
            held.check()


def test_the_file_system_decides_and_not_the_look_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run looked at its lease, and slept before it changed anything: no look helps then."""
    with lease.hold(str(tmp_path)) as held:
        (tmp_path / "kept").write_text("old")
        monkeypatch.setattr(Fence, "check", lambda fence: None)
        shutil.rmtree(held.fence.staging)
        for name in ("new", "kept"):
            with pytest.raises(FileNotFoundError):
                io.write_atomic(f"{tmp_path}/{name}", b"x")
        io.remove(f"{tmp_path}/kept")
        with pytest.raises(FileNotFoundError):
            held.beat()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "lease.json"]
    assert (tmp_path / "kept").read_text() == "old"


def test_a_file_under_way_is_lost_with_the_lease(tmp_path: Path) -> None:
    old = Fence(str(tmp_path))
    with lease.hold(str(tmp_path)) as held:
        old = held.fence
        with pytest.raises(LostLeaseError), io.atomic_writer(f"{tmp_path}/file") as file:
            file.write(b"half")
            new = Fence(str(tmp_path))
            new.open()
            new.close_others()
            file.write(b"whole")
        new.close()
    assert not (tmp_path / "file").exists() and not os.path.exists(old.staging)


@pytest.mark.parametrize("where", ["local", "memory://gone"])
def test_a_lease_that_is_gone_is_lost_and_not_made_anew(tmp_path: Path, monkeypatch, where: str) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.02)
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    out = str(tmp_path) if where == "local" else where
    with lease.hold(out) as held:
        io.remove(f"{out}/lease.json")
        time.sleep(0.2)
        with pytest.raises(LostLeaseError, match="is gone"):
            held.check()
        with pytest.raises(LostLeaseError, match="is gone"):
            io.write_atomic(f"{out}/file", b"x")
        with pytest.raises(LostLeaseError, match="is gone"):
            held.beat()
    assert not io.exists(f"{out}/lease.json") and not io.exists(f"{out}/file")


NOBODY: dict[str, Any] = {"token": "x", "host": "other", "boot": "b", "pidns": "1:1", "pid": 1, "started": 1, "beat": 0}


def forged() -> dict[str, bytes]:
    us = {**lease.process_identity(), "token": "x", "beat": 0, "time": 0.0}
    old = {**NOBODY, "time": 0.0}
    entries: dict[str, Any] = {
        "old": old,
        "future": {**old, "time": time.time() + 1e6},
        "null": {**old, "time": None},
        "text": {**old, "time": "x"},
        "nan": {**old, "time": float("nan")},
        "infinity": {**old, "time": float("inf")},
        "huge": {**old, "time": 10**400},
        "true": {**old, "time": True},
        "list": [],
        "number": 7,
        "null token": {**old, "token": None},
        "host": {**old, "host": "\x1b]0;PWN\x07" * 1000},
        "pid path": {**us, "pid": "../../proc/self"},
        "pid object": {**us, "pid": {}},
        "pid negative": {**us, "pid": -1},
        "pid huge": {**us, "pid": 1 << 200},
        "dead pid": {**us, "pid": (1 << 22) + 5, "started": 0},
        "other start": {**us, "started": us["started"] + 1},
        "empty object": {},
    }
    made = {name: json.dumps(entry).encode() for name, entry in entries.items()}
    return made | {
        "empty": b"", "cut": b"{", "not utf-8": b"\xff\xfe{}", "deep": b"[" * 60_000, "zeros": bytes(1 << 20),
    }  # fmt: skip


@pytest.mark.parametrize("name", forged())
@pytest.mark.parametrize("where", ["local", "memory://forged"])
def test_leases_that_no_live_run_wrote_are_taken_over(tmp_path: Path, monkeypatch, name: str, where: str) -> None:
    monkeypatch.setattr(lease, "WATCH", 0.05)
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    out = str(tmp_path) if where == "local" else where
    io.write_atomic(f"{out}/lease.json", forged()[name])
    with lease.hold(out) as held:
        held.check()
        io.write_atomic(f"{out}/file", b"x")
    assert not io.exists(f"{out}/lease.json")


def test_a_lease_that_is_a_folder_is_one_line(tmp_path: Path, omniprep, source: Path) -> None:
    (tmp_path / "lease.json").mkdir()
    done = omniprep(*arguments(source, tmp_path, 1))
    assert done.code == 1 and "lease.json" in done.err and len(done.err.strip().splitlines()) == 1, done.err


LEASE_FIELDS = ("token", "host", "boot", "pidns", "pid", "started", "beat", "time")
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


def read_any(data: bytes) -> None:
    holder = parse(data)
    assert isinstance(holder.pid, int) and holder.pid >= 0 and -1e12 < holder.time < 1e12
    assert len(str(holder)) < 120


@given(st.binary(max_size=200) | st.dictionaries(st.sampled_from(LEASE_FIELDS), VALUES).map(lambda e: json.dumps(e).encode()))  # fmt: skip
@settings(max_examples=500, deadline=None)
def test_leases_of_any_content(data: bytes) -> None:
    read_any(data)


@pytest.mark.slow
def test_leases_of_any_content_for_long() -> None:
    rng = random.Random(0)
    good = json.dumps({**NOBODY, "time": 1.0}).encode()
    for _ in range(300_000):
        mangled = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            mangled[rng.randrange(len(mangled))] = rng.choice(b'0129.eE+-"{}[],:nulltrfas\\u\xff')
        read_any(bytes(mangled))


def test_containers_of_one_host_name_are_two_machines(tmp_path: Path, monkeypatch) -> None:
    """Their process ids mean nothing to each other: what looks dead there may live, so its signs of life are watched."""
    us = lease.process_identity()
    assert us["pidns"], "this test needs /proc"
    fresh = {**us, "pidns": "4:4026539999", "pid": 1, "token": "x", "beat": 0, "time": time.time()}
    (tmp_path / "lease.json").write_text(json.dumps(fresh))
    with pytest.raises(OmniprepError, match="its last sign of life is"), lease.hold(str(tmp_path)):
        pass
    monkeypatch.setattr(lease, "WATCH", 0.2)
    old = {**fresh, "time": 0.0}
    (tmp_path / "lease.json").write_text(json.dumps(old))

    def beats(text: str) -> None:
        (tmp_path / "lease.json").write_text(json.dumps({**old, "beat": 1}))

    with pytest.raises(OmniprepError, match="at work"), lease.hold(str(tmp_path), beats):
        pass
    monkeypatch.setattr(lease, "process_namespace", lambda: "")  # /proc of another namespace: no process is asked for
    (tmp_path / "lease.json").write_text(json.dumps({**us, "pidns": "", "token": "x", "beat": 0, "time": time.time()}))
    with pytest.raises(OmniprepError, match="its last sign of life is"), lease.hold(str(tmp_path)):
        pass


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_two_process_namespaces(tmp_path: Path) -> None:
    """As two containers of one machine see each other, with real namespaces."""
    import subprocess
    import sys

    if subprocess.run(["unshare", "-p", "-f", "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("no right to make a namespace here")
    code = (
        "import sys, time; from omniprep.compiler.output import lease; out, seconds = sys.argv[1], float(sys.argv[2])\n"
        "with lease.hold(out): print('held', flush=True); time.sleep(seconds)"
    )
    alone = ["unshare", "-p", "-f", "--kill-child", "--mount-proc", sys.executable, "-c", code, str(tmp_path)]
    first = subprocess.Popen([*alone, "60"], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        second = subprocess.run([*alone, "0"], capture_output=True, text=True)
        assert second.returncode == 1 and "another build is at work there" in second.stderr, second.stderr
    finally:
        first.kill()
        first.wait()


def test_a_dead_process_that_nobody_asked_for_is_dead(tmp_path: Path) -> None:
    def die() -> None:
        with lease.hold(str(tmp_path)):
            os.kill(os.getpid(), signal.SIGKILL)

    pid = in_fork(die)
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.01)
    with lease.hold(str(tmp_path)) as held:
        held.check()
    os.waitpid(pid, 0)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("begin", ["empty", "dead"])
def test_of_many_that_begin_at_once_one_goes_on(tmp_path: Path, begin: str) -> None:
    """Processes that find an empty folder, or the same dead lease, at the same moment: no two hold it at one time."""
    for turn in range(5):
        out = tmp_path / str(turn)
        out.mkdir()
        if begin == "dead":
            (out / "lease.json").write_text(json.dumps({**NOBODY, "time": 0.0}))
        go = time.time() + 0.3

        def work(out: Path = out, go: float = go) -> int:
            lease.WATCH = 0.02
            while time.time() < go:
                pass
            try:
                with lease.hold(str(out)) as held:
                    since = time.monotonic()
                    time.sleep(0.5)
                    held.check()
                    (out / f"{os.getpid()}.held").write_text(json.dumps([since, time.monotonic()]))
            except OmniprepError:
                return 1
            return 0

        statuses = [wait_for(pid) for pid in [in_fork(work) for _ in range(6)]]
        held = sorted(json.loads(path.read_text()) for path in out.glob("*.held"))
        assert set(statuses) <= {0, 1} and statuses.count(0) == len(held) >= 1, statuses
        assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(held)), held


# Leftovers and late writers


def test_leftovers_of_killed_runs_are_no_obstacle(tmp_path: Path, source: Path, expected, omniprep) -> None:
    """A .tmp beside the results: with --overwrite the results were removed, and then it was refused, for ever."""
    out = tmp_path / "out"
    for options in ((), ("--overwrite",), ("--overwrite",), ()):
        out.mkdir(exist_ok=True)
        for name in ("manifest.json.1234.tmp", "shards/00000.arrow.1234.tmp", f"run-{'0' * 32}.tmp/x.1.tmp"):
            (out / name).parent.mkdir(exist_ok=True, parents=True)
            (out / name).write_text("left")
        done = omniprep(*arguments(source, out, 1, *options))
        assert done.code == 0, done.err
        assert whole(out, expected) == 1 and left_over(out) == []


def test_a_manifest_of_another_build_is_not_taken_for_ours(tmp_path: Path, source: Path, expected, omniprep) -> None:
    """As a run writes it late to a store that knows no conditions."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    for out, seed in ((ours, 1), (other, 2)):
        assert omniprep(*arguments(source, out, seed)).code == 0
    for name in ("manifest.json", "index.parquet", "rows.parquet"):
        shutil.copy(other / name, ours / name)
    assert omniprep(*arguments(source, ours, 1)).code == 0
    assert whole(ours, expected) == 1


def test_a_lost_lease_ends_the_work_at_its_next_change(tmp_path: Path) -> None:
    from omniprep.compiler.output.folder import BuildIdentity
    from omniprep.config import BuildConfig

    def work(held: lease.Lease, shown: Reporter) -> dict[str, Any]:
        other = {**NOBODY, "time": time.time()}
        (tmp_path / "lease.json").write_text(json.dumps(other))
        io.write_atomic(str(tmp_path / "manifest.json"), b"{}")
        return {}

    identity = BuildIdentity(config={}, inputs=(), versions={}, tokenizer_sha256="")
    with pytest.raises(LostLeaseError, match="process 1 on other has taken over"):
        run_in_folder(BuildConfig(out=str(tmp_path)), identity, QuietReporter(), work)
    assert not (tmp_path / "manifest.json").exists()
    assert json.loads((tmp_path / "lease.json").read_text())["host"] == "other"
