"""Inputs, media and output on S3 (moto's server on loopback): the bytes of a local build, through faults, and one range
request a bin."""

import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from omniprep import PackedDataset, io
from omniprep.compiler.output import lease
from omniprep.compiler.output.fence import Fence, LostLeaseError
from omniprep.errors import DamagedDataError, OmniprepError, Reject
from omniprep.media.fetch import MediaRoots
from omniprep.shards.manifest import content_hash
from omniprep.shards.references import ReferenceModel, References, write_references
from tests.reliability import built_locally, command, outcome
from tests.s3_server import BUCKET, Store, store
from tests.train_helpers import write_preferences

__all__ = ["store"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """No faults left over from another test, and short waits."""
    store.fault = lambda method, path: None
    store.faults = 0
    monkeypatch.setattr("omniprep.io.stores.WAITS", (0.05, 0.05, 0.1, 0.1, 0.2))
    monkeypatch.setattr("omniprep.compiler.output.lease.SETTLE", 0.05)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, omniprep, store: Store) -> tuple[Path, Path]:
    """Chats (also put on S3 under in/) and a local build of them."""
    return built_locally(tmp_path_factory.mktemp("local"), f"s3://{BUCKET}", model_dir, omniprep)


def same_but_for_sources(remote: str, local: Path, tmp_path: Path) -> None:
    """Shards and index are equal bytes; row tables differ in the names of their sources alone."""
    copy = tmp_path / "copy"
    for name in ("index.parquet", "rows.parquet", "rejected.jsonl", "manifest.json"):
        io.write_atomic(str(copy / name), io.read_bytes(f"{remote}/{name}")) if copy.is_dir() else copy.mkdir()
        (copy / name).write_bytes(io.read_bytes(f"{remote}/{name}"))
    (copy / "shards").mkdir()
    for name in io.list_folder(f"{remote}/shards"):
        (copy / "shards" / name).write_bytes(io.read_bytes(f"{remote}/shards/{name}"))
    found, expected = outcome(copy), outcome(local)
    differ = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    assert differ <= {"rows.parquet"}, differ


def build(omniprep, model_dir: Path, out: str, *more: object):
    args = command([], model_dir, Path("x"), *more)
    args[args.index("x")] = out
    return omniprep(*args, f"s3://{BUCKET}/in/*.jsonl")


