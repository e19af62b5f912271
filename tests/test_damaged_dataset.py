"""Risk: a dataset that is damaged, or that somebody made to do harm, ends a program with another error than one that
names the file, takes memory for what it only claims to hold, or gives a model something that is no bin.
"""

import json
import shutil
import struct
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import COLUMNS, MODALITIES, make_dataset

from omniprep import PackedDataset, stack, to_model
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.codecs import with_codec
from omniprep.shards.index import read_index, read_rows
from omniprep.shards.message import read_batch
from omniprep.shards.schema import METADATA_KEY, Column, arrow_schema, read_layout

CORPUS = Path(__file__).with_name("corpus") / "damaged_dataset.jsonl"
SHARD = "shards/00000.arrow"
FILES = (SHARD, "index.parquet", "rows.parquet", "manifest.json")
QUICK = pytest.param(40, id="quick")
LONG = pytest.param(1500, id="long", marks=pytest.mark.slow)
INTS = st.sampled_from([0, 1, -1, 2**31 - 1, 2**60, 2**62, -(2**63)])


@pytest.fixture(scope="module", params=["raw", "delta", "webp"])
def dataset(request, tmp_path_factory):
    """A small dataset, a copy of it to damage, and where the bins of its shard are."""
    folder = tmp_path_factory.mktemp("damaged") / "d"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthetic.COLUMNS", with_codec(COLUMNS, request.param))
        make_dataset(folder, n_rows=12, bins_per_shard=100)
    shutil.copytree(folder, folder.with_name("copy"))
    return folder, folder.with_name("copy"), PackedDataset(folder).index


def use(folder):
    """Everything that a trainer does with a dataset, without the checksums that would find most damage first."""
    ds = PackedDataset(folder, verify="never")
    for number in range(len(ds)):
        batch = to_model(stack([ds[number]]))
        assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape[-2:]
        assert int(batch["cu_seq_lens_q"][-1]) == batch["input_ids"].shape[1]
    stack([ds[number] for number in range(len(ds))])
    rows = ds.rows.to_pylist()
    assert len(rows) == ds.rows.num_rows
    for row in rows[:2]:
        ds.row(row["source"], row["line"])


def damage(dataset, name, change):
    """Use the dataset with one file changed; what is wrong is one error of ours that names a file, or it is nothing."""
    folder, copy, _ = dataset
    whole = (folder / name).read_bytes()
    (copy / name).write_bytes(change(whole))
    try:
        use(copy)
    except OmniprepError as error:
        said = str(error)
        assert (
            isinstance(error, DamagedDataError)
            or "format" in said
            or "no input of" in said
            or "not in" in said
            or ("has no row" in said or "is absent" in said or "not an omniprep shard" in said)
        ), said
        assert len(said) < 1500 and "\n" not in said
    finally:
        (copy / name).write_bytes(whole)


def overwrite(at, new):
    return lambda whole: whole[: min(at, len(whole))] + new + whole[at + len(new) :]


def places(index, name, length):
    """Offsets of a file; in a shard, most in the schema and in the heads of the record batches."""
    if name != SHARD:
        return st.integers(0, length - 1)
    heads = st.sampled_from(index["offset"].tolist()).flatmap(lambda begin: st.integers(begin, begin + 1400))
    return st.one_of(st.integers(8, 2500), heads, st.integers(0, length - 1))


NEW_BYTES = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.sampled_from([0, 1, -1, 2**31 - 1]).map(lambda n: n.to_bytes(4, "little", signed=True)),
    INTS.map(lambda n: n.to_bytes(8, "little", signed=True)),
)


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_no_bytes_of_a_file_end_in_another_error(dataset, examples):
    lengths = {name: (dataset[0] / name).stat().st_size for name in FILES}

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def run(data):
        name = data.draw(st.sampled_from(FILES))
        at = data.draw(places(dataset[2], name, lengths[name]))
        if data.draw(st.integers(0, 15)) == 0:
            return damage(dataset, name, lambda whole: whole[:at])
        damage(dataset, name, overwrite(at, data.draw(NEW_BYTES)))

    run()


