"""Tars, tables and delimited text give the rows that the same chats in JSON lines give, and nothing that they deleted."""

import io as _io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from media_files import picture, sound, video
from s3_server import BUCKET, Store, store  # noqa: F401

from omniprep import PackedDataset, io
from omniprep.errors import OmniprepError, Reject
from omniprep.media.fetch import MediaRoots
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import find_splits, fingerprint, numbered

CHATS = pa.table({"query": [f"q{n}" for n in range(10)], "response": [f"a{n}" for n in range(10)]})


def read(*names: object) -> list[Any]:
    return [raw.content for _, _, raw in numbered(find_splits(find_inputs(tuple(map(str, names)))))]


def queries(*names: object) -> list[str]:
    return sorted(row["query"] for row in read(*names))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, _io.BytesIO(data))
    return path


def build(omniprep: Any, model_dir: Path, out: Path, *inputs: object, code: int = 0) -> Any:
    options = ("--model", model_dir, "--bin-length", 1024, "--workers", 0, "--quiet", "--out", out)
    done = omniprep("build", *inputs, *options)
    assert done.code == code, done.err
    return done


def bins(out: Path) -> list[dict[str, Any]]:
    dataset = PackedDataset(str(out))
    return [
        {name: value.tobytes() for name, value in dataset[n].items() if hasattr(value, "tobytes")}
        for n in range(len(dataset))
    ]


# Tars


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two tars by webdataset's own writer, and the same rows as JSON lines with files."""
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed (omniprep[test])")
    lines = []
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"shard-{shard:03d}.tar")) as writer:
            for number in range(3):
                key = f"{shard}{number:03d}"
                chat = [{"role": "user", "content": f"<image>what is {key}?"}, {"role": "assistant", "content": key}]
                files = {"png": picture("PNG", (56 + 28 * number, 56))}
                if number == 1:
                    files["wav"] = sound("WAV")
                    chat[0]["content"] += "<audio>"
                if number == 2:
                    files["mp4"] = video()
                    chat[0]["content"] += "<video>"
                writer.write({"__key__": key, "json": {"messages": chat}, **files})
                for suffix, data in files.items():
                    (tmp_path / f"{key}.{suffix}").write_bytes(data)
                columns = {"png": "images", "wav": "audios", "mp4": "videos"}
                lines.append({"messages": chat, **{columns[suffix]: [f"{key}.{suffix}"] for suffix in files}})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_tar_gives_the_bins_of_the_same_rows_in_files(shards: Path, omniprep: Any, model_dir: Path) -> None:
    build(omniprep, model_dir, shards / "files", shards / "rows.jsonl")
    build(omniprep, model_dir, shards / "tars", shards / "shard-{000..001}.tar")
    assert bins(shards / "tars") == bins(shards / "files")
    rows = PackedDataset(str(shards / "tars")).rows.to_pylist()
    assert [(Path(row["source"]).name, row["line"]) for row in rows] == [
        (f"shard-00{s}.tar", n) for s in (0, 1) for n in (1, 2, 3)
    ]
    assert omniprep("verify", shards / "tars", "--deep").code == 0


