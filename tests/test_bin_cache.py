"""Risk: the folder of cached bins outgrows its bound, takes longer to look through than the store, or removes what is
not its own.
"""

import os

import fsspec
import numpy as np
import pytest

from omniprep.shards import cache as cache_module
from omniprep.shards.cache import BinCache

SHARD = "memory://bin-cache/s.arrow"
BIN = 1000


@pytest.fixture(scope="module", autouse=True)
def shard():
    data = np.random.default_rng(0).integers(0, 256, 480 * BIN, np.uint8).tobytes()
    fsspec.filesystem("memory").pipe_file("/bin-cache/s.arrow", data)
    return data


@pytest.fixture
def scans(monkeypatch):
    """How often a folder is listed, and how many entries are looked at."""
    counted, really = [0, 0], os.scandir

    class Counted:
        def __init__(self, path):
            self.entries = really(path)

        def __enter__(self):
            counted[0] += 1
            return self

        def __iter__(self):
            for entry in self.entries:
                counted[1] += 1
                yield entry

        def __exit__(self, *error):
            self.entries.close()

    monkeypatch.setattr(cache_module.os, "scandir", Counted)
    return counted


def size(folder):
    return sum((folder / name).stat().st_size for name in os.listdir(folder))  # listdir: scandir is counted


def test_what_is_kept_is_read_again_without_the_store(tmp_path, shard, monkeypatch):
    cache = BinCache(str(tmp_path), 100 * BIN, "d")
    for number in (3, 5, 3):
        assert cache.read(SHARD, number * BIN, BIN) == shard[number * BIN : (number + 1) * BIN]
    monkeypatch.setattr(cache_module.io, "read_range", lambda *_: pytest.fail("asked the store"))
    assert cache.read(SHARD, 5 * BIN, BIN) == shard[5 * BIN : 6 * BIN]


def test_a_full_folder_is_not_listed_for_every_bin(tmp_path, shard, scans, monkeypatch):
    """Three times as many bins as there is room for, each a miss."""
    monkeypatch.setattr(cache_module, "_SCANS", 16)
    cache = BinCache(str(tmp_path), 160 * BIN, "d")
    for number in range(480):
        cache.read(SHARD, number * BIN, BIN)
        assert number % 20 or size(tmp_path) <= 160 * BIN
    assert size(tmp_path) > 140 * BIN, "and the room is used"
    lists, entries = scans
    assert lists <= 480 / 10 + 2 and entries <= 480 * 16, (
        "one listing for ten bins, as many entries a miss as there are scans"
    )
    asked = []
    monkeypatch.setattr(cache_module.io, "read_range", lambda uri, start, size: asked.append(start) or shard[:BIN])
    cache.read(SHARD, 479 * BIN, BIN)
    assert not asked, "the last bin is kept"
    cache.read(SHARD, 0, BIN)
    assert asked == [0], "the first is not"


def test_several_processes_stay_near_the_bound(tmp_path, shard):
    caches = [BinCache(str(tmp_path), 64 * BIN, "d") for _ in range(4)]
    for number in range(300):
        caches[number % 4].read(SHARD, number * BIN, BIN)
        assert size(tmp_path) <= 64 * BIN + 4 * max(BIN, 64 * BIN / 256)


def test_files_of_others_stay(tmp_path, shard):
    (tmp_path / "photo.bin").write_bytes(bytes(50 * BIN))
    (tmp_path / "folder").mkdir()
    left = tmp_path / f"{'a' * 40}.bin.0123abcd.tmp"  # of a process that was killed
    left.write_bytes(bytes(9 * BIN))
    os.utime(left, (1, 1))
    cache = BinCache(str(tmp_path), 10 * BIN, "d")
    for number in range(30):
        cache.read(SHARD, number * BIN, BIN)
    assert (tmp_path / "photo.bin").stat().st_size == 50 * BIN and (tmp_path / "folder").is_dir()
    assert not left.exists() and len(list(tmp_path.glob("*.bin"))) - 1 <= 10


def test_a_bin_larger_than_the_bound_is_not_kept(tmp_path, shard):
    cache = BinCache(str(tmp_path), BIN, "d")
    assert cache.read(SHARD, 0, 2 * BIN) == shard[: 2 * BIN] and not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_the_bin_is_read(tmp_path, shard, monkeypatch):
    cache = BinCache(str(tmp_path), 100 * BIN, "d")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.io, "write_atomic", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert cache.read(SHARD, 0, BIN) == shard[:BIN]
