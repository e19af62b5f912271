"""Tables of strangers: their logs and metadata name files, hosts and Python classes, and none of these is opened, asked or
imported. Each table here is whole but for the one thing that its maker changed."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omniprep.errors import OmniprepError
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import find_splits, numbered

CHATS = pa.table({"query": ["q"], "response": ["a"]})
SECRET = pa.table({"query": ["SECRET"], "response": ["a"]})


def read(table: Path) -> list[Any]:
    return [raw.content for _, _, raw in numbered(find_splits(find_inputs((str(table),))))]


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change each JSON line of a file, or the one object that it is."""
    text = path.read_text()
    objects = (
        [json.loads(line) for line in text.splitlines()] if path.parent.name == "_delta_log" else [json.loads(text)]
    )
    for entry in objects:
        change(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in objects))


ELSEWHERE = [
    "../elsewhere/secret.parquet", "%2E%2E/elsewhere/secret.parquet", "part/../../elsewhere/secret.parquet", "{folder}/elsewhere/secret.parquet",
    "file://{folder}/elsewhere/secret.parquet", "s3://127.0.0.1/secret.parquet", "http://127.0.0.1:9/secret.parquet",
]  # fmt: skip


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_delta_log_cannot_name_files_elsewhere(path: str, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed (omniprep[delta])")
    secret = tmp_path / "elsewhere" / "secret.parquet"
    secret.parent.mkdir()
    pq.write_table(SECRET, secret)
    deltalake.write_deltalake(str(tmp_path / "table"), CHATS)

    def name_other(action: dict[str, Any]) -> None:
        if "add" in action:
            action["add"] |= {"path": path.format(folder=tmp_path), "size": secret.stat().st_size}

    change_json(next((tmp_path / "table" / "_delta_log").glob("*.json")), name_other)
    with pytest.raises(OmniprepError, match="cannot be read as a Delta table"):
        read(tmp_path / "table")


@pytest.mark.parametrize(
    ("where", "rows", "size"),
    [("", 400, 48 << 20), pytest.param("query <> 'y'", 256, 24 << 20, marks=pytest.mark.slow)],
)
def test_a_value_that_a_dictionary_repeats_does_not_fill_the_memory(
    where: str, rows: int, size: int, tmp_path: Path
) -> None:
    """A file of 3 kB whose rows are 48 MB each: 3 GiB, were 64 of them read together; 6 GiB were taken with --where."""
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * size]))
    place = tmp_path / "table.parquet"
    pq.write_table(pa.table({"query": repeated, "response": ["a"] * rows}), place, compression="zstd")
    assert place.stat().st_size < 10_000
    code = (
        "import itertools\nfrom omniprep.rows.inputs import find_inputs\n"
        "from omniprep.rows.sources import find_splits, numbered\n"
        f"rows = numbered(find_splits(find_inputs(({str(place)!r},)), where={where!r}))\n"
        f"assert [len(raw.content['query']) for _, _, raw in itertools.islice(rows, 30)] == [{size}] * 30\n"
        # Not ru_maxrss: a process inherits that of the one that began it, here pytest's.
        "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1800, "MiB"


def lance_of(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    lance = pytest.importorskip("lance", reason="pylance is not installed (omniprep[lance])")
    lance.write_dataset(pa.table(columns), str(folder), **options)
    return folder


def needs_lance_with(name: str) -> Any:
    lance = pytest.importorskip("lance", reason="pylance is not installed (omniprep[lance])")
    if not hasattr(lance, name):
        pytest.skip(f"this pylance ({lance.__version__}) has no {name}: it cannot write such a dataset, nor read it")
    return lance


def test_a_lance_dataset_over_another_folder_is_refused(tmp_path: Path) -> None:
    lance = needs_lance_with("DatasetBasePath")
    base = lance.DatasetBasePath(str(tmp_path / "elsewhere"), name="other", is_dataset_root=True)
    lance.write_dataset(SECRET, str(tmp_path / "table"), initial_bases=[base], target_bases=["other"], mode="create")
    with pytest.raises(OmniprepError, match="table: names files that lie outside the dataset's folder"):
        read(tmp_path / "table")


@pytest.mark.parametrize("nested", [False, True])
def test_a_blob_of_lance_is_no_file_elsewhere(nested: bool, tmp_path: Path) -> None:
    lance = needs_lance_with("blob_array")
    (tmp_path / "secret.txt").write_text("SECRET")
    named = f"file://{tmp_path}/secret.txt"

    def table_of(blobs: list[Any]) -> pa.Table:
        column, field = lance.blob_array(blobs), lance.blob_field("bytes")
        if nested:
            column = pa.StructArray.from_arrays([column], fields=[field])
            field = pa.field("media", column.type)
        return pa.table([pa.array(["q", "q"]), column], schema=pa.schema([pa.field("query", pa.string()), field]))

    options = {"data_storage_version": "2.2", "allow_external_blob_outside_bases": True}
    try:
        lance.write_dataset(table_of([b"within", b"within"]), str(tmp_path / "own"), **options)
    except OSError as error:
        pytest.skip(f"this pylance ({lance.__version__}) cannot write blobs in structs: {error}")
    lance.write_dataset(table_of([b"within", named]), str(tmp_path / "table"), **options)
    try:
        assert "within" in str(read(tmp_path / "own")[1])
        message = f"table: a blob is the file {re.escape(named)}, which lies outside"
    except OmniprepError:  # pylance before 9 reads no such column as bytes at all
        message = "which lies outside|cannot be read as a Lance dataset"
    with pytest.raises(OmniprepError, match=message):
        read(tmp_path / "table")


@pytest.mark.parametrize("path", ["..%2Fsecret.lance", "../../elsewhere/data/{name}", "{folder}/elsewhere/data/{name}"])
def test_a_fragment_of_lance_is_no_file_elsewhere(path: str, tmp_path: Path) -> None:
    lance_of(tmp_path / "elsewhere", {"query": ["SECRET"], "response": ["a"]})
    import lance

    (fragment,) = lance.dataset(str(tmp_path / "elsewhere")).get_fragments()
    metadata = fragment.metadata.to_json()
    name = metadata["files"][0]["path"]
    metadata["files"][0]["path"] = path.format(folder=tmp_path, name=name)
    operation = lance.LanceOperation.Overwrite(
        SECRET.schema, [lance.fragment.FragmentMetadata.from_json(json.dumps(metadata))]
    )
    lance.LanceDataset.commit(str(tmp_path / "table"), operation)
    with pytest.raises(OmniprepError, match="cannot be read as a Lance dataset"):
        read(tmp_path / "table")


@pytest.fixture
def iceberg(tmp_path: Path) -> Path:
    """A whole table of Iceberg."""
    pytest.importorskip("pyiceberg", reason="pyiceberg is not installed (omniprep[iceberg])")
    memory = pytest.importorskip("pyiceberg.catalog.memory", reason="pyiceberg's catalog of tests needs sqlalchemy")
    catalog = memory.InMemoryCatalog("c", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("lake")
    catalog.create_table("lake.chats", schema=CHATS.schema).append(CHATS)
    return tmp_path / "lake" / "chats"


def newest_metadata(table: Path) -> Path:
    return max((table / "metadata").glob("*.metadata.json"))


def test_properties_of_an_iceberg_table_name_no_code_and_no_endpoint(
    iceberg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyiceberg imports the class that `py-io-impl` names and sends credentials to `s3.endpoint`."""
    (tmp_path / "stranger_io.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass IO: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    properties = {"py-io-impl": "stranger_io.IO", "s3.endpoint": "http://127.0.0.1:9", "s3.signer": "S3V4RestSigner"}
    change_json(newest_metadata(iceberg), lambda metadata: metadata["properties"].update(properties))
    assert read(iceberg) == [{"query": "q", "response": "a"}]
    assert "stranger_io" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "place", ["file://{folder}/elsewhere.avro", "s3://127.0.0.1/list.avro", "hdfs://127.0.0.1:9/list.avro"]
)
def test_lists_of_files_of_an_iceberg_table_are_in_its_folder(place: str, iceberg: Path, tmp_path: Path) -> None:
    """The list of manifests was opened, whatever it was called, before the data files were looked at."""
    named = place.format(folder=tmp_path)
    lists = list((iceberg / "metadata").glob("snap-*.avro"))
    (tmp_path / "elsewhere.avro").write_bytes(lists[0].read_bytes())

    def name_other(metadata: dict[str, Any]) -> None:
        for snapshot in metadata["snapshots"]:
            snapshot["manifest-list"] = named

    change_json(newest_metadata(iceberg), name_other)
    with pytest.raises(
        OmniprepError,
        match=f"names the file .*{re.escape(named.rsplit('/', 1)[1])}, which lies outside the table's folder",
    ):
        read(iceberg)


def test_manifests_of_an_iceberg_table_are_in_its_folder(iceberg: Path, tmp_path: Path) -> None:
    """A list in the folder may name manifests outside: they are not opened either."""
    copy = tmp_path / "copy"
    shutil.copytree(iceberg / "metadata", copy / "metadata")
    newest = newest_metadata(copy)
    newest.write_text(newest.read_text().replace(str(iceberg), str(copy)))
    for manifest in (iceberg / "metadata").glob("*-m0.avro"):
        manifest.unlink()  # so that reading one is another error
    with pytest.raises(OmniprepError, match="names the file .*/lake/chats/metadata/.*, which lies outside the table's"):
        read(copy)
