"""Stores other than S3 go the same way: fsspec's own memory store as a whole build, and what is said where a store's
package is absent."""

from pathlib import Path

import fsspec
import pytest

from omniprep import PackedDataset, io
from omniprep.errors import OmniprepError
from tests.reliability import command, make_chats


def test_a_build_from_memory_to_memory(omniprep, model_dir: Path, tmp_path: Path) -> None:
    make_chats(tmp_path / "in", rows=12)
    for path in (tmp_path / "in").iterdir():
        io.write_atomic(f"memory://stores/in/{path.name}", path.read_bytes())
    here = command([tmp_path / "in" / "*.jsonl"], model_dir, tmp_path / "out")
    assert omniprep(*here).code == 0
    there = [arg.replace(f"{tmp_path}/", "memory://stores/") if "model" not in arg else arg for arg in here]
    for said in ("bins", "already built"):
        done = omniprep(*there)
        assert done.code == 0 and said in done.out + done.err, done.err
    for name in (*(f"shards/{path.name}" for path in (tmp_path / "out" / "shards").iterdir()), "index.parquet"):
        assert io.read_bytes(f"memory://stores/out/{name}") == (tmp_path / "out" / name).read_bytes(), name
    assert omniprep("verify", "memory://stores/out").code == 0
    assert len(PackedDataset("memory://stores/out")) == len(PackedDataset(tmp_path / "out"))
    assert not [name for name in io.list_folder("memory://stores/out") if name == "lease.json"]


@pytest.mark.parametrize(("protocol", "advice"), [("gs", "pip install gcsfs"), ("az", "pip install adlfs")])
def test_a_store_without_its_package(omniprep, model_dir: Path, monkeypatch, protocol: str, advice: str) -> None:
    def absent(*args: object, **more: object) -> None:
        raise ImportError("Please install it")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(OmniprepError, match=advice):
        io.exists(f"{protocol}://bucket/file")
    done = omniprep(*command([], model_dir, Path("out")), f"{protocol}://bucket/chats.jsonl")
    assert done.code == 1 and advice in done.err and len(done.err.splitlines()) == 1, done.err


def test_no_such_store() -> None:
    with pytest.raises(OmniprepError, match="nosuchstore://"):
        io.exists("nosuchstore://bucket/file")


class HttpError(Exception):
    """As gcsfs has it: the status is its `code`."""

    __module__ = "gcsfs.retry"

    def __init__(self, code: int):
        super().__init__(f"said\n\tso, {code}")
        self.code = code


@pytest.mark.parametrize(
    ("error", "raised", "tries"),
    [
        (HttpError(400), OSError, 1),
        (HttpError(401), PermissionError, 1),
        (OSError("Forbidden: http://there\ninjected"), PermissionError, 1),
        (HttpError(429), io.StoreUnavailableError, 6),
        (HttpError(503), io.StoreUnavailableError, 6),
    ],
    ids=["400", "401", "403 in words", "429", "503"],
)
def test_what_stays_is_not_tried_again(monkeypatch, error: Exception, raised: type[OSError], tries: int) -> None:
    """Errors as the clients of stores raise them, whether or not those are installed; told in one line."""
    monkeypatch.setattr("omniprep.io.stores.WAITS", (0.0,) * 5)
    calls = []

    def failing(*_: object) -> None:
        calls.append(1)
        raise error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "size", failing)
    with pytest.raises(OSError) as caught:
        io.size("memory://stores/file")
    assert type(caught.value) is raised and len(calls) == tries
    assert caught.value.filename == "memory://stores/file" and "\n" not in str(caught.value)
