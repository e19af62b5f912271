"""Risk: a byte of the format changed unmeant, a damaged file taken for a good one, half a file left behind."""

import hashlib
import json
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from synthetic import COLUMNS, MODALITIES, make_bin, make_row

from omniprep.compiler.encode.shard_file import ShardFile, UnwritableBinError
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.codecs import with_codec
from omniprep.shards.codecs.delta import Codec
from omniprep.shards.content import item_sizes
from omniprep.shards.index import IndexEntry, read_index, read_rows, write_index, write_rows
from omniprep.shards.reader import BufferPool, ShardReader, decode, read_schema
from omniprep.shards.schema import METADATA_KEY, Column, arrow_schema, read_layout
from omniprep.shards.writer import ShardWriter

GOLDEN_SHA256 = "2dfe4d137d906de009dfa154931c757d1a5985e74219dd00c86d90b442eef653"


def schema(weighted=False):
    return arrow_schema(COLUMNS, family="synthetic", modalities=MODALITIES, weighted=weighted)


def write(path, bins, weighted=False):
    with ShardWriter(str(path), schema(weighted)) as writer:
        entries = [writer.write(b) for b in bins]
    return entries, writer.close()


def small_bins(weighted=False):
    rows = [make_row(i, 8 + i) for i in range(8)]
    return [make_bin(rows[i : i + 4], list(range(i, i + 4)), weighted) for i in (0, 4)] + [
        make_bin(rows[1:2], [1], weighted)
    ]


def test_metadata_is_golden():
    layout = json.loads(schema().metadata[METADATA_KEY])
    assert set(layout) == {"format", "family", "modalities", "columns", "weighted"}
    assert layout["format"] == 1 and layout["modalities"] == ["image", "audio", "video"] and layout["weighted"] is False
    assert layout["columns"][2] == {
        "name": "pixel_values",
        "modality": "image",
        "kind": "flat",
        "dtype": "uint8",
        "shape": [588],
        "sizes": "prod(image_grid_thw)",
        "load": "patches",
        "params": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "patch_size": 14,
            "temporal_patch_size": 2,
        },
    }
    assert [f"{f.name}: {f.type}" for f in schema()] == [
        "input_ids: list<item: int32>",
        "labels: list<item: int32>",
        "loss_scale: list<item: float>",
        "position_ids: list<item: int32>",
        "cu_seqlens: list<item: int32>",
        "row_ids: list<item: int32>",
        "row_items: list<item: int32>",
        "image_grid_thw: list<item: int32>",
        "video_grid_thw: list<item: int32>",
        "pixel_values: large_binary",
        "pixel_values_videos: large_binary",
        "audio_frames: list<item: int32>",
        "input_features: large_binary",
    ]
    assert read_layout(schema()).columns == COLUMNS