def test_from_s3_to_s3(
    omniprep, model_dir: Path, local, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder for temporary files of its own: others may come and go in the machine's meanwhile.
    spools = tmp_path / "spools"
    spools.mkdir()
    monkeypatch.setenv("TMPDIR", str(spools))
    monkeypatch.setattr(tempfile, "tempdir", None)  # else the folder that was found before is kept
    out = f"s3://{BUCKET}/built"
    done = build(omniprep, model_dir, out)
    assert done.code == 0, done.err
    same_but_for_sources(out, local[1], tmp_path)
    assert not [name for name in store.names("built") if name.endswith((".tmp", ".begun", "lease.json"))]
    assert tempfile.gettempdir() == str(spools) and not list(spools.iterdir())
    written = len([r for r in store.requests if r[0] == "PUT"])
    again = build(omniprep, model_dir, out)
    assert again.code == 0 and "already built" in again.err
    assert len([r for r in store.requests if r[0] == "PUT"]) == written
    assert "4711" not in io.read_bytes(f"{out}/manifest.json").decode() + done.err + done.out
    checked = omniprep("verify", out)
    assert checked.code == 0, checked.out + checked.err


def test_resume(omniprep, model_dir: Path, local, store: Store, tmp_path: Path) -> None:
    out = f"s3://{BUCKET}/resumed"
    writes = itertools.count()
    store.fault = lambda method, path: 403 if method == "PUT" and "/shards/" in path and next(writes) > 1 else None
    stopped = build(omniprep, model_dir, out)
    assert stopped.code == 1 and "denied" in stopped.err.splitlines()[-1] and "shards" in stopped.err.splitlines()[-1]
    finished = {n: io.fingerprint(f"s3://{BUCKET}/{n}") for n in store.names("resumed/receipts")}
    assert len(finished) == 2
    assert not io.exists(f"{out}/manifest.json") and not io.exists(f"{out}/lease.json")
    store.fault = lambda method, path: None
    assert build(omniprep, model_dir, out).code == 0
    assert {n: io.fingerprint(f"s3://{BUCKET}/{n}") for n in finished} == finished
    same_but_for_sources(out, local[1], tmp_path)


def test_status_of_a_build_in_a_store(omniprep, model_dir: Path, local, store: Store, monkeypatch) -> None:
    """Asked while the build runs, after the store refused it, and at its end: from the objects of the store alone."""
    monkeypatch.setattr("omniprep.compiler.output.progress_file.SECONDS", 0.01)
    out, seen = f"s3://{BUCKET}/watched", []
    writes = itertools.count()

    def status() -> dict[str, Any]:
        done = omniprep("status", out, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def fault(method: str, path: str) -> int | None:
        if method != "PUT" or "/watched/shards/" not in path:
            return None
        if (number := next(writes)) == 1:  # the first shard is there; its count is in the file a moment later
            time.sleep(0.5)
            store.fault = lambda method, path: None
            asked = subprocess.run(
                [sys.executable, "-m", "omniprep", "status", out, "--json"], capture_output=True, text=True
            )
            seen.append(json.loads(asked.stdout) if asked.returncode == 0 else {"state": asked.stderr})
            store.fault = fault
        return 403 if number > 1 else None

    nothing = omniprep("status", out)
    assert nothing.code == 1 and f"{out} holds no dataset" in nothing.err.replace(": ", " "), nothing.err
    store.fault = fault
    assert build(omniprep, model_dir, out).code == 1
    store.fault = lambda method, path: None
    (running,) = seen
    assert running["state"] == "running" and running["lease"]["liveness"] == "alive"
    assert running["stages"][-1]["stage"] == "encode" and running["stages"][-1]["done"] == 1
    failed = status()
    assert failed["state"] == "failed" and failed["lease"] is None and failed["stages"][-1]["done"] == 2
    assert "denied" in failed["progress"]["error"]["message"] and "goes on from here" in failed["advice"]
    puts = len([request for request in store.requests if request[0] != "GET" and request[0] != "HEAD"])
    shown = omniprep("status", out)
    assert shown.code == 0 and shown.out.startswith(f"{out}: build failed\n")
    assert len([request for request in store.requests if request[0] not in ("GET", "HEAD")]) == puts
    assert build(omniprep, model_dir, out).code == 0
    finished = status()
    assert finished["state"] == "finished" and finished["finished"]["rows"]["packed"] == 24
    assert not io.exists(f"{out}/plan/progress.json")
    store.fault = lambda method, path: 403 if "/watched/" in path else None
    denied = omniprep("status", out)
    assert denied.code == 1 and "denied" in denied.err and out in denied.err and denied.err.count("\n") == 1


def test_faults_that_pass(omniprep, model_dir: Path, local, store: Store, tmp_path: Path) -> None:
    """Every fifth request fails once with 500 or 503; nobody notices."""
    count = itertools.count(1)

    def fault(method: str, path: str) -> int | None:
        number = next(count)
        return (500, 503)[number % 2] if number % 5 == 0 else None

    store.fault = fault
    out = f"s3://{BUCKET}/faults"
    done = build(omniprep, model_dir, out)
    assert done.code == 0, done.err
    assert store.faults > 10
    store.fault = lambda method, path: None
    same_but_for_sources(out, local[1], tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, store: Store) -> Iterator[None]:
    """A client that waits not long for an answer and leaves trying again to omniprep."""
    import fsspec
    import s3fs

    settings = {"config_kwargs": {"read_timeout": 1.5, "connect_timeout": 1.5, "retries": {"total_max_attempts": 1}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("kind", ["hang", "reset"])
def test_stalls_and_broken_connections(local, store: Store, impatient: None, kind: str) -> None:
    """Two requests in a row get no answer, the third does; where none does, one line names the object."""
    uri = f"s3://{BUCKET}/in/chats0.jsonl"
    expected = io.read_bytes(uri)
    count = itertools.count()
    store.fault = lambda method, path: kind if next(count) < 2 else None
    assert io.read_bytes(uri) == expected
    assert store.faults == 2
    count = itertools.count()
    store.fault = lambda method, path: kind if method == "PUT" and next(count) < 2 else None
    io.write_atomic(f"s3://{BUCKET}/written/{kind}", expected)
    assert store.faults == 4
    store.fault = lambda method, path: None
    assert io.read_bytes(f"s3://{BUCKET}/written/{kind}") == expected
    if kind == "reset":
        store.fault = lambda method, path: kind
        with pytest.raises(OSError, match="after 6 tries") as caught:
            io.read_bytes(uri)
        assert caught.value.filename == uri


def test_errors_that_stay(omniprep, model_dir: Path, local, store: Store) -> None:
    store.fault = lambda method, path: 403 if "/in/" in path else None
    done = omniprep(*command([], model_dir, Path("/nowhere")), f"s3://{BUCKET}/in/chats0.jsonl")
    assert done.code == 1 and f"s3://{BUCKET}/in/chats0.jsonl" in done.err and "denied" in done.err, done.err
    store.fault = lambda method, path: None
    done = omniprep(*command([], model_dir, Path("/nowhere")), f"s3://{BUCKET}/in/absent.jsonl")
    assert done.code == 1 and "absent.jsonl: no such file" in done.err
    done = build(omniprep, model_dir, "s3://no-such-bucket-here/out")
    assert done.code == 1 and "no-such-bucket-here" in done.err and "Traceback" not in done.err
    store.fault = lambda method, path: 503
    with pytest.raises(OSError, match="after 6 tries"):
        io.read_bytes(f"s3://{BUCKET}/in/chats0.jsonl")


def test_media_stay_in_their_folder(local) -> None:
    io.write_atomic(f"s3://{BUCKET}/secret/0.png", b"secret")
    media_roots = MediaRoots(f"s3://{BUCKET}/in", (f"s3://{BUCKET}/more",))
    assert media_roots.locate("0.png").uri == f"s3://{BUCKET}/in/0.png"
    assert media_roots.locate(f"s3://{BUCKET}/in/0.png").read()[:4] == b"\x89PNG"
    io.write_atomic(f"s3://{BUCKET}/more/m.png", b"more")
    assert media_roots.locate("m.png").read() == b"more"
    outside = (
        "../secret/0.png",
        f"s3://{BUCKET}/secret/0.png",
        f"s3://{BUCKET}/in/../secret/0.png",
        "s3://other/x.png",
    )
    outside += (
        f"s3://{BUCKET}/in2/0.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://host/x",
        f"simplecache::s3://{BUCKET}/secret/0.png",
    )
    for named in outside:
        with pytest.raises(Reject) as caught:
            media_roots.locate(named)
        assert caught.value.code in ("media_outside_root", "media_not_found"), named
    with pytest.raises(Reject, match="media_not_found"):
        media_roots.locate("absent.png")


def test_one_range_request_a_bin(omniprep, model_dir: Path, local, store: Store, tmp_path: Path) -> None:
    out = f"s3://{BUCKET}/read"
    assert build(omniprep, model_dir, out).code == 0
    here, there = PackedDataset(local[1]), PackedDataset(out)
    assert there.schema == here.schema
    store.requests.clear()
    for number in range(len(here)):
        a, b = here[number], there[number]
        assert all(np.array_equal(a[k], b[k]) for k in ("input_ids", "labels", "row_ids", "cu_seqlens"))
    gets = [r for r in store.requests if r[0] == "GET"]
    assert len(store.requests) == len(gets) == len(here) and all(r[2].startswith("bytes=") for r in gets)
    size = max(there.index["length"])
    kept = PackedDataset(out, cache_dir=tmp_path / "cache", cache_bytes=int(size) * len(here) * 2)
    for _ in range(3):
        store.requests.clear()
        assert all(np.array_equal(kept[n]["input_ids"], here[n]["input_ids"]) for n in range(len(here)))
    assert not [r for r in store.requests if r[2].startswith("bytes=") and "/shards/" in r[1]]
    bounded = PackedDataset(out, cache_dir=tmp_path / "small", cache_bytes=int(size) + 10)
    for _ in range(2):
        assert all(np.array_equal(bounded[n]["input_ids"], here[n]["input_ids"]) for n in range(len(here)))
        assert sum(p.stat().st_size for p in (tmp_path / "small").iterdir()) <= size + 10
    io.remove(f"{out}/shards/00000.arrow")
    with pytest.raises(DamagedDataError, match=r"bin 0: s3://lake/read/shards/00000.arrow"):
        PackedDataset(out, verify="always")[0]
    assert json.loads(io.read_bytes(f"{out}/manifest.json"))["counts"]["bins"] == len(here)


def test_the_recipe_for_clusters(omniprep, model_dir: Path, local, store: Store, tmp_path: Path) -> None:
    """pipelines/s3_cluster.yaml as it stands, with this bucket and checkpoint, without its 64 workers."""
    for path in local[0].iterdir():
        io.write_atomic(
            f"s3://{BUCKET}/{'chats' if path.suffix == '.jsonl' else 'media'}/{path.name}", path.read_bytes()
        )
    recipe = tmp_path / "s3_cluster.yaml"
    recipe.write_text((ROOT / "pipelines" / "s3_cluster.yaml").read_text().replace("BUCKET", BUCKET))
    done = omniprep("build", "--config", recipe, "--model", model_dir, "--workers", 0)
    assert done.code == 0, done.err
    dataset = PackedDataset(f"s3://{BUCKET}/packed/qwen2.5-omni-16k")
    counts = dataset.manifest["counts"]
    assert counts["rows"] == {"read": 24, "packed": 24, "rejected": 0} and counts["items"]["image"] == 8
    assert dataset.manifest["config"]["special_tokens_in_text"] == "reject"


def test_a_build_that_begins_anew_takes_names_of_its_own(
    omniprep, model_dir: Path, local, store: Store, tmp_path
) -> None:
    """So that what an older run still sends cannot hit them; the old objects are gone at the end."""
    out = f"s3://{BUCKET}/anew"
    assert build(omniprep, model_dir, out).code == 0
    old = set(store.names("anew/"))
    assert f"anew/shards/{0:05d}.arrow" in old
    done = build(omniprep, model_dir, out, "--seed", 5, "--overwrite")
    assert done.code == 0, done.err
    manifest = json.loads(io.read_bytes(f"{out}/manifest.json"))
    names = [shard["path"] for shard in manifest["shards"]]
    assert all(f"anew/{name}" not in old for name in names) and names[0].startswith("shards/00000-")
    assert sorted(names) == sorted(f"shards/{name}" for name in io.list_folder(f"{out}/shards"))
    assert {n for n in store.names("anew/") if "/plan/" in n or "/receipts/" in n} & old == {"anew/plan/build.json"}
    checked = omniprep("verify", out)
    assert checked.code == 0, checked.out + checked.err
    again = build(omniprep, model_dir, out, "--seed", 5)
    assert again.code == 0 and "already built" in again.err
    other = build(omniprep, model_dir, out)
    assert other.code == 1 and "--seed: 5 → 0" in other.err


def test_objects_are_written_on_a_condition(store: Store, tmp_path: Path) -> None:
    """Another run takes the lease between this one's look at it and its write: the store refuses the write."""
    out = f"s3://{BUCKET}/conditions"
    with lease.hold(out) as held:
        held.check()
        real = Fence.check

        def late(fence: Fence) -> None:
            real(fence)
            if not io.exists(f"{out}/file"):  # another run is quicker, right after the look
                fs, path = io.filesystem(f"{out}/file")
                fs.pipe_file(path, b"theirs")
                fs.pipe_file(path.replace("/file", "/lease.json"), json.dumps({"token": "other"}).encode())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Fence, "check", late)
            with pytest.raises(LostLeaseError):
                io.write_atomic(f"{out}/file", b"ours")
    assert io.read_bytes(f"{out}/file") == b"theirs"
    assert json.loads(io.read_bytes(f"{out}/lease.json")) == {"token": "other"}, "their lease stays"


def test_of_many_that_begin_at_once_one_goes_on(store: Store) -> None:
    out, held = f"s3://{BUCKET}/many", []
    start = threading.Barrier(4)

    def begin() -> None:
        start.wait()
        try:
            with lease.hold(out) as mine:
                mine.check()
                held.append(mine)
                time.sleep(1)
        except OmniprepError as error:
            assert "another build" in str(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and not io.exists(f"{out}/lease.json")


def test_scores_of_a_reference_model_lie_with_the_dataset(store: Store, tmp_path: Path) -> None:
    """Written at once: a write that fails leaves those that were there."""
    folder, uri = write_preferences(tmp_path / "d", sizes=(2, 1)), f"s3://{BUCKET}/preferences"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        io.write_atomic(f"{uri}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    dataset = PackedDataset(uri)
    assert dataset.references is None and "reference_logps" not in dataset[0]
    made_by = ReferenceModel(content=content_hash(dataset.manifest), model="m", weights="0" * 32)
    for value in (-1.5, -2.5):
        logps = np.full(6, value, np.float32)
        write_references(uri, References(made_by=made_by, begins=np.array([0, 4, 6]), logps=logps, kl_logps=logps - 1))
    again = PackedDataset(uri)
    assert again.references is not None and again.references.made_by == made_by
    assert again[1]["reference_logps"].tolist() == [-2.5, -2.5]
    assert again[1]["reference_kl_logps"].tolist() == [-3.5, -3.5]
    store.fault = lambda method, path: 403 if method in ("PUT", "POST") else None
    with pytest.raises(OSError):
        write_references(uri, References(made_by=made_by, begins=np.array([0, 4, 6]), logps=logps * 2, kl_logps=None))
    store.fault = lambda method, path: None
    assert PackedDataset(uri)[1]["reference_logps"].tolist() == [-2.5, -2.5]
