"""Inputs that were read as something else, or of which a part was lost or added, without a word: encodings, damaged
archives, columns, numbers of lines.
"""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omniprep import io
from omniprep.errors import OmniprepError, Reject
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import count_lines, find_splits, fingerprint, numbered, read_split
from omniprep.shards.codecs.delta import zstd_module

ROWS = [{"n": n, "text": f"你好 {n} ok ਅ" * 3} for n in range(50)]
"""Gurmukhi A is U+0A05: a byte of it is a line feed's."""
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: object, split_bytes: int = 1 << 20) -> list[Any]:
    splits = find_splits(find_inputs((str(path),)), split_bytes)
    return [row.content for part in splits for row in read_split(part)]


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


# Encodings


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8", "utf-8-sig"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "array.json", "a.jsonl.gz", "a.jsonl.zst"])
def test_other_encodings_are_read_as_written(tmp_path: Path, encoding: str, name: str) -> None:
    text = json.dumps(ROWS, ensure_ascii=False) if name == "array.json" else LINES
    for mark in ("", "\ufeff") if encoding.endswith(("le", "be")) else ("",):
        data = (mark + text).encode(encoding)
        data = gzip.compress(data) if name.endswith("gz") else zst(data) if name.endswith("zst") else data
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name, split_bytes=100) == ROWS
        splits = find_splits(find_inputs((str(tmp_path / name),)), 100)
        assert sum(map(count_lines, splits)) == len(ROWS)


def test_lines_of_another_encoding_inside_utf8_are_rejected(tmp_path: Path) -> None:
    """PowerShell's >> adds UTF-16 to a file in UTF-8; json.loads guesses the encoding of each line."""
    first, last = b'{"n": 1}\n', b'{"n": 2}\n'
    for other in (
        '{"t": "你好 ok"}\n'.encode("utf-16-le"),
        '{"t": "é"}\n'.encode("latin-1"),
        '{"t": "中"}\n'.encode("gbk"),
    ):
        (tmp_path / "a.jsonl").write_bytes(first + other + last)
        found = read(tmp_path / "a.jsonl")
        good = [row for row in found if not isinstance(row, Reject)]
        assert good == ([{"n": 1}] if b"\0" in other else [{"n": 1}, {"n": 2}])
        assert {row.code for row in found if isinstance(row, Reject)} == {"bad_json"}


def test_a_file_that_is_cut_inside_a_letter_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.encode("utf-16")[:-1])
    with pytest.raises(OmniprepError, match=r"a\.jsonl: begins as UTF-16-LE, but is not: .*save it as UTF-8"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (gzip.compress(LINES.encode()), r"gzip data; its name must end in \.gz"),
        (zst(LINES.encode()), r"zstd data; its name must end in \.zst"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"PAR1....", r"Parquet; its name must end in \.parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a Git LFS pointer"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, data: bytes, what: str) -> None:
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OmniprepError, match=f"{name}: is {what}"):
            read(tmp_path / name)


