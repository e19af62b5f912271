"""Appends and removals that are killed, that meet a full disk or each other, here and in a store: the dataset is as
before or as after, the same command ends it, and the bytes are those of a run that nothing happened to."""

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omniprep import PackedDataset, io
from omniprep.errors import OmniprepError
from tests.reliability import command, in_fork, make_chats, run_cli, wait_for, warm
from tests.s3_server import BUCKET, Store, store
from tests.test_faulty_disk import failing, last_line
from tests.test_resume_kill import counted, kill_tree, killed_at

__all__ = ["store"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> list[Path]:
    """Two days of chats, a third of them with a picture."""
    warm(model_dir)
    return make_chats(tmp_path_factory.mktemp("chats"), rows=24)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, inputs: list[Path]) -> Path:
    """A dataset of the first day, without report.html, which takes longer than all else here."""
    folder = tmp_path_factory.mktemp("base")
    assert (
        wait_for(in_fork(lambda: without_report(command(inputs[:1], model_dir, folder / "out")), folder / "log")) == 0
    )
    return folder / "out"


def without_report(args: list[str]) -> int:
    """A command that writes no report.html; for forked processes."""
    from omniprep.compiler import append, build, remove

    for module in (append, build, remove):
        module.write_dataset_report = lambda *_: None  # type: ignore[attr-defined]
    return run_cli(args)


def changing(what: str, inputs: list[Path], out: str | Path, *more: object) -> list[str]:
    """The command line of an append of the second day, or of a removal of rows of the first."""
    if what == "append":
        return [str(part) for part in ("append", out, inputs[1], *(more or ("--workers", 0)))]
    return [str(part) for part in ("remove", out, "--row", f"{inputs[0]}:2", "--row", f"{inputs[0]}:9", *more)]


def content(out: str | Path) -> dict[str, bytes]:
    """The files of a dataset, here or in a store, but plans, receipts, reports, and times."""
    out, files = str(out), {}
    for name in ("index.parquet", "rows.parquet", "rejected.jsonl", "manifest.json"):
        files[name] = io.read_bytes(io.join(out, name))
    facts = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps({name: value for name, value in facts.items() if name != "seconds"}).encode()
    for name in io.list_folder(io.join(out, "shards")):
        files[name] = io.read_bytes(io.join(out, "shards", name))
    return files


def is_whole(out: str | Path) -> int:
    """Rows that a dataset says it has, all of which its bins hold."""
    dataset = PackedDataset(str(out))
    counts = dataset.counts["rows"]
    assert dataset.rows.num_rows == counts["read"]
    assert sum(len(dataset[number]["row_ids"]) for number in range(len(dataset))) == counts["packed"]
    return int(counts["packed"])


def copied(base: Path, out: str) -> str:
    """A copy of a dataset, here or in a store."""
    for path in base.rglob("*"):
        if path.is_file():
            target = io.join(out, *path.relative_to(base).parts)
            io.make_folder(os.path.dirname(target)) if io.is_local(out) else None
            io.write_atomic(target, path.read_bytes())
    return out


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory, base: Path, inputs: list[Path]) -> dict[str, dict[str, bytes]]:
    """What the dataset is after each change, where nothing happens to it."""
    folder, expected = tmp_path_factory.mktemp("after"), {}
    for what in ("append", "remove"):
        out = copied(base, str(folder / what))
        args = changing(what, inputs, out)
        assert wait_for(in_fork(lambda args=args: without_report(args), folder / "log")) == 0, (
            folder / "log"
        ).read_text()
        expected[what] = content(out)
    return expected