def test_bytes_are_golden(tmp_path):
    """Seeded synthetic rows must give this very file. A new hash means a new format version, or rebuilt datasets."""
    entries, info = write(tmp_path / "s.arrow", small_bins())
    data = (tmp_path / "s.arrow").read_bytes()
    assert info.bytes == len(data) and info.sha256 == hashlib.sha256(data).hexdigest() == GOLDEN_SHA256
    for entry in entries:
        assert xxhash.xxh3_64_intdigest(data[entry.offset : entry.offset + entry.length]) == entry.checksum
    with pa.ipc.open_file(tmp_path / "s.arrow") as file:
        assert file.num_record_batches == 3 and file.get_batch(0).num_rows == 1
        assert [b.nbytes > 0 for b in map(file.get_batch, range(3))] == [True] * 3


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_written_is_read(tmp_path, weighted):
    bins = small_bins(weighted)
    path = str(tmp_path / "s.arrow")
    entries, _ = write(path, bins, weighted)
    found = read_schema(path)
    assert found.equals(schema(weighted), check_metadata=True)
    reader = ShardReader([path])
    for number in (2, 0, 1):
        item, entry = bins[number], entries[number]
        data = reader.read(0, entry.offset, entry.length, entry.checksum)
        got = decode(data, found, read_layout(found))
        for name in ("input_ids", "labels", "cu_seqlens", "row_ids", "row_items", "position_ids", "loss_scale"):
            want = getattr(item, name)
            assert (name not in got) if want is None else np.array_equal(got[name], want), name
        for column in COLUMNS:
            parts = item.media[column.name]
            if not parts:
                assert column.name not in got
            elif column.kind == "items":
                assert np.array_equal(got[column.name], np.stack(parts))
            else:
                assert np.array_equal(got[column.name].reshape(-1), np.concatenate([p.reshape(-1) for p in parts]))
                assert item_sizes(column, got).tolist() == [p.size // column.unit for p in parts]


def test_a_flat_column_without_sizes_gets_a_companion(tmp_path):
    columns = (Column(name="wave", modality="audio", kind="flat", dtype="float32", shape=(2,)),)
    made = arrow_schema(columns, family="f", modalities=("audio",))
    assert made.names[-2:] == ["wave", "wave_sizes"]
    row = make_row(1, 9)
    item = make_bin([row], [0])
    item.row_items = np.array([[2]], np.int32)
    item.media = {"wave": [np.ones((3, 2), np.float32), np.zeros((5, 2), np.float32)]}
    with ShardWriter(str(tmp_path / "s.arrow"), made) as writer:
        entry = writer.write(item)
    data = ShardReader([str(tmp_path / "s.arrow")]).read(0, entry.offset, entry.length)
    layout = read_layout(made)
    got = decode(data, made, layout)
    assert got["wave"].shape == (8, 2) and item_sizes(layout.columns[0], got).tolist() == [3, 5]


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(str(tmp_path / "s.arrow"), schema()) as writer:
        writer.write(small_bins()[0])
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.fixture
def dataset_folder(tmp_path):
    for name in ("shards", "receipts"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("waits", [True, False], ids=["small bins", "bins too large to wait"])
def test_a_bin_is_written_while_the_next_is_made(dataset_folder, monkeypatch, waits):
    began, go, really = threading.Event(), threading.Event(), ShardWriter.write

    def slowly(self, item):
        began.set()
        assert go.wait(60 if waits else 0.2) is waits
        return really(self, item)

    monkeypatch.setattr(ShardWriter, "write", slowly)
    if not waits:
        monkeypatch.setattr("omniprep.compiler.encode.shard_file.BEHIND_BYTES", 0)
    with ShardFile(str(dataset_folder), 3, schema()) as shard:
        for number, item in enumerate(small_bins()):
            shard.put(number, item)
            assert began.wait(60)  # under way, and not waited for, unless it is large
            if waits:
                go.set()
    receipt = shard.finish([])
    monkeypatch.undo()
    entries, info = write(dataset_folder / "plain.arrow", small_bins())
    assert (receipt["bytes"], receipt["sha256"]) == (info.bytes, info.sha256)
    places = [{"offset": e.offset, "length": e.length, "checksum": e.checksum} for e in entries]
    assert [{k: b[k] for k in ("offset", "length", "checksum")} for b in receipt["bins"]] == places
    assert json.loads((dataset_folder / "receipts" / "00003.json").read_text()) == receipt


@pytest.mark.parametrize("behind_bytes", [0, 1 << 30], ids=["waited for", "while the next are made"])
def test_items_compressed_before_their_bin_give_the_same_bytes(dataset_folder, monkeypatch, behind_bytes):
    monkeypatch.setattr("omniprep.compiler.encode.shard_file.BEHIND_BYTES", behind_bytes)
    compressed = arrow_schema(with_codec(COLUMNS, "delta"), family="synthetic", modalities=MODALITIES)
    columns = [column for column in read_layout(compressed).columns if "codec" in column.params]
    assert {column.name for column in columns} == {"pixel_values", "pixel_values_videos"}
    with ShardFile(str(dataset_folder), 0, compressed) as shard:
        for number, item in enumerate(small_bins()):
            media = dict(item.media)
            for column in columns:
                sizes, units = media[column.size_source()[0]], media[column.name]
                media[column.name] = [shard.compress(column, *pair) for pair in zip(units, sizes, strict=True)]
                shard.bound_memory()
                assert behind_bytes or all(item.pictures.done() for item in media[column.name])
            shard.put(number, replace(item, media=media))
            shard.put(len(small_bins()) + number, replace(item, media=media))  # an item of two bins
    receipt = shard.finish([])
    with ShardWriter(str(dataset_folder / "plain.arrow"), compressed) as writer:
        for item in small_bins():
            writer.write(item)
            writer.write(item)
    assert receipt["sha256"] == writer.close().sha256


def test_an_item_that_cannot_be_compressed_makes_its_bin_unwritable(dataset_folder, monkeypatch):
    compressed = arrow_schema(with_codec(COLUMNS, "delta"), family="synthetic", modalities=MODALITIES)
    column = next(column for column in read_layout(compressed).columns if column.name == "pixel_values")
    item = next(item for item in small_bins() if item.media["pixel_values"])
    pairs = zip(item.media["pixel_values"], item.media["image_grid_thw"], strict=True)
    with (
        pytest.raises(UnwritableBinError, match="bin 7 cannot be written"),
        ShardFile(str(dataset_folder), 0, compressed) as shard,
    ):
        monkeypatch.setattr(Codec, "encode", lambda *_: 1 // 0)
        pictures = [shard.compress(column, *pair) for pair in pairs]
        shard.put(7, replace(item, media={**item.media, "pixel_values": pictures}))
    assert os.listdir(dataset_folder / "shards") == []


@pytest.mark.parametrize("bad", [0, 2])  # found at the bin after it; found at the end
def test_a_bin_that_cannot_be_written_leaves_nothing(dataset_folder, monkeypatch, bad):
    left, really = [bad], ShardWriter.write

    def full(self, item):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return really(self, item)

    monkeypatch.setattr(ShardWriter, "write", full)
    with pytest.raises(OSError, match="No space"), ShardFile(str(dataset_folder), 0, schema()) as shard:
        for number, item in enumerate(small_bins()):
            shard.put(number, item)
    assert os.listdir(dataset_folder / "shards") == []


def test_long_shards_go_to_the_disk_as_they_grow(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("omniprep.shards.writer.SYNC_BYTES", 1)
    monkeypatch.setattr("omniprep.shards.writer.os.fsync", lambda number: synced.append(os.fstat(number).st_size))
    entries, info = write(tmp_path / "s.arrow", small_bins())
    assert synced == [*(e.offset + e.length for e in entries), info.bytes]


def test_written_to_any_store(tmp_path):
    import fsspec

    entries, info = write("memory://shards/s.arrow", small_bins())
    _, local = write(tmp_path / "s.arrow", small_bins())
    assert info == local
    assert fsspec.filesystem("memory").cat_file("/shards/s.arrow") == (tmp_path / "s.arrow").read_bytes()
    reader = ShardReader(["memory://shards/s.arrow"])
    reader.read(0, entries[1].offset, entries[1].length, entries[1].checksum)
    with pytest.raises(DamagedDataError, match=r"memory://shards/s\.arrow is damaged"):
        reader.read(0, entries[1].offset, entries[1].length, entries[1].checksum ^ 1)


@pytest.mark.parametrize(
    "column",
    [
        {"name": "a", "modality": "smell", "kind": "items"},
        {"name": "a", "modality": "image", "kind": "flat", "dtype": "uint8", "sizes": "prod(grid)"},
        {"name": "labels", "modality": "image", "kind": "items"},
        {"name": "a", "modality": "image", "kind": "items", "dtype": "bfloat16"},
        {"name": "a", "modality": "image", "kind": "items", "load": "no name"},
    ],
)
def test_bad_declarations_are_refused(column):
    with pytest.raises(OmniprepError):
        arrow_schema([Column(**column)], family="f", modalities=MODALITIES)


def test_other_files_and_newer_formats_are_refused(tmp_path):
    with pytest.raises(OmniprepError, match="not an omniprep shard"):
        read_layout(pa.schema([("a", pa.int32())]), "x.arrow")
    newer = schema().with_metadata({METADATA_KEY: b'{"format": 4}'})
    with pytest.raises(OmniprepError, match="format 4"):
        read_layout(newer, "x.arrow")
    (tmp_path / "s.arrow").write_bytes(b"ARROW1\0\0not arrow")
    with pytest.raises(DamagedDataError, match=r"s\.arrow"):
        read_schema(str(tmp_path / "s.arrow"))


def test_index_and_rows_tables(tmp_path):
    entries = [
        IndexEntry(
            shard=0, offset=8, length=9, tokens=1, rows=2, patches=3, audio_frames=4, cost=5.5, checksum=2**64 - 1
        )
    ]
    write_index(str(tmp_path / "index.parquet"), entries)
    index = read_index(str(tmp_path / "index.parquet"))
    assert index["checksum"].tolist() == [2**64 - 1] and index["cost"].tolist() == [5.5]
    first = (tmp_path / "index.parquet").read_bytes()
    write_index(str(tmp_path / "index.parquet"), entries)
    assert (tmp_path / "index.parquet").read_bytes() == first
    rows = {"line": [1], "source": ["a"], "bin": [None], "start": [None], "length": [None], "status": ["rejected"]}
    table = pa.table({**rows, "extra": [1.5], "code": ["bad_json"]})
    write_rows(str(tmp_path / "rows.parquet"), [table])
    table = read_rows(str(tmp_path / "rows.parquet"))
    assert table.column_names == ["source", "line", "status", "code", "bin", "start", "length", "extra"]
    assert table["bin"].type == pa.int64() and table["code"].to_pylist() == ["bad_json"]
    with pytest.raises(OmniprepError, match="'source' is absent"):
        read_rows(str(tmp_path / "index.parquet"))


def test_a_buffer_is_used_again_only_when_nothing_looks_into_it():
    pool = BufferPool()
    first = pool.take(1000)
    address = first.ctypes.data
    view = first[:10].view(np.int16)
    del first
    assert pool.take(1000).ctypes.data != address, "a view is alive"
    del view
    assert address in {pool.take(1000).ctypes.data for _ in range(2)}
    held = [pool.take(500) for _ in range(20)]
    assert len({h.ctypes.data for h in held}) == 20


def test_a_fork_while_a_buffer_is_taken_locks_nobody_out():
    """A thread of the trainer may be taking one when a DataLoader forks its readers."""
    pool = BufferPool()
    held = [pool.take(100) for _ in range(8)]
    with pool._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits for the lock
            first = pool.take(100).ctypes.data
            os._exit(0 if pool.take(100).ctypes.data == first else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "and its own buffers are used again"
    assert len(held) == 8