@pytest.mark.parametrize("case", [json.loads(line) for line in CORPUS.read_text().splitlines()], ids=str)
def test_what_was_found_once(dataset, case):
    damage(dataset, case["file"], overwrite(case["at"], bytes.fromhex(case["bytes"])))


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_no_number_of_a_table_ends_in_another_error(dataset, examples):
    folder = dataset[0]

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def run(data):
        name = data.draw(st.sampled_from(["index.parquet", "rows.parquet"]))
        table = pq.read_table(folder / name)
        column = data.draw(st.integers(0, table.num_columns - 1))
        values = table.column(column).to_pylist()
        kind = data.draw(st.sampled_from([table.schema.field(column).type, pa.int64(), pa.string(), pa.float64(),
                                          pa.list_(pa.int64()), pa.binary()]))  # fmt: skip
        if pa.types.is_integer(kind):
            new = data.draw(st.integers(-(2**63), 2**63 - 1) | INTS)
            new = new % 2**64 if kind == pa.uint64() else max(min(new, 2 ** (kind.bit_width - 1) - 1), -(2**31))
            fits = kind == table.schema.field(column).type  # a checksum is no int64
            values = [value if fits and isinstance(value, int) else 0 for value in values]
        else:
            new = {
                "double": float("nan"),
                "list<item: int64>": [1],
                "list<element: int64>": [1],
                "binary": b"\xff",
            }.get(str(kind), "\x1b[31m")
            values = [new] * len(values)
        values[data.draw(st.integers(0, len(values) - 1))] = data.draw(st.sampled_from([new, None]))
        changed = table.set_column(column, table.column_names[column], pa.array(values, kind))
        sink = pa.BufferOutputStream()
        pq.write_table(changed, sink, store_schema=False)
        damage(dataset, name, lambda whole: sink.getvalue().to_pybytes())

    run()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths_of(value, path=()):
    """The places in a JSON value."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from paths_of(inner, (*path, key))


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_no_declaration_of_a_shard_ends_in_another_error(examples):
    schema = arrow_schema(with_codec(COLUMNS, "webp"), family="f", modalities=MODALITIES)
    whole = json.loads(schema.metadata[METADATA_KEY])
    places = [path for path in paths_of(whole) if path]

    @settings(max_examples=examples, deadline=None)
    @given(st.sampled_from(places), JSON, st.booleans())
    def run(path, new, remove):
        content = json.loads(json.dumps(whole))
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        if remove:
            del inner[path[-1]]
        else:
            inner[path[-1]] = new
        try:
            layout = read_layout(schema.with_metadata({METADATA_KEY: json.dumps(content).encode()}), "packed/s.arrow")
        except OmniprepError as error:
            assert str(error).startswith("packed/s.arrow: ") and len(str(error)) < 500
        else:
            assert all(isinstance(column, Column) for column in layout.columns)

    run()


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"\xff", b"[]", b"null", b"[" * 100_000, b'{"format": 1}', b'{"format": true}']
)
def test_metadata_that_is_no_declaration(metadata):
    schema = arrow_schema(COLUMNS, family="f", modalities=MODALITIES).with_metadata({METADATA_KEY: metadata})
    with pytest.raises(OmniprepError, match=r"^packed/s\.arrow: "):
        read_layout(schema, "packed/s.arrow")


def test_a_column_cannot_take_the_place_of_what_keeps_rows_apart():
    for name in ("use_cache", "attention_mask", "cu_seq_lens_q", "past_key_values"):
        with pytest.raises(OmniprepError, match="a batch's own"):
            arrow_schema([Column(name=name, modality="image", kind="items")], family="f", modalities=MODALITIES)
        mel = Column(name="mel", modality="audio", kind="flat", dtype="bfloat16", load="mel", params={"mask": name})
        with pytest.raises(OmniprepError, match="a batch's own"):
            arrow_schema([mel], family="f", modalities=MODALITIES)


def set_index(folder, **columns):
    """Change line 1 of index.parquet, of which bin 1 is read."""
    table = pq.read_table(folder / "index.parquet")
    for name, value in columns.items():
        number = table.column_names.index(name)
        values = [value if line == 1 else old for line, old in enumerate(table[name].to_pylist())]
        table = table.set_column(number, table.schema.field(number), pa.array(values, table.schema.field(number).type))
    pq.write_table(table, folder / "index.parquet")


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize(
    "columns", [{"length": 2**60}, {"offset": 2**62}, {"length": 2**62, "offset": 2**62}, {"length": -1}, {"offset": -8},
                {"length": 0}, {"shard": -1}, {"shard": 2**31 - 1}],
    ids=str,
)  # fmt: skip
def test_an_index_that_claims_too_much_takes_no_memory(tmp_path, where, columns, monkeypatch):
    make_dataset(tmp_path / "d", n_rows=30)
    uri = str(tmp_path / "d")
    if where == "memory":
        uri = f"memory://{tmp_path.name}"
    set_index(tmp_path / "d", **columns)
    if where == "memory":
        for path in (tmp_path / "d").rglob("*.*"):
            fsspec.filesystem("memory").pipe_file(
                f"/{tmp_path.name}/{path.relative_to(tmp_path / 'd').as_posix()}", path.read_bytes()
            )
    taken, really = [], np.empty
    monkeypatch.setattr(
        np, "empty", lambda shape, *rest, **more: (taken.append(shape), really(shape, *rest, **more))[1]
    )
    with pytest.raises(DamagedDataError):
        PackedDataset(uri)[1]
    assert all(np.prod(shape) < 1 << 20 for shape in taken)


def compressed_batch(folder, claimed):
    """Bin 1 as a record batch whose buffers are compressed, each saying that it holds so many bytes."""
    ds = PackedDataset(folder)
    place = ds.index["offset"][1], ds.index["length"][1]
    data = (folder / SHARD).read_bytes()[place[0] : place[0] + place[1]]
    batch = read_batch(np.frombuffer(data, np.uint8), ds.schema)
    message = bytearray(_serialized(batch))
    if claimed is not None:
        frame = message.find(b"\x28\xb5\x2f\xfd")
        while frame > 0:
            message[frame - 8 : frame] = struct.pack("<q", claimed)
            frame = message.find(b"\x28\xb5\x2f\xfd", frame + 1)
    return bytes(message)


def _serialized(batch):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    stream = sink.getvalue().to_pybytes()
    head = 8 + struct.unpack("<i", stream[4:8])[0]
    return stream[head:]


@pytest.mark.parametrize("claimed", [None, 2**60, 2**40, -2])
def test_compressed_bodies_are_refused_before_they_are_unpacked(tmp_path, claimed):
    folder = tmp_path / "d"
    make_dataset(folder, n_rows=30)
    message = compressed_batch(folder, claimed)
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data + message)
    set_index(folder, offset=len(data), length=len(message), shard=0)
    ds = PackedDataset(folder, verify="never")
    with pytest.raises(DamagedDataError, match=r"bin 1: .*00000\.arrow: .*compressed"):
        ds[1]


def test_a_table_cannot_claim_more_rows_than_its_bytes_hold(tmp_path):
    """Repeated values take no room in Parquet: here 3 million lines in 120 KB, which are 220 MB of memory."""
    make_dataset(tmp_path / "d", n_rows=12)
    for name, read in (("index.parquet", read_index), ("rows.parquet", read_rows)):
        first = pq.read_table(tmp_path / "d" / name).slice(0, 1)
        path = tmp_path / name
        with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
            part = first.take(np.zeros(1 << 20, np.int64))
            for _ in range(3):
                writer.write_table(part)
        assert path.stat().st_size < 200_000
        with pytest.raises(DamagedDataError, match=r"3,145,728 rows cannot be in"):
            read(str(path))


def test_texts_of_a_table_are_held_once(tmp_path):
    """A megabyte of text in every line of a further column."""
    make_dataset(tmp_path / "d", n_rows=12)
    table = pq.read_table(tmp_path / "d" / "rows.parquet").take(np.zeros(20_000, np.int64))
    table = table.append_column(
        "note", pa.array(["x" * (1 << 20)]).dictionary_encode().take(pa.array(np.zeros(20_000, np.int64)))
    )
    pq.write_table(table, tmp_path / "rows.parquet", store_schema=False)
    before = pa.total_allocated_bytes()
    rows = read_rows(str(tmp_path / "rows.parquet"))
    assert rows.num_rows == 20_000 and len(rows["note"][19_999].as_py()) == 1 << 20
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_a_codec_cannot_claim_more_patches_than_its_tokens_stand_for(tmp_path, monkeypatch):
    monkeypatch.setattr("synthetic.COLUMNS", with_codec(COLUMNS, "webp"))
    make_dataset(tmp_path / "d", n_rows=12, bins_per_shard=100)
    ds = PackedDataset(tmp_path / "d")
    number = next(b for b in range(len(ds)) if "pixel_values" in ds[b])
    grid = ds[number]["image_grid_thw"][0]
    data, place = bytearray((tmp_path / "d" / SHARD).read_bytes()), int(ds.index["offset"][number])
    for high, wide in ((2**20, 2**20), (2**31 - 1, 2**31 - 1), (-2, -2), (2000, 2000)):
        changed = bytearray(data)
        at = changed.find(np.asarray(grid, np.int32).tobytes(), place)
        changed[at : at + 12] = np.array([1, high, wide], np.int32).tobytes()
        (tmp_path / "d" / SHARD).write_bytes(changed)
        with pytest.raises(
            DamagedDataError, match=r"bin \d+: .*00000\.arrow: column 'image_grid_thw'|bytes of pixels for"
        ):
            PackedDataset(tmp_path / "d", verify="never")[number]


def test_a_row_that_is_not_where_its_table_says_is_no_other_row(tmp_path):
    make_dataset(tmp_path / "d", n_rows=12)
    table = pq.read_table(tmp_path / "d" / "rows.parquet")
    for name, change in (
        ("bin", lambda n: -1),
        ("bin", lambda n: 10**6),
        ("bin", lambda n: (n + 1) % 2),
        ("start", lambda n: n + 1),
    ):
        number = table.column_names.index(name)
        values = [None if n is None else change(n) for n in table[name].to_pylist()]
        pq.write_table(table.set_column(number, name, pa.array(values, pa.int64())), tmp_path / "d" / "rows.parquet")
        with pytest.raises(DamagedDataError, match=r"rows\.parquet: .*another build"):
            PackedDataset(tmp_path / "d").row("a.jsonl", 1)