@pytest.mark.parametrize("what", ["append", "remove"])
def test_killed_at_steps_of_the_disk(
    what: str, tmp_path: Path, base: Path, inputs: list[Path], after: dict[str, dict[str, bytes]], request: Any
) -> None:
    """kill -9 before or after a rename, a removal or the opening of a file; then twice more at others."""
    every = 1 if request.config.getoption("-m") == "slow" else 7
    log, before = tmp_path / "log", content(base)
    out = copied(base, str(tmp_path / "counted"))
    args = changing(what, inputs, out)
    assert wait_for(in_fork(lambda: silenced(counted, args, tmp_path / "count"), log)) == 0, log.read_text()
    steps = int((tmp_path / "count").read_text())
    assert steps > 20
    for step in range(1, steps + 1, every):
        out = copied(base, str(tmp_path / f"out{step}"))
        args = changing(what, inputs, out)
        status = wait_for(in_fork(lambda at=step, args=args: silenced(killed_at, args, at), log))
        assert status in (0, -signal.SIGKILL), log.read_text()
        packed = is_whole(out)
        assert packed in (json.loads(c["manifest.json"])["counts"]["rows"]["packed"] for c in (before, after[what]))
        assert wait_for(in_fork(lambda args=args: without_report(args), log)) == 0, log.read_text()
        assert content(out) == after[what], step
        assert not [path for path in Path(out).rglob("*") if path.suffix == ".tmp" or path.name == "lease.json"]


def silenced(work: Callable[..., int], *args: Any) -> int:
    """A command of test_resume_kill.py without its report."""
    from omniprep.compiler import append, remove

    for module in (append, remove):
        module.write_dataset_report = lambda *_: None  # type: ignore[attr-defined]
    return work(*args)


@pytest.mark.parametrize("what", ["append", "remove"])
def test_a_disk_that_is_full(
    what: str, tmp_path: Path, base: Path, inputs: list[Path], after: dict[str, dict[str, bytes]]
) -> None:
    rng, log, before = random.Random(0), tmp_path / "log", content(base)
    failed = 0
    for budget in (0, *sorted(rng.randrange(1, 30_000) for _ in range(4))):
        out = copied(base, str(tmp_path / f"out{budget}"))
        args = changing(what, inputs, out)
        status = wait_for(in_fork(lambda a=args, b=budget: silenced(failing, a, b, errno.ENOSPC), log))
        if status:
            failed += 1
            assert status == 1 and "no space is left" in last_line(log) and out in last_line(log), log.read_text()
            if is_whole(out) == json.loads(before["manifest.json"])["counts"]["rows"]["packed"]:
                assert content(out).items() >= before.items(), "of what was there, nothing changes"
            else:  # the new tables had no room under their usual names: readers take them where they lie
                assert PackedDataset(out).record.tables
        assert "Traceback" not in log.read_text() and not list(Path(out).rglob("*.tmp"))
        assert wait_for(in_fork(lambda a=args: without_report(a), log)) == 0, log.read_text()
        assert content(out) == after[what], budget
    assert failed >= 3


def test_two_appends_at_once_here_and_their_readers(
    tmp_path: Path, base: Path, inputs: list[Path], model_dir: Path
) -> None:
    out = copied(base, str(tmp_path / "out"))
    other = make_chats(tmp_path / "third", rows=10, seed=5, files=1)[0]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    opened = PackedDataset(out)
    seen = [opened[number]["input_ids"].copy() for number in range(len(opened))]
    given = [changing("append", inputs, out), ["append", out, str(other), "--workers", "0"]]
    pids = [in_fork(lambda a=args: without_report(a), log) for args, log in zip(given, logs, strict=True)]
    done = [wait_for(pid) for pid in pids]
    for args, log, status in zip(given, logs, done, strict=True):
        if status:
            assert status == 1 and "another build" in last_line(log), log.read_text()
            assert wait_for(in_fork(lambda a=args: without_report(a), log)) == 0, log.read_text()
    dataset = PackedDataset(out)
    assert is_whole(out) == 34 and len(dataset.record.generations) == 3
    assert {Path(entry.source).name for entry in dataset.record.inputs} == {"chats0.jsonl", "chats1.jsonl"}
    for number, ids in enumerate(seen):  # who has it open reads on, and old bins keep their numbers
        assert (opened[number]["input_ids"] == ids).all() and (dataset[number]["input_ids"] == ids).all()