def test_media_paths_may_lead_into_a_tar(shards: Path, omniprep: Any, model_dir: Path) -> None:
    rows = [json.loads(line) for line in (shards / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        for column in ("images", "audios", "videos"):
            if column in row:
                row[column] = [f"shard-00{name[0]}.tar!{name}" for name in row[column]]
    (shards / "inside.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(omniprep, model_dir, shards / "files", shards / "rows.jsonl")
    build(omniprep, model_dir, shards / "inside", shards / "inside.jsonl")
    assert bins(shards / "inside") == bins(shards / "files")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("s.tar!b.png", r"s\.tar!b\.png: the tar has no such member; did you mean '[^']*a\.png'"),
        ("s.tar!twice.png", "two members of that name"),
        ("none.tar!a.png", r"none\.tar: no such file"),
        ("../x.tar!a.png", "lies outside"),
        ("cut.tar!a.png", "cut short or damaged at byte"),
        ("text.tar!a.png", "not an uncompressed tar"),
        ("s.tar!empty.png", "the file is empty"),
    ],
)
def test_what_is_wrong_with_a_path_into_a_tar_is_a_reject(tmp_path: Path, reference: str, message: str) -> None:
    (tmp_path / "in").mkdir()
    whole = write_tar(tmp_path / "in" / "s.tar", {"a.png": picture("PNG"), "twice.png": b"1", "empty.png": b""})
    with tarfile.open(whole, "a") as archive:
        archive.addfile(tarfile.TarInfo("twice.png"))
    write_tar(tmp_path / "x.tar", {"a.png": picture("PNG")})
    one = write_tar(tmp_path / "in" / "cut.tar", {"a.png": b"x" * 600})
    one.write_bytes(one.read_bytes()[: 512 + 1024])  # at the border of a member, where tarfile sees no fault
    (tmp_path / "in" / "text.tar").write_text("no tar")
    with pytest.raises(Reject, match=message):
        MediaRoots(str(tmp_path / "in")).locate(reference).read()


def test_a_row_says_which_member_it_means(tmp_path: Path) -> None:
    question = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A"}]
    typed = [{"role": "user", "content": [{"type": "image", "image": "jpg"}]}, {"role": "assistant", "content": "A"}]
    tar = write_tar(
        tmp_path / "s.tar",
        {
            "d/0.json": json.dumps({"messages": question, "images": ["0.b.jpg"]}).encode(),
            "d/0.a.jpg": b"a",
            "d/0.b.jpg": b"b",
            "1.json": json.dumps({"messages": typed}).encode(),
            "1.jpg": b"1",
            "2.jpg": b"2",
            "2.txt": "caption é".encode(),
            "3.txt": b"other",
            "3.json": b'{"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}',
            "3.cls": b"7",
            "__meta__/x.json": b"{}",
            ".hidden.json": b"{}",
        },
    )
    rows = read(tar)
    assert [row.get("images") for row in rows] == [[f"{tar}!d/0.b.jpg"], None, [f"{tar}!2.jpg"], None]
    assert rows[1]["messages"][0]["content"][0]["image"] == f"{tar}!1.jpg"
    assert rows[2]["messages"] == [
        {"role": "user", "content": "<image>"},
        {"role": "assistant", "content": "caption é"},
    ]
    assert "messages" not in rows[3]
    roots = MediaRoots("/nowhere")
    assert [roots.locate(rows[n]["images"][0]).read() for n in (0, 2)] == [b"b", b"2"]


def test_rows_of_a_tar_that_cannot_be_read_are_rejects(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "s.tar",
        {"0.jpg": b"0", "1.json": b"[1]", "2.json": b"{", "3.json": b'{"query": "q"}', "1.png": b"1", "3.png": b"3"},
    )
    rows = read(tar)
    assert [type(row).__name__ for row in rows] == ["Reject", "Reject", "Reject", "dict", "Reject", "Reject"]
    messages = [row.message for row in rows if isinstance(row, Reject)]
    assert "neither 0.json nor 0.txt (it has jpg)" in messages[0] and "holds no JSON object but list" in messages[1]
    assert "2.json: " in messages[2] and "1: an earlier row of the tar has the same key" in messages[3]


@pytest.mark.parametrize("cut", [100, 512, 700, 512 + 512, 3 * 512 + 40])
def test_a_tar_that_is_cut_stops_the_build(tmp_path: Path, cut: int) -> None:
    tar = write_tar(tmp_path / "s.tar", {f"{n}.json": b'{"query": "q", "response": "a"}' for n in range(4)})
    tar.write_bytes(tar.read_bytes()[:cut])
    with pytest.raises(OmniprepError, match=r"s\.tar: .*(cut short|damaged)"):
        read(tar)


def test_a_damaged_header_in_a_tar_is_no_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "s.tar", {f"{n}.json": b'{"query": "q", "response": "a"}' for n in range(4)})
    data = bytearray(tar.read_bytes())
    data[2 * 1024 + 150] ^= 0xFF  # the checksum of the third member
    tar.write_bytes(data)
    with pytest.raises(OmniprepError, match="cut short or damaged at byte 2,048"):
        read(tar)


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz"):
        pass
    with pytest.raises(OmniprepError, match="not an uncompressed tar"):
        read(tmp_path / "s.tar")