# Damaged archives


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_compressed_files_are_whole_or_stop_the_build(tmp_path: Path, codec: str) -> None:
    pack = gzip.compress if codec == "gz" else zst
    half = LINES.encode()[: len(LINES.encode()) // 2]
    whole, path = pack(LINES.encode()), tmp_path / f"a.jsonl.{codec}"
    empty = pack(b"")
    # RFC 8878, section 3.1.2
    skippable = b"\x50\x2a\x4d\x18\x05\x00\x00\x00hello" if codec == "zst" else b""
    for good in (
        whole,
        empty + whole + empty,
        pack(half) + pack(LINES.encode()[len(half) :]),
        skippable + whole + skippable,
    ):
        path.write_bytes(good)
        assert read(path) == ROWS
    path.write_bytes(empty)
    assert read(path) == []
    cuts = [whole[:length] for length in range(len(whole))] + [(whole + whole)[: len(whole) + 5]]
    for bad in (*cuts, whole + b"garbage", whole[:-1] + bytes([whole[-1] ^ 0x40])):
        if codec == "zst" and len(bad) == len(whole):
            continue  # Arrow writes frames without a checksum, and a letter that was changed is then a letter
        path.write_bytes(bad)
        with pytest.raises(OmniprepError, match=f"damaged as {codec}"):
            read(path)


def test_a_window_that_is_not_read_is_no_damage(tmp_path: Path) -> None:
    """Dumps of the web come with `zstd --long=31`."""
    zstd = zstd_module()
    stream = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(stream.compress(b'{"n": 1}\n') + stream.flush())
    with pytest.raises(OmniprepError, match=r"x\.jsonl\.zst: compressed with a window of more than 128 MiB"):
        find_splits(find_inputs((str(path),)))


def test_arrays_in_damaged_archives_too(tmp_path: Path) -> None:
    text = json.dumps(ROWS).encode()
    for codec, whole in (("gz", gzip.compress(text)), ("zst", zst(text))):
        path = tmp_path / f"a.json.{codec}"
        path.write_bytes(whole)
        assert read(path) == ROWS
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(OmniprepError, match=f"damaged as {codec}"):
            read(path)


def test_archives_in_a_store(tmp_path: Path) -> None:
    whole = zst(LINES.encode())
    io.write_atomic("memory://archives/a.jsonl.zst", whole)
    assert read("memory://archives/a.jsonl.zst") == ROWS
    io.write_atomic("memory://archives/a.jsonl.zst", whole[:-3])
    with pytest.raises(OmniprepError, match="damaged as zst"):
        read("memory://archives/a.jsonl.zst")


# Columnar inputs


def test_text_that_is_not_utf8_in_columns_costs_its_row(tmp_path: Path) -> None:
    text = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc"))
    pq.write_table(pa.table({"n": [1, 2, 3], "text": text}), tmp_path / "a.parquet")
    first, bad, last = read(tmp_path / "a.parquet")
    assert (first, last) == ({"n": 1, "text": "a"}, {"n": 3, "text": "c"})
    assert isinstance(bad, Reject) and bad.code == "bad_column" and "'text'" in bad.message


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video"])
def test_media_columns_are_read_undecoded_whatever_lists_they_stand_in(tmp_path: Path, kind: str) -> None:
    import datasets

    feature = getattr(datasets, kind)(decode=True)
    item = {"path": "x.bin", "bytes": b"not media at all"}
    features = datasets.Features(
        {"one": feature, "many": datasets.Sequence(feature), "deep": [[feature]], "named": {"in": [feature]}}
    )
    arrow = pa.Table.from_pylist(
        [{"one": item, "many": [item], "deep": [[item]], "named": {"in": [item]}}], features.arrow_schema
    )
    datasets.Dataset(arrow).save_to_disk(str(tmp_path / "saved"))
    (row,) = read(tmp_path / "saved")
    assert row == {"one": item, "many": [item], "deep": [[item]], "named": {"in": [item]}}


# Numbers of lines


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.json", "saved"])
def test_lines_are_numbered_over_all_parts(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of row groups, byte ranges and pieces of a saved dataset, and of two inputs in one command."""
    import datasets

    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    elif name == "saved":
        monkeypatch.setattr("omniprep.rows.formats.hf.HF_ROWS", 7)
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    else:
        data = json.dumps(ROWS).encode() if name == "a.json" else LINES.encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "b.jsonl").write_text("\n" + LINES)
    splits = find_splits(find_inputs((str(path), str(tmp_path / "b.jsonl"))), split_bytes=100)
    found = [(split.source, line, raw.content) for split, line, raw in numbered(splits)]
    assert [entry[1:] for entry in found if entry[0] == str(path)] == list(enumerate(ROWS, 1))
    assert [entry[1:] for entry in found if entry[0] != str(path)] == list(enumerate(ROWS, 2))
    some = [split for split in splits if split.source == str(path)]
    assert (33, ROWS[32]) in [(line, raw.content) for _, line, raw in numbered(some, lambda part: 33 in part)]


def test_a_saved_dataset_that_changes_is_noticed(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "a"))
    (split,) = find_splits(find_inputs((str(tmp_path / "a"),)))
    before = fingerprint(split)
    datasets.Dataset.from_list(ROWS[::-1]).save_to_disk(str(tmp_path / "b"))
    os.rename(tmp_path / "a", tmp_path / "old")
    os.rename(tmp_path / "b", tmp_path / "a")
    assert fingerprint(split) != before


def test_lines_are_the_same_in_the_dataset_in_verify_and_in_infer(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, omniprep: Callable[..., Any]
) -> None:
    import datasets

    from omniprep.compiler.options import family_of
    from omniprep.config import BuildConfig
    from omniprep.data.dataset import PackedDataset
    from omniprep.train.config import InferConfig
    from omniprep.train.infer import encoded_rows

    monkeypatch.chdir(tmp_path)
    chats = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        for n in range(9)
    ]
    lines = [json.dumps(chat) for chat in chats]
    pq.write_table(pa.Table.from_pylist(chats), "groups.parquet", row_group_size=2)
    Path("array.jsonl").write_text(json.dumps(chats))
    Path("gaps.json").write_text("\n\n".join(lines))
    Path("wide.jsonl").write_text("\n".join(lines), encoding="utf-16")
    dataset = datasets.Dataset.from_list(chats)
    datasets.DatasetDict(train=dataset, test=dataset.select([3, 5])).save_to_disk("saved")
    inputs = ("groups.parquet", "array.jsonl", "gaps.json", "wide.jsonl", "saved:test", "saved")
    config = BuildConfig(inputs=inputs, model=str(model_dir), bin_length=1024)
    done = omniprep(
        "build", *inputs, "--model", model_dir, "--bin-length", 1024, "--workers", 0, "--out", "out", "--quiet"
    )
    assert done.code == 0, done.err
    built = PackedDataset("out")
    done = omniprep("verify", "out", "--deep", "--sample", 1000)
    assert done.code == 0 and "47 rows encoded again, to the same tensors" in done.out, done.out + done.err
    answers = [
        (row["source"], row["line"], row["label"])
        for row in encoded_rows(InferConfig(model=str(model_dir), inputs=inputs), config, family_of(config))
    ]
    assert [row[:2] for row in answers] == [(row["source"], row["line"]) for row in built.rows.to_pylist()]
    every = [f"a{n}" for n in range(9)]
    assert [label for source, _, label in answers] == [*every * 4, "a3", "a5", *every]
    assert [line for source, line, _ in answers if source == "gaps.json"] == [*range(1, 19, 2)]