def test_a_reader_of_a_shard_that_was_written_again_is_told(tmp_path: Path, base: Path, inputs: list[Path]) -> None:
    """Of removed rows no byte may stay, so their shard goes; bins of the others are read on."""
    out, log = copied(base, str(tmp_path / "out")), tmp_path / "log"
    opened = PackedDataset(out)
    gone = {
        opened.index["shard"][bin_number]
        for bin_number in (opened.rows["bin"][1].as_py(), opened.rows["bin"][8].as_py())
    }
    assert wait_for(in_fork(lambda: without_report(changing("remove", inputs, out)), log)) == 0, log.read_text()
    told = set()
    for number in range(len(opened)):
        try:
            opened[number]
        except OmniprepError as error:
            assert "rows were removed since this dataset was opened" in str(error) and "open it again" in str(error)
            told.add(opened.index["shard"][number])
    assert told == gone
    assert is_whole(out) == 10


def test_columns_that_drift_between_appends(tmp_path: Path, base: Path, model_dir: Path, omniprep: Any) -> None:
    """Each file is read by its own columns: known ones under any name, new ones noted, absent ones rejected."""
    out = copied(base, str(tmp_path / "out"))
    chat = [{"role": "user", "content": "Say a"}, {"role": "assistant", "content": "a"}]
    shares = [{"from": "human", "value": "Say b"}, {"from": "gpt", "value": "b"}]
    tables = {
        "1.parquet": pa.table({"messages": [chat] * 3}),
        "2.parquet": pa.table({"conversations": [shares] * 3, "picture": ["a.png"] * 3}),
        "3.parquet": pa.table({"query": ["Say c"] * 3, "response": ["c"] * 3, "picture": [["a.png"]] * 3}),
        "4.parquet": pa.table({"story": ["no chat"] * 3}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / name)
        done = omniprep("append", out, tmp_path / name, "--workers", 0, "--quiet")
        assert done.code == 0, done.err
    dataset = PackedDataset(out)
    assert dataset.counts["rows"] == {"read": 24, "packed": 21, "rejected": 3}
    assert dataset.counts["unread_columns"]["picture"]["rows"] == 6
    assert dataset.row(str(tmp_path / "2.parquet"), 3)["input_ids"].shape[1] > 3
    same = content(out)
    pq.write_table(tables["4.parquet"].append_column("id", pa.array([1, 2, 3])), tmp_path / "5.parquet")
    stopped = omniprep("append", out, tmp_path / "5.parquet", "--workers", 0, "--quiet", "--max-error-rate", "0")
    assert stopped.code == 1 and "rejected" in stopped.err and content(out) == same and is_whole(out) == 21
    dropped = omniprep("append", out, tmp_path / "1.parquet", "--workers", 0, "--quiet", "--overwrite")
    assert dropped.code == 0, dropped.err


def test_tables_of_an_earlier_version_are_refused_before_any_work(
    tmp_path: Path, base: Path, inputs: list[Path], omniprep: Any
) -> None:
    out = copied(base, str(tmp_path / "out"))
    table = pq.read_table(f"{out}/rows.parquet")
    pq.write_table(table.drop_columns(["file_bytes"]), f"{out}/rows.parquet")
    same = content(out)
    done = omniprep(*changing("append", inputs, out), "--quiet")
    assert done.code == 1 and "(file_bytes); repack the dataset first" in done.err
    assert content(out) == same and not (Path(out) / "plan" / "append.json").exists()
    even = omniprep("repack", out, "--bin-length", 512, "--out", tmp_path / "even", "--quiet")
    assert even.code == 0, even.err
    assert omniprep(*changing("append", inputs, tmp_path / "even"), "--quiet").code == 0


# In a store


@pytest.fixture
def lake(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """No faults left over, and short waits."""
    store.fault = lambda method, path: None
    monkeypatch.setattr("omniprep.io.stores.WAITS", (0.05, 0.05, 0.1, 0.1, 0.2))
    monkeypatch.setattr("omniprep.compiler.output.lease.SETTLE", 0.05)
    return store


def changes(store: Store, args: list[str], log: Path, kill_at: int = 0) -> tuple[int, int]:
    """Run a command in a process of its own, which is killed when it asks for its n-th change of the store.

    Returns its exit status and the number of changes that it asked for.
    """
    asked, pid = 0, 0

    def fault(method: str, path: str) -> int | None:
        nonlocal asked
        if method in ("PUT", "DELETE", "POST"):
            asked += 1
            if asked == kill_at:
                os.kill(pid, signal.SIGKILL)
                return 503
        return None

    pid = in_fork(lambda: without_report(args), log)
    store.fault = fault
    try:
        return wait_for(pid), asked
    finally:
        store.fault = lambda method, path: None


@pytest.mark.parametrize("what", ["append", "remove"])
def test_killed_at_steps_of_a_store(
    what: str, tmp_path: Path, base: Path, inputs: list[Path], after: dict[str, dict[str, bytes]], lake: Store,
    request: Any,
) -> None:  # fmt: skip
    """The bytes are those of the same change of a local dataset."""
    every, log = 1 if request.config.getoption("-m") == "slow" else 6, tmp_path / "log"
    before = content(base)
    args = changing(what, inputs, copied(base, f"s3://{BUCKET}/{what}"))
    status, steps = changes(lake, args, log)
    assert status == 0 and steps > 10, log.read_text()
    assert content(f"s3://{BUCKET}/{what}") == after[what]
    for step in range(1, steps + 1, every):
        out = copied(base, f"s3://{BUCKET}/{what}{step}")
        args = changing(what, inputs, out)
        assert changes(lake, args, log, step)[0] == -signal.SIGKILL, log.read_text()
        packed = is_whole(out)
        assert packed in (json.loads(c["manifest.json"])["counts"]["rows"]["packed"] for c in (before, after[what]))
        assert changes(lake, args, log)[0] == 0, log.read_text()
        assert content(out) == after[what], step
        assert not [name for name in lake.names(f"{what}{step}") if name.endswith(("lease.json", ".tmp"))]


def test_two_appends_at_once_in_a_store(tmp_path: Path, base: Path, inputs: list[Path], lake: Store) -> None:
    out = copied(base, f"s3://{BUCKET}/both")
    other = make_chats(tmp_path / "third", rows=10, seed=5, files=1)[0]
    given = [changing("append", inputs, out), ["append", out, str(other), "--workers", "0"]]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    pids = [in_fork(lambda a=args: without_report(a), log) for args, log in zip(given, logs, strict=True)]
    for pid, log in zip(pids, logs, strict=True):
        status = wait_for(pid)
        if status:
            assert status == 1 and "another build" in last_line(log), log.read_text()
    for args, log in zip(given, logs, strict=True):
        assert wait_for(in_fork(lambda a=args: without_report(a), log)) == 0, log.read_text()
    assert is_whole(out) == 34 and len(PackedDataset(out).record.generations) == 3


# On Ray


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "store"])
@pytest.mark.parametrize("what", ["append", "remove"])
def test_killed_on_ray(
    what: str, where: str, tmp_path: Path, base: Path, inputs: list[Path], after: dict[str, dict[str, bytes]],
    lake: Store,
) -> None:  # fmt: skip
    """Driver and workers killed at a random time, twice; then two workers give the bytes of one process."""
    rng, log = random.Random(f"{what}{where}"), tmp_path / "log"
    out = copied(base, str(tmp_path / "out") if where == "here" else f"s3://{BUCKET}/ray-{what}")
    args = changing(what, inputs, out, "--workers", 2)
    for _ in range(2):
        pid = in_fork(lambda: without_report(args), log)
        end = time.monotonic() + rng.uniform(4, 20)
        while time.monotonic() < end and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.2)
        kill_tree(pid)
        is_whole(out)
    assert wait_for(in_fork(lambda: without_report(args), log), 600) == 0, log.read_text()
    assert content(out) == after[what]