def test_a_folder_of_energon_is_read_by_its_splits(tmp_path: Path) -> None:
    for name in ("s_0", "s_1", "s_2", "s_3"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.json": json.dumps({"query": name, "response": "a"}).encode()})
    (tmp_path / ".nv-meta").mkdir()
    (tmp_path / ".nv-meta" / "split.yaml").write_text(
        "exclude: [s_1.tar]\nsplit_parts:\n  train: ['s_{0..2}.tar']\n  val: [s_3.tar]\n"
    )
    assert queries(tmp_path) == ["s_0", "s_2"]
    assert queries(f"{tmp_path}:val") == ["s_3"]
    with pytest.raises(OmniprepError, match="no split 'vall'; did you mean"):
        read(f"{tmp_path}:vall")
    (tmp_path / ".nv-meta" / "split.yaml").write_text("split_parts: {train: [../x.tar]}")
    with pytest.raises(OmniprepError, match=r"names '\.\./x\.tar'"):
        read(tmp_path)


def test_of_a_folder_one_kind_of_files_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("query,response\nc,a\n")
    assert queries(tmp_path) == ["c"]
    write_tar(tmp_path / "media.tar", {"0.json": b'{"query": "t", "response": "a"}'})
    assert queries(tmp_path) == ["t"]
    (tmp_path / "rows.jsonl").write_text('{"query": "j", "response": "a"}\n')
    said: list[str] = []
    assert [Path(entry.source).name for entry in find_inputs((str(tmp_path),), say=said.append)] == ["rows.jsonl"]
    assert "left out: 2 of other kinds" in said[0]
    (tmp_path / "media_stats.json").write_text("{}")  # as img2dataset writes beside its tars
    with pytest.raises(OmniprepError, match=r"media_stats\.json and media\.tar belong together"):
        find_inputs((str(tmp_path),))


def test_a_tar_in_a_store_is_read_by_range(store: Store, shards: Path, omniprep: Any, model_dir: Path) -> None:  # noqa: F811
    name = "shard-000.tar"
    io.write_atomic(f"s3://{BUCKET}/tars/{name}", (shards / name).read_bytes())
    build(omniprep, model_dir, shards / "local", shards / name)
    store.requests.clear()
    build(omniprep, model_dir, shards / "remote", f"s3://{BUCKET}/tars/{name}")
    assert bins(shards / "remote") == bins(shards / "local")
    reads = [ranged for method, path, ranged in store.requests if method == "GET" and path.endswith(name)]
    assert reads and all(reads), "each read names its range"


# Tables


def test_delta_tables_give_current_rows(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed (omniprep[delta])")
    table = str(tmp_path / "table")
    deltalake.write_deltalake(table, CHATS.slice(0, 5))
    deltalake.write_deltalake(table, CHATS.slice(5), mode="append")
    splits = find_splits(find_inputs((table,)))
    assert len(splits) == 2 and fingerprint(splits[0])["version"] == "1"
    deltalake.DeltaTable(table).delete("query = 'q2'")
    assert queries(table) == [f"q{n}" for n in range(10) if n != 2]
    assert queries(f"{table}@0") == [f"q{n}" for n in range(5)]
    # Splits that were found before the table changed still give the rows of their version.
    assert sorted(raw.content["query"] for _, _, raw in numbered(splits)) == [f"q{n}" for n in range(10)]
    with pytest.raises(OmniprepError, match=r"table@7: there is no such version, the current one is 2"):
        read(f"{table}@7")
    with pytest.raises(OmniprepError, match="is a Delta table; .* give the table itself"):
        read(next(Path(table).glob("*.parquet")))


def test_delta_features_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed (omniprep[delta])")
    table = tmp_path / "table"
    deltalake.write_deltalake(str(table), CHATS)
    log = next((table / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "protocol" in action:  # rows that a bitmap deletes would come back
            action["protocol"] = {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": ["deletionVectors"],
                "writerFeatures": ["deletionVectors"],
            }
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))
    with pytest.raises(OmniprepError, match=r"table: cannot be read as a Delta table: .*[dD]eletionVectors"):
        read(table)


def test_lance_datasets_give_current_rows(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="pylance is not installed (omniprep[lance])")
    table = str(tmp_path / "chats.lance")
    lance.write_dataset(CHATS.slice(0, 6), table)
    lance.write_dataset(CHATS.slice(6), table, mode="append")
    assert len(find_splits(find_inputs((table,)))) == 2
    dataset = lance.dataset(table)
    dataset.tags.create("first", 1)
    dataset.delete("query = 'q3'")
    assert queries(table) == [f"q{n}" for n in range(10) if n != 3]
    assert queries(f"{table}@1") == queries(f"{table}@first") == [f"q{n}" for n in range(6)]
    with pytest.raises(OmniprepError, match="there is no such version"):
        read(f"{table}@9")


def test_iceberg_tables_give_current_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyiceberg", reason="pyiceberg is not installed (omniprep[iceberg])")
    memory = pytest.importorskip("pyiceberg.catalog.memory", reason="pyiceberg's catalog of tests needs sqlalchemy")
    catalog = memory.InMemoryCatalog("c", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("lake")
    written = catalog.create_table("lake.chats", schema=CHATS.schema)
    table = tmp_path / "lake" / "chats"
    assert read(table) == []
    written.append(CHATS.slice(0, 6))
    first = written.current_snapshot().snapshot_id
    written.append(CHATS.slice(6))
    assert len(find_splits(find_inputs((str(table),)))) == 2
    written.delete("query == 'q7'")
    assert queries(table) == [f"q{n}" for n in range(10) if n != 7]
    assert queries(f"{table}@{first}") == [f"q{n}" for n in range(6)]
    with pytest.raises(OmniprepError, match="there is no such snapshot, branch or tag"):
        read(f"{table}@5")


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A SQL catalog named `lake`, configured as a user does it, with the table chats.day."""
    pytest.importorskip("pyiceberg", reason="pyiceberg is not installed (omniprep[iceberg])")
    pytest.importorskip("sqlalchemy", reason="pyiceberg's SQL catalog needs sqlalchemy")
    import pyiceberg.catalog
    from pyiceberg.utils.config import Config

    (tmp_path / "warehouse").mkdir()
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{tmp_path}/warehouse")
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())  # it is read when pyiceberg is imported
    made = pyiceberg.catalog.load_catalog("lake")
    made.create_namespace("chats")
    made.create_table("chats.day", schema=CHATS.schema)
    return made


def test_iceberg_tables_are_found_by_a_catalog(tmp_path: Path, catalog: Any) -> None:
    written, name = catalog.load_table("chats.day"), "iceberg://lake/chats.day"
    assert read(name) == []
    begun = CHATS.slice(0, 6)
    written.append(begun)
    first = written.current_snapshot().snapshot_id
    splits = find_splits(find_inputs((name,)))
    assert [split.base for split in splits] == [f"{tmp_path}/warehouse/chats/day"]
    written.append(CHATS.slice(6))
    written.delete("query == 'q7'")
    assert queries(name) == [f"q{n}" for n in range(10) if n != 7]
    assert queries(f"{name}@{first}") == begun["query"].to_pylist()
    # Splits that were found before still give the rows of their snapshot, and so does another process.
    assert [raw.content["query"] for _, _, raw in numbered(splits)] == begun["query"].to_pylist()
    script = (
        "from omniprep.rows.inputs import find_inputs\nfrom omniprep.rows.sources import find_splits, numbered\n"
        f"print(len(list(numbered(find_splits(find_inputs(({name!r},)), where=\"query != 'q1'\")))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "8\n", done.stderr
    # The table's folder says the same where the catalog is not asked.
    assert len(find_splits(find_inputs((f"{name}@{first}",)))) == 1
    assert fingerprint(find_splits(find_inputs((name,)))[0])["version"] == str(catalog.load_table("chats.day").current_snapshot().snapshot_id)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("iceberg://lake/chats.night", "iceberg://lake/chats.night: cannot be opened by pyiceberg's catalog 'lake': NoSuchTable"),
        ("iceberg://absent/chats.day", "by pyiceberg's catalog 'absent': .*PYICEBERG_CATALOG__ABSENT__URI"),
        ("iceberg://lake/day", "write a table of a catalog as iceberg://CATALOG/NAMESPACE.TABLE"),
        ("iceberg://lake", "write a table of a catalog as"),
        ("iceberg://lake/chats.day@7", "there is no such snapshot, branch or tag"),
    ],
)  # fmt: skip
def test_tables_that_a_catalog_does_not_have(catalog: Any, name: str, message: str) -> None:
    catalog.load_table("chats.day").append(CHATS)
    with pytest.raises(OmniprepError, match=message):
        read(name)


def test_a_build_and_an_append_of_tables_in_a_catalog(
    tmp_path: Path, catalog: Any, omniprep: Any, model_dir: Path
) -> None:
    table = catalog.load_table("chats.day")
    table.append(CHATS)
    build(omniprep, model_dir, tmp_path / "out", "iceberg://lake/chats.day", "--where", "query < 'q5'")
    assert PackedDataset(str(tmp_path / "out")).counts["rows"] == {"read": 5, "packed": 5, "rejected": 0, "filtered": 5}
    assert PackedDataset(str(tmp_path / "out")).record.inputs[0].source == "iceberg://lake/chats.day"
    catalog.create_table("chats.next", schema=CHATS.schema).append(CHATS.slice(0, 3))
    done = omniprep("append", tmp_path / "out", "iceberg://lake/chats.day", "iceberg://lake/chats.next")
    assert done.code == 0 and "has it already; left out" in done.err, done.err
    assert PackedDataset(str(tmp_path / "out")).counts["rows"]["packed"] == 8
    table.append(CHATS.slice(0, 1))
    done = omniprep("append", tmp_path / "out", "iceberg://lake/chats.day")
    assert done.code == 1 and "was changed since" in done.err
    done = omniprep("verify", tmp_path / "out", "--deep")
    assert "--input iceberg://lake/chats.day reads it" in done.out + done.err


def test_iceberg_metadata_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("pyiceberg", reason="pyiceberg is not installed (omniprep[iceberg])")
    memory = pytest.importorskip("pyiceberg.catalog.memory", reason="pyiceberg's catalog of tests needs sqlalchemy")
    catalog = memory.InMemoryCatalog("c", warehouse=f"file://{tmp_path}/secret")
    catalog.create_namespace("lake")
    written = catalog.create_table("lake.chats", schema=CHATS.schema)
    written.append(CHATS)
    # Its metadata alone, as a stranger would send them: manifests and data stay where they were.
    (tmp_path / "got").mkdir()
    (tmp_path / "secret" / "lake" / "chats" / "metadata").rename(tmp_path / "got" / "metadata")
    (tmp_path / "secret" / "lake" / "chats" / "metadata").symlink_to(tmp_path / "got" / "metadata")
    with pytest.raises(OmniprepError, match="lies outside the table's folder"):
        read(tmp_path / "got")


def test_a_build_of_a_table_is_that_of_its_version(tmp_path: Path, omniprep: Any, model_dir: Path) -> None:
    """A table that was written to since is another input: the finished dataset is not called done for it."""
    deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed (omniprep[delta])")
    table = tmp_path / "table"
    deltalake.write_deltalake(str(table), CHATS)
    build(omniprep, model_dir, tmp_path / "out", table)
    build(omniprep, model_dir, tmp_path / "out", table)
    deltalake.write_deltalake(str(table), CHATS.slice(0, 1), mode="append")
    done = build(omniprep, model_dir, tmp_path / "out", table, code=1)
    assert "table" in done.err
    build(omniprep, model_dir, tmp_path / "out", f"{table}@0", code=1)  # another source: rows.parquet names it so


# Delimited text


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.csv", 'query,response,images\n"a, b","x\ny","[""1.png"", ""2.png""]"\n\nü,z,\n'.encode()),
        ("rows.tsv", '\ufeffquery\tresponse\timages\na, b\t"x\ny"\t["1.png", "2.png"]\nü\tz\t\n'.encode()),
        ("rows.csv", 'query,response,images\n"a, b","x\ny","[""1.png"", ""2.png""]"\nü,z,\n'.encode("utf-16")),
    ],
)
def test_delimited_text(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    first = {"query": "a, b", "response": "x\ny"}
    images: Any = ["1.png", "2.png"]
    if name.endswith("tsv"):  # quotes within a cell of TSV are text
        images = ["1.png", "2.png"]
    assert read(tmp_path / name) == [{**first, "images": images}, {"query": "ü", "response": "z"}]


def test_delimited_text_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"query,response\na,b\nc\nd,\xff\ne,f\n")
    rows = read(path)
    assert [row["query"] if isinstance(row, dict) else row.message for row in rows] == [
        "a", "line 3 has 1 cells, the first line 2 names", "line 4 is not UTF-8", "e",
    ]  # fmt: skip
    path.write_text('query,response\na,"b\n')
    with pytest.raises(OmniprepError, match=r"rows\.csv: line 2: unexpected end of data"):
        read(path)
    path.write_text("query,query\na,b\n")
    with pytest.raises(OmniprepError, match="names the column 'query' twice"):
        read(path)
