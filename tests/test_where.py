"""--where chooses the same rows in every form of input, and nothing that it leaves out is lost silently."""

import io as _io
import json
import random
import re
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omniprep import PackedDataset, io
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject, UsageError
from omniprep.rows import choosing
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import Tally, find_splits, numbered, read_split
from omniprep.rows.where import Bounds, _pattern
from omniprep.rows.where_parser import parse_where

# Every third text is absent, numbers and flags have nulls of their own, and a struct is absent or has an absent field.
ROWS: list[dict[str, Any]] = [
    {
        "query": f"q{n}",
        "response": f"a{n}",
        "lang": None if n % 3 == 0 else ("en" if n % 3 == 1 else "d%e"),
        "score": None if n % 7 == 0 else n / 4,
        "count": None if n % 5 == 0 else n,
        "flag": None if n % 4 == 0 else n % 2 == 1,
        "meta": None if n % 6 == 0 else {"license": None if n % 2 else f"l{n % 4}", "year": 2000 + n},
    }
    for n in range(40)
]
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("query", "response", "lang")),
        ("score", pa.float64()),
        ("count", pa.int32()),
        ("flag", pa.bool_()),
        ("meta", pa.struct([("license", pa.string()), ("year", pa.int64())])),
    ]
)
TABLE = pa.Table.from_pylist(ROWS, SCHEMA)


def chosen(expression: Callable[[dict[str, Any]], bool | None]) -> list[int]:
    return [n for n, row in enumerate(ROWS) if expression(row) is True]


CASES: list[tuple[str, list[int]]] = [
    ("lang = 'en'", chosen(lambda r: r["lang"] == "en")),
    ("lang != 'en'", chosen(lambda r: r["lang"] is not None and r["lang"] != "en")),
    ("NOT lang = 'en'", chosen(lambda r: r["lang"] is not None and r["lang"] != "en")),
    ("lang IS NULL", chosen(lambda r: r["lang"] is None)),
    ("lang IS NOT NULL AND count > 30", chosen(lambda r: r["lang"] is not None and (r["count"] or 0) > 30)),
    ("lang = 'en' OR count >= 37", chosen(lambda r: r["lang"] == "en" or (r["count"] or 0) >= 37)),
    ("NOT (lang = 'en' OR count < 10)", chosen(lambda r: r["lang"] == "d%e" and (r["count"] or 0) >= 10)),
    ("score BETWEEN 2 AND 2.5", chosen(lambda r: r["score"] is not None and 2 <= r["score"] <= 2.5)),
    ("9 <= score", chosen(lambda r: r["score"] is not None and r["score"] >= 9)),
    ("count IN (1, 2, 39, 100)", [1, 2, 39]),
    ("count NOT IN (1, 2)", chosen(lambda r: r["count"] is not None and r["count"] not in (1, 2))),
    ("count < -1", []),
    ("flag", chosen(lambda r: r["flag"])),
    ("NOT flag", chosen(lambda r: r["flag"] is False)),
    ("flag = false", chosen(lambda r: r["flag"] is False)),
    ("lang LIKE '_n'", chosen(lambda r: r["lang"] == "en")),
    ("lang LIKE 'd%'", chosen(lambda r: r["lang"] == "d%e")),
    ("query NOT LIKE 'q%1'", chosen(lambda r: not r["query"].endswith("1"))),
    ("meta.year > 2035", chosen(lambda r: r["meta"] and r["meta"]["year"] > 2035)),
    ("meta.license = 'l2'", chosen(lambda r: r["meta"] and r["meta"]["license"] == "l2")),
    ("meta.license IS NULL", chosen(lambda r: not r["meta"] or r["meta"]["license"] is None)),
    ("meta IS NULL", chosen(lambda r: r["meta"] is None)),
    ("\"query\" = 'q3'", [3]),
]


