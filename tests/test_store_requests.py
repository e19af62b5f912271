"""Requests to S3 (moto on loopback): one for a media item while it is planned, one or none while it is encoded; faults of
the store end a build clearly, and it goes on later."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omniprep import io
from omniprep.errors import OmniprepError, Reject
from omniprep.io.objects import ChangedObjectError, read_object
from omniprep.media import remote
from omniprep.media.fetch import MediaRoots
from omniprep.media.image import probe_image
from omniprep.media.source import Source
from tests.reliability import command, outcome
from tests.s3_server import BUCKET, Store, store

__all__ = ["store"]
ITEMS = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, store: Store) -> Iterator[None]:
    """No faults left over from another test, short waits, nothing held, and one try of the client itself."""
    store.fault = lambda method, path: None
    monkeypatch.setattr("omniprep.io.stores.WAITS", (0.01,) * 5)
    monkeypatch.setattr("omniprep.compiler.output.lease.SETTLE", 0.02)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    remote.remote_media.clear()
    yield
    store.fault = lambda method, path: None


def write_chats(folder: Path, sides: list[int]) -> Path:
    """A row with a picture of each side, one without, and a copy of all in the store under NAME/."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for number, side in enumerate(sides):
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        user = {"role": "user", "content": f"<image>{number}?"}
        rows.append({"messages": [user, {"role": "assistant", "content": "yes"}], "images": [f"{number}.png"]})
        rows.append({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no " * number}]})
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in folder.iterdir():
        io.write_atomic(f"s3://{BUCKET}/{folder.name}/{path.name}", path.read_bytes())
    return folder / "chats.jsonl"


def media_requests(store: Store) -> list[tuple[str, str, str]]:
    """The requests of objects that are pictures, and of what has their names."""
    return [request for request in store.requests if request[1].endswith(".png")]


def build(omniprep, model_dir: Path, name: str, out: Path, *more: object):
    return omniprep(*command([], model_dir, out, *more), f"s3://{BUCKET}/{name}/chats.jsonl")


def test_one_request_an_item_at_plan_and_none_while_it_is_held(omniprep, model_dir, store, tmp_path) -> None:
    local = write_chats(tmp_path / "small", [40 + 8 * number for number in range(ITEMS)])
    store.requests.clear()
    assert build(omniprep, model_dir, "small", tmp_path / "out").code == 0
    asked = media_requests(store)
    assert sorted(Counter(path for _, path, _ in asked).values()) == [1] * ITEMS
    assert {(method, span) for method, _, span in asked} == {("GET", f"bytes=0-{remote.FIRST_BYTES - 1}")}
    assert omniprep(*command([local], model_dir, tmp_path / "here")).code == 0
    found, expected = outcome(tmp_path / "out"), outcome(tmp_path / "here")
    assert {name for name in expected if found.get(name) != expected[name]} == {"rows.parquet"}  # it names the source


@pytest.mark.parametrize("held", ["nothing", "first bytes"])
def test_one_request_an_item_while_it_is_encoded(omniprep, model_dir, store, tmp_path, monkeypatch, held) -> None:
    """By another process than that which planned it; or in the same one, of items that were not whole in the first."""
    name = f"again-{held[:3]}"
    write_chats(tmp_path / name, [64] * ITEMS)
    if held == "first bytes":
        monkeypatch.setattr(remote, "FIRST_BYTES", 4096)
    size = io.size(f"s3://{BUCKET}/{name}/0.png")
    out = tmp_path / "out"
    assert omniprep(
        "plan", f"s3://{BUCKET}/{name}/chats.jsonl", "--model", model_dir, "--bin-length", 512, "--shard-size", 24_000,
        "--workers", 0, "--out", out,
    ).code == 0  # fmt: skip
    if held == "nothing":
        remote.remote_media.clear()
    store.requests.clear()
    assert build(omniprep, model_dir, name, out).code == 0
    asked = media_requests(store)
    assert sorted(Counter(path for _, path, _ in asked).values()) == [1] * ITEMS
    first = 0 if held == "nothing" else 4096
    assert (f"/{BUCKET}/{name}/0.png", f"bytes={first}-{size - 1}") in [(path, span) for _, path, span in asked]


def test_a_large_item_is_planned_by_its_first_bytes_alone(store, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(remote, "FIRST_BYTES", 2048)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(remote, "WHOLE_BYTES", 1024)
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    data = (tmp_path / "large.png").read_bytes()
    io.write_atomic(f"s3://{BUCKET}/media/large.png", data)
    store.requests.clear()
    source = MediaRoots(f"s3://{BUCKET}/media").locate("large.png")
    assert probe_image(source) == (200, 200) and source.size() == source.length == len(data)
    assert [(method, span) for method, _, span in store.requests] == [("GET", "bytes=0-2047")]
    with source.open() as file:
        assert file.read(5000) == data[:5000]
        assert [span for _, _, span in store.requests] == ["bytes=0-2047", "bytes=0-4095", "bytes=4096-8191"]
        file.seek(-100, 2)
        assert file.read() == data[-100:] and file.seek(0) == 0 and file.read() == data
        with pytest.raises(ValueError, match="before the start"):
            file.seek(-1)


def test_a_part_of_a_tar_is_one_request(store) -> None:
    import tarfile
    from io import BytesIO

    from omniprep.io.tar import MemberName, members_of

    buffer, content = BytesIO(), bytes(range(256)) * 8
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("a.bin", "b.bin"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    uri = f"s3://{BUCKET}/media/t.tar"
    io.write_atomic(uri, buffer.getvalue())
    buffer.seek(0)
    member = list(members_of(buffer, "t"))[1]
    store.requests.clear()
    source = MediaRoots(f"s3://{BUCKET}/media").locate(MemberName.of(uri, member))
    assert source.size() == len(content) and source.read() == content and source.head(9) == content[:9]
    span = f"bytes={member.offset}-{member.offset + member.size - 1}"
    assert [(method, asked) for method, _, asked in store.requests] == [("GET", span)]


def test_input_files_are_listed_and_their_size_comes_with_their_head(omniprep, model_dir, store, tmp_path) -> None:
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no"}]}
    for number in range(8):
        io.write_atomic(f"s3://{BUCKET}/inputs/{number}.jsonl", (json.dumps(row) + "\n").encode())
    store.requests.clear()
    done = omniprep(
        "build", f"s3://{BUCKET}/inputs/*.jsonl", "--model", model_dir, "--bin-length", 512, "--workers", 0,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    asked = Counter((path, method) for method, path, _ in store.requests if path.endswith(".jsonl") and "*" not in path)
    # The head, with the size; and the opened file: its details, and its content.
    assert set(Counter(path for path, _ in asked.elements()).values()) == {3}
    assert len(store.requests) - asked.total() <= 8  # a glob, and a listing before and after the reading
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    alone = [{"source": entry["source"], **io.fingerprint(entry["source"])} for entry in manifest["inputs"]]
    assert manifest["inputs"] == alone and len(alone) == 8


def test_a_row_is_rejected_where_its_item_changed_after_it_was_planned(omniprep, model_dir, store, tmp_path) -> None:
    write_chats(tmp_path / "changed", [64, 64])
    out = tmp_path / "out"
    assert omniprep(
        "plan", f"s3://{BUCKET}/changed/chats.jsonl", "--model", model_dir, "--bin-length", 512, "--workers", 0,
        "--shard-size", 24_000, "--out", out,
    ).code == 0  # fmt: skip
    other = tmp_path / "other.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(other)  # of the same size: no header tells
    io.write_atomic(f"s3://{BUCKET}/changed/1.png", other.read_bytes())
    remote.remote_media.clear()
    assert build(omniprep, model_dir, "changed", out).code == 0
    (row,) = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert row["code"] == "decode_mismatch" and "1.png: was changed in the store since it was planned" in row["message"]


def test_objects_that_are_empty_absent_or_denied(store) -> None:
    folder = MediaRoots(f"s3://{BUCKET}/media")
    io.write_atomic(f"s3://{BUCKET}/media/empty.png", b"")
    with pytest.raises(Reject, match="bad_media: s3://lake/media/empty.png: the file is empty"):
        folder.locate("empty.png").open()
    with pytest.raises(Reject, match="media_not_found"):
        folder.locate("absent.png")
    store.fault = lambda method, path: 403
    with pytest.raises(Reject, match="media_fetch_failed"):
        folder.locate("denied.png")


def test_a_mark_is_compared_and_no_byte_of_another_object_is_given(store) -> None:
    uri = f"s3://{BUCKET}/media/mark.bin"
    io.write_atomic(uri, b"one")
    part = read_object(uri, 0, 100)
    assert (part.data, part.size) == (b"one", 3) and hashlib.md5(b"one").hexdigest() in part.mark
    io.write_atomic(uri, b"two")
    with pytest.raises(ChangedObjectError):
        read_object(uri, 0, 100, part.mark)


def test_what_is_held_is_bounded(store) -> None:
    held = remote.RemoteMedia(held_bytes=50_000)
    for number in range(9):
        io.write_atomic(f"s3://{BUCKET}/bounded/{number}", bytes(10_000))
    places = [remote.Place(f"s3://{BUCKET}/bounded/{number}", None, "", -1) for number in range(9)]
    held.fetch_ahead(places, whole=True)
    for place in places:
        assert held.whole(place).data == bytes(10_000)
    store.requests.clear()
    assert [held.present(place) is not None for place in places].count(True) == 4
    assert not store.requests and not held._pending


def test_rows_are_fetched_ahead_in_order_and_within_bounds(monkeypatch) -> None:
    read, asked = [], []
    monkeypatch.setattr(remote, "fetch_ahead", lambda places, whole: asked.extend(places))
    monkeypatch.setattr(remote, "AHEAD_ROWS", 4)

    def rows() -> Iterator[int]:
        for number in range(12):
            read.append(number)
            yield number

    def places(number: int) -> list[remote.Place]:
        return [] if number < 3 else [remote.Place(str(number), None, "", 1)]

    given = []
    for number in remote.ahead(rows(), places, whole=True):
        given.append(number)
        # None is read ahead before one has an item; from then on four wait.
        assert len(read) == (number + 1 if number < 3 else min(number + 4, 12))
    assert given == read == list(range(12)) and [place.uri for place in asked] == [str(n) for n in range(3, 12)]
    read.clear()
    monkeypatch.setattr(remote, "AHEAD_BYTES", 1)
    assert list(remote.ahead(rows(), places, whole=True)) == list(range(12))


def test_requests_overlap(store, monkeypatch) -> None:
    """Each answer takes 50 ms; those of the next rows are waited for together."""
    names = [f"s3://{BUCKET}/slow/{number}" for number in range(40)]
    for name in names:
        io.write_atomic(name, b"x")
    together, now, lock = [], [0], threading.Lock()

    def wait(method: str, path: str) -> None:
        with lock:
            now[0] += 1
            together.append(now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1

    store.fault = wait
    places = [remote.Place(name, None, "", -1) for name in names]
    for place in remote.ahead(places, lambda place: [place], whole=True):
        assert remote.remote_media.whole(place).data == b"x"
    assert len(together) == 40 and max(together) >= 8


@pytest.mark.parametrize("fault", ["throttled", "gone", "expired"])
def test_a_store_that_fails_in_the_middle_ends_the_build_and_the_same_command_goes_on(
    omniprep, model_dir, store, tmp_path, monkeypatch, fault
) -> None:
    """No row is rejected for it."""
    name = f"fails-{fault}"
    local = write_chats(tmp_path / name, [64] * ITEMS)
    answered, out = [], tmp_path / "out"

    def failing(method: str, path: str) -> int | str | None:
        if not path.endswith(".png") or len(answered) < 3:
            answered.extend([path] if path.endswith(".png") else [])
            return None
        return {"throttled": 503, "gone": "reset", "expired": "ExpiredToken"}[fault]

    store.fault = failing
    stopped = build(omniprep, model_dir, name, out)
    assert stopped.code == 1, stopped.err
    last = stopped.err.splitlines()[-1]
    assert last.startswith("Error: ") and f"s3://{BUCKET}/{name}/" in last, last
    assert ("does not take the credentials" if fault == "expired" else "after 6 tries") in last
    assert not (out / "manifest.json").exists()
    store.fault = lambda method, path: None
    assert build(omniprep, model_dir, name, out).code == 0
    assert omniprep(*command([local], model_dir, tmp_path / "here")).code == 0
    found, expected = outcome(out), outcome(tmp_path / "here")
    assert {key for key in expected if found.get(key) != expected[key]} == {"rows.parquet"}


def test_throttling_that_passes_is_not_noticed(omniprep, model_dir, store, tmp_path) -> None:
    write_chats(tmp_path / "slowdown", [48] * ITEMS)
    seen: Counter[str] = Counter()

    def twice(method: str, path: str) -> int | None:
        seen[path] += 1
        return 503 if path.endswith(".png") and seen[path] <= 2 else None

    store.fault = twice
    done = build(omniprep, model_dir, "slowdown", tmp_path / "out")
    assert done.code == 0 and "rejected: " not in done.err
    assert all(count == 3 for path, count in seen.items() if path.endswith(".png"))


def test_a_fault_of_the_store_is_no_reject_of_a_row(store) -> None:
    store.fault = lambda method, path: 503
    with pytest.raises(OmniprepError, match="after 6 tries"):
        Source(uri=f"s3://{BUCKET}/media/x.png").pinned()
