"""Two datasets side by side: every number of the page is that of its dataset, and differences are told as what they are."""

import json
import shutil
from pathlib import Path

import pytest
from report_dataset import build

from omniprep.data.dataset import PackedDataset
from omniprep.report.compare import collect_comparison, names_of


@pytest.fixture(scope="module")
def first(omniprep, model_dir, tmp_path_factory) -> Path:
    return build(omniprep, model_dir, tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def second(omniprep, first) -> Path:
    """The first without two of its rows, in other bins and another codec."""
    out = first.parent / "again"
    source = str(next(first.parent.glob("*.jsonl")))
    rows = [argument for line in (1, 11) for argument in ("--exclude", f"{source}:{line}")]
    done = omniprep("repack", first, "--out", out, "--bin-length", 2048, "--pixel-codec", "raw", *rows)
    assert done.code == 0, done.err
    return out


def test_the_numbers_of_both_and_what_differs(first, second):
    datasets = [PackedDataset(str(folder)) for folder in (first, second)]
    data = collect_comparison(*datasets)
    assert data["names"] == ["packed", "again"]
    counts = {line["name"]: (line["a"], line["b"]) for line in data["counts"]}
    for name, value in (("rows packed", lambda c: c["rows"]["packed"]), ("tokens", lambda c: c["tokens"]),
                        ("bins", lambda c: c["bins"]), ("video items", lambda c: c["items"]["video"])):  # fmt: skip
        assert counts[name] == tuple(value(dataset.counts) for dataset in datasets), name
    assert counts["rows packed"] == (12, 10) and counts["rows rejected"] == (2, 2) and counts["video items"] == (2, 1)
    differing = {line["name"]: (line["a"], line["b"]) for line in data["options"] if line["differs"]}
    assert differing["--bin-length"] == ("1024", "2048") and differing["--pixel-codec"] == ("delta", "raw")
    assert differing["pixel_values stored as"][1] == "raw" and "--model" not in differing
    assert [sum(step[side] for step in data["lengths"]) for side in "ab"] == [12, 10]
    (source,) = data["sources"]
    assert source["rows"] == [14, 12] and source["rejected"] == [2, 2] and data["source_counts"]["both"] == 1
    assert source["tokens"] == [dataset.counts["tokens"] for dataset in datasets]
    assert {line["name"]: (line["a"], line["b"]) for line in data["rejects"]} == {
        code: (count, count) for code, count in datasets[0].counts["rejected_by_code"].items()
    }
    fill = next(line for line in data["packing"] if line["name"] == "fill: median bin")
    assert 0 < fill["a"] <= 1 and 0 < fill["b"] <= 1


def test_a_dataset_against_itself_differs_in_nothing(first):
    dataset = PackedDataset(str(first))
    data = collect_comparison(dataset, dataset)
    lines = [*data["counts"], *data["options"], *data["rejects"], *data["packing"], *data["quantiles"]]
    assert len(lines) > 60 and all(line["a"] == line["b"] for line in lines)


def test_a_source_among_thousands_is_compared_with_itself(first, tmp_path):
    """A source that is large in one dataset and small in the other: by name, not by rank."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folders = []
    for seed in range(2):
        folders.append(shutil.copytree(first, tmp_path / f"data{seed}"))
        table = pa.concat_tables([pq.read_table(first / "rows.parquet")] * 100)
        names = np.random.default_rng(seed).permutation([f"day/{n:04}.jsonl" for n in range(len(table))])
        pq.write_table(table.set_column(0, "source", pa.array(names)), folders[-1] / "rows.parquet")
    datasets = [PackedDataset(str(folder)) for folder in folders]
    data = collect_comparison(*datasets)
    assert data["source_counts"] == {"shown": 40, "both": len(datasets[0].rows), "a": 0, "b": 0}
    for line in data["sources"]:
        for dataset, tokens in zip(datasets, line["tokens"], strict=True):
            row = dataset.row_number(line["source"], dataset.rows["line"][_place(dataset, line["source"])].as_py())
            assert tokens == (dataset.rows["length"][row].as_py() or 0)


def _place(dataset: PackedDataset, source: str) -> int:
    return dataset.rows["source"].to_pylist().index(source)


def test_a_dataset_without_bins_is_compared_too(omniprep, first, model_dir, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"messages": 5}\n')
    done = omniprep(
        "build",
        tmp_path / "bad.jsonl",
        "--model",
        model_dir,
        "--bin-length",
        512,
        "--workers",
        0,
        "--out",
        tmp_path / "empty",
    )
    assert done.code == 1, "nothing was packed"
    empty, full = PackedDataset(str(tmp_path / "empty")), PackedDataset(str(first))
    for pair in ((empty, full), (full, empty), (empty, empty)):
        data = collect_comparison(*pair)
        assert [step["a"] + step["b"] for step in data["lengths"]] or pair == (empty, empty)
        rows = next(line for line in data["counts"] if line["name"] == "rows packed")
        assert (rows["a"], rows["b"]) == tuple(dataset.counts["rows"]["packed"] for dataset in pair)


def test_names_are_the_shortest_that_differ():
    assert names_of("s3://lake/monday/packed", "s3://lake/tuesday/packed/") == ["monday/packed", "tuesday/packed"]
    assert names_of("a", "b") == ["a", "b"] and names_of("a/b", "b") == ["a/b", "b"]
    assert names_of("x/y", "x/y") == ["x/y (1)", "x/y (2)"]


def test_the_command_writes_one_page(omniprep, first, second, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = omniprep("report", first, second)
    assert done.code == 0 and done.out == "compare.html\n", done.err
    html = (tmp_path / "compare.html").read_text()
    assert len(html) < 200_000 and json.dumps(str(first))[1:-1] in html


def test_what_is_no_dataset_is_named(omniprep, first, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("[]")
    for other, said in ((tmp_path, "no finished omniprep dataset"), (tmp_path / "broken", "expected an object")):
        for pair in ((first, other), (other, first)):
            done = omniprep("report", *pair, "--out", tmp_path / "page.html")
            assert done.code == 1 and str(other) in done.err and said in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
    done = omniprep("report", first, first, first)
    assert done.code == 2 and "not 3" in done.err
    done = omniprep("report", first, "page.html")
    assert done.code == 2 and "--out page.html" in done.err
    done = omniprep("report", first, first, "--bins", 8)
    assert done.code == 2 and "--bins" in done.err