def compact(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def write_jsonl(folder: Path) -> str:
    # A line that is blank and one with explicit nulls: line numbers count the one, and the other is no value.
    lines = [json.dumps(row if n % 2 else compact(row)) for n, row in enumerate(ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "rows.jsonl")


def write_json(folder: Path) -> str:
    (folder / "rows.json").write_text(json.dumps([compact(row) for row in ROWS], indent=1))
    return str(folder / "rows.json")


def write_csv(folder: Path) -> str:
    def cell(value: Any) -> str:
        if value is None:
            return ""
        text = json.dumps(value) if isinstance(value, dict | bool) else str(value)
        return '"' + text.replace('"', '""') + '"'

    lines = [",".join(SCHEMA.names)] + [",".join(cell(row[name]) for name in SCHEMA.names) for row in ROWS]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "rows.csv")


def write_tar(folder: Path) -> str:
    with tarfile.open(folder / "rows.tar", "w") as archive:
        for number, row in enumerate(ROWS):
            data = json.dumps(compact(row)).encode()
            info = tarfile.TarInfo(f"{number:04d}.json")
            info.size = len(data)
            archive.addfile(info, _io.BytesIO(data))
    return str(folder / "rows.tar")


def write_parquet(folder: Path) -> str:
    pq.write_table(TABLE, folder / "rows.parquet", row_group_size=7)
    return str(folder / "rows.parquet")


def write_hf(folder: Path) -> str:
    import datasets

    datasets.Dataset(TABLE).save_to_disk(str(folder / "hf"))
    return str(folder / "hf")


def write_delta(folder: Path) -> str:
    deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed (omniprep[delta])")
    deltalake.write_deltalake(str(folder / "delta"), TABLE)
    return str(folder / "delta")


def write_lance(folder: Path) -> str:
    lance = pytest.importorskip("lance", reason="pylance is not installed (omniprep[lance])")
    lance.write_dataset(TABLE, str(folder / "rows.lance"), max_rows_per_file=11)
    return str(folder / "rows.lance")


def write_iceberg(folder: Path) -> str:
    memory = pytest.importorskip("pyiceberg.catalog.memory", reason="pyiceberg and sqlalchemy are not installed")
    catalog = memory.InMemoryCatalog("c", warehouse=f"file://{folder}")
    catalog.create_namespace("lake")
    catalog.create_table("lake.rows", schema=TABLE.schema).append(TABLE)
    return str(folder / "lake" / "rows")


FORMS = [
    write_jsonl, write_json, write_csv, write_tar, write_parquet, write_hf, write_delta, write_lance, write_iceberg,
]  # fmt: skip


def read(name: str, where: str, split_bytes: int = 500) -> tuple[list[tuple[int, Any]], int]:
    """(line from 1, query) of each row, a reject as it is; and how many rows were left out."""
    splits = find_splits(find_inputs((name,)), split_bytes, where=where)
    rows = [(line, c if isinstance(c := raw.content, Reject) else c["query"]) for _, line, raw in numbered(splits)]
    filtered = 0
    for split in splits:
        tally = Tally()
        list(read_split(split, tally))
        filtered += tally.filtered
    return rows, filtered


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_every_form_of_input_gives_the_same_rows(write: Callable[[Path], str], tmp_path: Path) -> None:
    name = write(tmp_path)
    for where, numbers in CASES:
        rows, filtered = read(name, where)
        assert rows == [(n + 1, f"q{n}") for n in numbers], where
        assert filtered == len(ROWS) - len(numbers), where


def test_a_draw_is_of_the_chosen_rows(tmp_path: Path) -> None:
    name = write_jsonl(tmp_path)
    drawn = [read(f"{n}#5", "count > 20 AND lang = 'en'")[0] for n in (name, write_parquet(tmp_path))]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 5
    assert {line for line, _ in drawn[0]} <= {
        n + 1 for n in chosen(lambda r: (r["count"] or 0) > 20 and r["lang"] == "en")
    }
    with pytest.raises(OmniprepError, match=r"#5 draws more rows than there are \(3\)"):
        read(f"{name}#5", "count IN (1, 2, 39, 100)")


def test_row_groups_are_left_out_by_their_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither columns of the expression nor media are read of a row group that has no row to choose."""
    name = write_parquet(tmp_path)
    asked: list[tuple[tuple[int, ...], list[str] | None]] = []
    real = pq.ParquetFile.iter_batches

    def noted(self: Any, *args: Any, row_groups: list[int], columns: Any = None, **more: Any) -> Any:
        asked.append((tuple(row_groups), columns))
        return real(self, *args, row_groups=row_groups, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    assert [line for line, _ in read(name, "count >= 38")[0]] == [39, 40]
    assert {group for groups, _ in asked for group in groups} == {5}
    asked.clear()
    # Statistics cannot tell these apart: the column alone is read of groups that turn out to have none.
    assert read(name, "lang = 'dd'")[0] == []
    assert asked and {tuple(columns or ()) for _, columns in asked} == {("lang",)}


def test_partitions_of_delta_are_left_out_by_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed (omniprep[delta])")
    table = str(tmp_path / "days")
    for day in ("2026-11-25", "2026-11-26"):
        rows = pa.table({"query": ["a", "b"], "response": ["x", "y"], "day": [day, day]})
        deltalake.write_deltalake(table, rows, partition_by=["day"], mode="append")
    opened: list[Any] = []
    real = choosing.rows_of_table
    monkeypatch.setattr("omniprep.rows.formats.delta.rows_of_table", lambda *a: opened.append(a[3]) or real(*a))
    rows, filtered = read(table, "day > '2026-11-25'")
    assert [query for _, query in rows] == ["a", "b"] and filtered == 2 and len(opened) == 2  # numbered, then counted


def test_times_and_decimals_of_tables(tmp_path: Path) -> None:
    from decimal import Decimal

    table = pa.table(
        {
            "query": ["a", "b", "c"],
            "day": [date(2026, 11, d) for d in (24, 25, 26)],
            "at": pa.array([datetime(2026, 11, 25, h, tzinfo=UTC) for h in (1, 2, 3)], pa.timestamp("us", "UTC")),
            "local": [datetime(2026, 11, 25, h) for h in (1, 2, 3)],
            "price": [Decimal("0.10"), Decimal("0.20"), None],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1)

    def queries(where: str) -> str:
        return "".join(query for _, query in read(str(tmp_path / "t.parquet"), where)[0])

    assert queries("day >= '2026-11-25'") == "bc" and queries("day IN ('2026-11-24', '2026-11-26')") == "ac"
    assert queries("at > '2026-11-25 01:00'") == queries("at > '2026-11-25T02:00+01:00'") == "bc"
    assert queries("local = '2026-11-25T03:00:00'") == "c"
    assert queries("price = 0.1") == "a" and queries("price <= 0.2") == "ab"
    rows, _ = read(str(tmp_path / "t.parquet"), "local > '2026-11-25T01:00+01:00'")
    assert all(isinstance(content, Reject) and "has a time zone" in content.message for _, content in rows)


# What may be skipped: never a row that would be chosen


def test_bounds_never_leave_out_a_row_that_is_chosen() -> None:
    draw = random.Random(0)
    values: dict[str, list[Any]] = {
        "a": [None, -2, 0, 1, 3, 2**60],
        "b": [None, "", "k", "kk", "z"],
        "c": [None, True, False],
        "d": [None, -1.5, 0.0, 2.0, float("nan")],
    }

    def expression(depth: int) -> str:
        if depth and draw.random() < 0.6:
            kind = draw.choice(("AND", "OR", "NOT"))
            return f"NOT ({expression(depth - 1)})" if kind == "NOT" else f"({expression(depth - 1)}) {kind} ({expression(depth - 1)})"  # fmt: skip
        column = draw.choice("abcd")
        texts = [
            repr(v).lower() if isinstance(v, bool) else repr(v) for v in values[column] if v is not None and v == v
        ]
        operators = ["=", "!="] if column == "c" else ["=", "!=", "<", "<=", ">", ">="]
        return draw.choice(
            [
                f"{column} {draw.choice(operators)} {draw.choice(texts)}",
                f"{column} IN ({draw.choice(texts)}, {draw.choice(texts)})",
                f"{column} IS NULL",
                *([f"{column} LIKE 'k%'"] if column == "b" else []),
            ]
        )

    skipped = 0
    for _ in range(1500):
        where = parse_where(expression(3))
        rows = [{name: draw.choice(values[name]) for name in "abcd"} for _ in range(draw.choice((1, 1, 2, 3)))]

        def bounds(path: tuple[str, ...], rows: list[dict[str, Any]] = rows) -> Bounds | None:
            column = [row[path[0]] for row in rows]
            present = [value for value in column if value is not None and value == value]
            only_nulls = all(value is None for value in column)
            if not present and not only_nulls:
                return None  # NaN alone: a file has no statistics of it
            return Bounds(min(present, default=None), max(present, default=None), None in column, only_nulls)

        may = where.may_hold(bounds)
        assert may or not any(where.holds(row) for row in rows), (where.text, rows)
        skipped += not may
    assert skipped > 200


# What is refused


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "is empty"),
        ("lang =", "Required keyword"),
        ("lang = 'en", "tokenizing"),
        ("lang = 'en'; x = 1", "is not one expression"),
        ('lang = "en"', "compares two columns.*'en'"),
        ("a = b", "compares two columns"),
        ("lang = NULL", "write IS NULL"),
        ("lang IN ('a', NULL)", "write IS NULL"),
        ("lang IN (SELECT 1)", "is not known here"),
        ("length(lang) > 3", "a column is expected here"),
        ("lang ILIKE 'a'", "is not known here"),
        ("lang NOT LIKE 'a' ESCAPE '!'", "is not known here"),
        ("flag < true", "have no order"),
        ("flag IS TRUE", "only IS NULL"),
        ("a + 1 > 2", "a column is expected here"),
        ("a[0] = 1", "a column is expected here"),
        ("a = 1_000", "is not known here"),
        ("SELECT 1", "is not known here"),
        ("from = 1", "in double quotes"),
        ("score LIKE 5", "LIKE takes a text"),
        ("(" * 5000 + "a = 1" + ")" * 5000, "nested too deeply|--where"),
    ],
)
def test_what_is_not_of_the_subset_is_refused(where: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BuildConfig(where=where)


def test_like_means_what_it_means_and_takes_no_time() -> None:
    """Against a pattern that tries every place; and texts that made that one take minutes."""
    rng = random.Random(0)
    for _ in range(20_000):
        like = "".join(rng.choices("ab%_.", k=rng.randrange(7)))
        text = "".join(rng.choices("ab.\n", k=rng.randrange(9)))
        tried = "".join({"%": ".*", "_": "."}.get(letter) or re.escape(letter) for letter in like)
        assert bool(_pattern(like).fullmatch(text)) == bool(re.fullmatch(tried, text, re.DOTALL)), (like, text)
    begun = time.process_time()
    for like in ("%a%a%a%a%b", "%a_%_a%a_a%b%", "a%a%a%ab"):
        assert not _pattern(like).fullmatch("a" * 100_000)
    assert time.process_time() - begun < 5


def test_long_chains_are_read() -> None:
    assert parse_where(" OR ".join(f"n = {n}" for n in range(200))).holds({"n": 199})


def test_a_value_of_another_type_rejects_its_row(tmp_path: Path) -> None:
    lines = ['{"query": "a", "score": 1}', '{"query": "b", "score": "high"}', '{"query": "c", "score": true}', "[1]", "{bad"]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    rows, filtered = read(str(tmp_path / "a.jsonl"), "score > 0.5")
    assert rows[0] == (1, "a") and filtered == 1  # what is no object has no columns
    codes = [(line, str(content.code)) for line, content in rows[1:]]
    assert codes == [(2, "where_mismatch"), (3, "where_mismatch"), (5, "bad_json")]
    assert "column score is a text, it is compared with a number (0.5)" in rows[1][1].message
    rows, _ = read(str(tmp_path / "a.jsonl"), "query.name = 'x'")
    assert "column query is a text: it has no field name" in rows[0][1].message
    # AND looks at its right side only where the left is not false.
    assert [line for line, _ in read(str(tmp_path / "a.jsonl"), "query = 'a' AND score > 0.5")[0]] == [1, 5]


@pytest.mark.parametrize("write", [write_parquet, write_hf, write_delta, write_lance, write_iceberg])
def test_a_column_of_a_table_of_another_type_stops(write: Callable[[Path], str], tmp_path: Path) -> None:
    name = write(tmp_path)
    for where, kind in (("score = 'high'", "double"), ("lang > 3", "string"), ("meta.license.x = 1", "string")):
        with pytest.raises(OmniprepError, match=f"--where: column .* is of type (large_)?{kind}"):
            read(name, where)


# Builds


@pytest.fixture
def build(omniprep: Any, model_dir: Path, tmp_path: Path) -> Any:
    def call(*args: object, out: str = "out", code: int = 0, workers: int = 0) -> Any:
        fixed = ("--model", model_dir, "--bin-length", 256, "--workers", workers, "--quiet", "--out", tmp_path / out)
        done = omniprep("build", *args, *fixed)
        assert done.code == code, done.err
        return done

    return call


def test_a_build_counts_what_it_leaves_out(build: Any, omniprep: Any, tmp_path: Path) -> None:
    name = write_jsonl(tmp_path)
    done = build(name, "--where", "lang = 'en' AND count > 10")
    numbers = chosen(lambda r: r["lang"] == "en" and (r["count"] or 0) > 10)
    dataset = PackedDataset(str(tmp_path / "out"))
    assert dataset.counts["rows"] == {
        "read": len(numbers), "packed": len(numbers), "rejected": 0, "filtered": 40 - len(numbers),
    }  # fmt: skip
    assert dataset.rows["line"].to_pylist() == [n + 1 for n in numbers]
    assert dataset.record.config.where == "lang = 'en' AND count > 10"
    assert "rows left out by --where" in done.out and str(40 - len(numbers)) in done.out
    assert omniprep("verify", tmp_path / "out", "--deep").code == 0
    done = omniprep("build", name, "--model", dataset.record.model, "--bin-length", 256, "--workers", 0, "--out", tmp_path / "out")  # fmt: skip
    assert done.code == 1 and "--where: lang = 'en' AND count > 10 → None" in done.err
    # The plan says the same, and a file of options too.
    (tmp_path / "o.yaml").write_text("where: lang = 'en' AND count > 10\n")
    done = omniprep("plan", name, "--config", tmp_path / "o.yaml", "--model", dataset.record.model, "--bin-length", 256, "--workers", 0)  # fmt: skip
    assert done.code == 0 and "left out by --where" in done.out
    # What is removed later does not change it.
    assert omniprep("remove", tmp_path / "out", "--row", f"{name}:{numbers[0] + 1}").code == 0
    assert PackedDataset(str(tmp_path / "out")).counts["rows"]["filtered"] == 40 - len(numbers)


def test_the_same_bytes_from_every_form(build: Any, tmp_path: Path) -> None:
    shards = []
    for number, write in enumerate((write_jsonl, write_parquet, write_tar)):
        build(write(tmp_path), "--where", "meta.year >= 2020 AND lang IS NOT NULL", out=f"out{number}")
        shards.append([path.read_bytes() for path in sorted((tmp_path / f"out{number}" / "shards").iterdir())])
    assert shards[0] == shards[1] == shards[2]


def test_an_append_uses_the_expression_of_the_dataset(build: Any, omniprep: Any, tmp_path: Path) -> None:
    build(write_jsonl(tmp_path), "--where", "lang = 'en' AND count > 10")
    before = PackedDataset(str(tmp_path / "out")).counts["rows"]
    (tmp_path / "next.jsonl").write_text("".join(json.dumps(compact(row)) + "\n" for row in ROWS[20:]))
    assert omniprep("append", tmp_path / "out", tmp_path / "next.jsonl").code == 0
    after = PackedDataset(str(tmp_path / "out")).counts["rows"]
    more = chosen(lambda r: r["lang"] == "en" and (r["count"] or 0) >= 20)
    assert after["packed"] == before["packed"] + len(more)
    assert after["filtered"] == before["filtered"] + 20 - len(more)
    # A day without a row to choose, even without the columns, is appended as such.
    (tmp_path / "none.jsonl").write_text('{"query": "q", "response": "a"}\n')
    done = omniprep("append", tmp_path / "out", tmp_path / "none.jsonl")
    assert done.code == 0, done.err
    assert PackedDataset(str(tmp_path / "out")).counts["rows"]["filtered"] == after["filtered"] + 1
    assert omniprep("verify", tmp_path / "out").code == 0
    assert (
        "no such option"
        in omniprep("append", tmp_path / "out", tmp_path / "none.jsonl", "--where", "x = 1").err.lower()
    )


def test_a_column_that_no_row_has_stops_the_build(build: Any, tmp_path: Path) -> None:
    for write in (write_jsonl, write_csv, write_parquet):
        done = build(write(tmp_path), "--where", "langs = 'en'", out=write.__name__, code=1)
        assert "no row has a column langs; did you mean 'lang'?" in done.err
    done = build(write_jsonl(tmp_path), "--where", "lang = 'fr'", out="none", code=1)
    assert "no rows (--where leaves out all 40)" in done.err
    # One of two files has the column: it is null in the other.
    (tmp_path / "old.jsonl").write_text('{"query": "q", "response": "a"}\n')
    build(tmp_path / "old.jsonl", tmp_path / "rows.jsonl", "--where", "lang = 'en'", out="both")
    assert PackedDataset(str(tmp_path / "both")).counts["rows"]["filtered"] == 1 + 40 - 13
    build(tmp_path / "rows.jsonl", "--where", "lang ~ 'en'", out="usage", code=2)
    assert not io.exists(str(tmp_path / "usage" / "manifest.json"))
