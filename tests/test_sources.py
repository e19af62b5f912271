"""The same rows from every kind of file: read whole or in byte ranges, compressed, as arrays, parquet or a saved dataset."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.options import family_of
from omniprep.compiler.plan.split_task import row_chunks
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject
from omniprep.rows.inputs import find_inputs
from omniprep.rows.longline import parse_line
from omniprep.rows.sources import Tally, count_lines, find_splits, read_split

MEDIA = Path(__file__).parent / "golden" / "media"
IMAGE = MEDIA / "s28x28.png"
ROWS = [
    {"messages": [{"role": "user", "content": f"<image>Row {n}? " + "é" * n}, {"role": "assistant", "content": "Yes."}]}
    for n in range(40)
]


def contents(pattern: Path | str, split_bytes: int = 1 << 20) -> list[Any]:
    splits = find_splits(find_inputs((str(pattern),)), split_bytes)
    return [row.content for split in splits for row in read_split(split)]


def text() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("split_bytes", [1, 7, 100, 333, 5000, 1 << 20])
def test_byte_ranges_give_each_line_once(tmp_path: Path, split_bytes: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + text().replace(b"\n", b"\n\n", 3).rstrip(b"\n"))
    splits = find_splits(find_inputs((str(path),)), split_bytes)
    before, lines, found = 0, [], []
    for split in splits:
        for row in read_split(split):
            lines.append(before + row.line + 1)
            found.append(row.content)
        before += count_lines(split)
    assert found == ROWS
    stored = path.read_text(encoding="utf-8-sig").split("\n")
    assert [json.loads(stored[line - 1]) for line in lines] == ROWS


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_bytes(text())
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text()))
    (tmp_path / "a.jsonl.zst").write_bytes(pa.compress(text(), codec="zstd", asbytes=True))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet"):
        assert contents(tmp_path / name) == ROWS, name
    assert len(contents(tmp_path / "*.jsonl*")) == 3 * len(ROWS)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_datasets_with_image_features(tmp_path: Path, model_dir: Path, form: str) -> None:
    import datasets

    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features({"messages": [message], "images": datasets.Sequence(datasets.Image())})
    columns = {"messages": [row["messages"] for row in ROWS[:3]], "images": [[str(IMAGE)]] * 3}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    path = tmp_path / "a"
    if form == "saved":
        dataset.save_to_disk(str(path))
    else:
        path = tmp_path / "a.parquet"
        dataset.to_parquet(str(path))
    config = BuildConfig(model=str(model_dir), bin_length=4096, media_root=(str(MEDIA),))
    ctx = family_of(config)
    for row, raw in zip(contents(path), ROWS, strict=False):
        ours = encode_row(row, ctx, config, str(tmp_path))
        plain = encode_row({**raw, "images": [str(IMAGE)]}, ctx, config, str(tmp_path))
        assert ours.keys() == plain.keys() and ours["input_ids"].tolist() == plain["input_ids"].tolist()
        assert (ours["pixel_values"] == plain["pixel_values"]).all()


def test_bad_lines_cost_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": \n\xff\xfe\n[' + b"[" * 100_000 + b"\n")
    found = contents(tmp_path / "a.jsonl")
    assert found[0] == {"a": 1} and [r.code for r in found[1:] if isinstance(r, Reject)] == ["bad_json"] * 3


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.jsonl", None, "no such file$"),
        ("chast.jsonl", None, r"no such file; did you mean '.*chats\.jsonl'\?$"),
        ("rows.xlsx", b"a,b", "not a kind of file"),
        ("rows.jsonl.gz", b"not gzip", "damaged as gz"),
        ("rows.json", b"{", "not valid JSON"),
        ("rows.parquet", b"PAR1", "parquet"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    (tmp_path / "chats.jsonl").write_text("")
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(OmniprepError, match=message) as caught:
        contents(tmp_path / name)
    assert name in str(caught.value)


def test_long_lines_are_parsed_as_json_does() -> None:
    """Base64 is taken out of long lines before they are parsed, and nobody can tell."""
    media = "iVBORw0KGgo+/" * 100_000
    row = {
        "messages": [{"role": "user", "content": "中😀 <image>omniprep-0 " + media[:9000]}],
        "images": [f"data:image/png;base64,{media}==", media, media[:5000], {"bytes": media}],
        media[:6000]: ["omniprep-1", "omniprep--0", None, 1.5, True, '\\"' + media[:5000]],
    }
    for ascii_only in (False, True):
        text = json.dumps(row, ensure_ascii=ascii_only).encode()
        assert parse_line(text) == row == json.loads(text)
    for broken in (text[:-1], text.replace(b'"images"', b'images"', 1)):
        with pytest.raises(ValueError, match="."):
            parse_line(broken)


def test_groups_of_parquet_are_read_in_pieces(tmp_path: Path) -> None:
    """A row group of large rows does not become one chunk, and blocks of rows come in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"n": n, "images": [{"bytes": bytes([n]) * (3 << 20)}]} for n in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    (split,) = find_splits(find_inputs((str(tmp_path / "a.parquet"),)))
    tally = Tally()
    found = list(read_split(split, tally))
    assert [row.content for row in found] == rows and tally.lines == 8
    assert all(row.size > 3 << 20 for row in found)
    assert [len(chunk) for chunk in row_chunks(iter(found))] == [3, 3, 2]
