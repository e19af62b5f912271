"""What a report holds: the numbers of the dataset, some of its bins, and never more than a megabyte."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_dataset import HIDDEN, NASTY, build, build_preferences

from omniprep.data.dataset import PackedDataset
from omniprep.errors import RejectCode
from omniprep.inspect.media import spectrogram_picture
from omniprep.inspect.vocabulary import load_vocabulary
from omniprep.report.bins import ChosenBin, browse, choose_bins
from omniprep.report.numbers import balance, histogram, length_histogram
from omniprep.report.page import collect, page, write_report
from omniprep.report.plots import draw_all
from omniprep.report.rows import parts_of
from omniprep.shards.cut import cut_row


@pytest.fixture(scope="module")
def built(omniprep, model_dir, tmp_path_factory) -> Path:
    return build(omniprep, model_dir, tmp_path_factory.mktemp("report"))


def test_a_build_ends_with_its_report(built):
    html = (built / "report.html").read_text()
    assert len(html) < 1_000_000
    assert NASTY not in html and "</script><img" not in html
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in html


def test_the_numbers_are_those_of_the_manifest(built, model_dir):
    dataset = PackedDataset(str(built))
    data = collect(dataset, load_vocabulary(str(model_dir)))
    counts = dataset.manifest["counts"]
    assert data["totals"]["rows"] == counts["rows"] == {"read": 14, "packed": 12, "rejected": 2}
    assert sum(s["tokens"] for s in data["sources"]) == counts["tokens"]
    assert sum(sum(series) for series in data["lengths"]["series"].values()) == counts["rows"]["packed"]
    assert sum(data["media"]["shares"]["by_modality"].values()) == counts["tokens"]
    assert {e["code"] for e in data["rejects"]["examples"]} == set(counts["rejected_by_code"])
    shown = sum(row["tokens"] for b in data["browser"] for row in b["rows"])
    assert shown == counts["tokens"]


def test_tokens_of_the_page_are_those_of_the_shard(built, model_dir):
    vocabulary = load_vocabulary(str(model_dir))
    dataset = PackedDataset(str(built))
    for number in range(len(dataset)):
        item = dataset[number]
        for row in range(len(item["row_ids"])):
            cut = cut_row(item, row)
            parts = parts_of(cut, vocabulary, 10**6)
            sizes = [p["n"] if "m" in p else sum(p["n"]) if "n" in p else len(p["t"]) for p in parts]
            assert sum(sizes) == len(cut["input_ids"])
            text = "".join(p["m"] * p["n"] if "m" in p else "".join(p["t"]) for p in parts)
            assert text == vocabulary.decode(cut["input_ids"].tolist())
            assert sum(s for s, p in zip(sizes, parts, strict=True) if p["y"]) == (cut["labels"] != -100).sum()


def test_a_dataset_without_tokenizer_still_has_a_report(built, model_dir, tmp_path):
    shutil.copytree(built, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(json.dumps(str(model_dir)), '"no/where"'))
    target, remark = write_report(str(tmp_path / "data"))
    assert Path(target).stat().st_size > 50_000 and "shown as numbers" in remark


def enlarge(built: Path, target: Path, rows: int, sources: int) -> Path:
    """The same dataset with its bins, rows and rejects again and again, from many inputs with long names."""
    shutil.copytree(built, target)
    index = pq.read_table(target / "index.parquet")
    table = pq.read_table(target / "rows.parquet")
    times = -(-rows // len(table))
    pq.write_table(pa.concat_tables([index] * times), target / "index.parquet")
    bins = pa.concat_tables([table] * times)
    names = pa.array([f"s3://lake/{'<day>/' * 54}{n:05}.jsonl" for n in range(sources)])
    source = pa.DictionaryArray.from_arrays(pa.array(np.arange(len(bins)) % sources, pa.int32()), names)
    pq.write_table(bins.set_column(0, "source", source), target / "rows.parquet")
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["shards"][0]["bins"] = len(index) * times
    manifest["inputs"] = [{"source": name, "bytes": 7} for name in names.to_pylist()]
    unread = {f"column{n}{'<' * 1000}": {"rows": 1, "option": ""} for n in range(3000)}
    manifest["counts"] |= {"unread_columns": unread, "rows_with_unread_columns": 1}
    codes = [str(code) for code in RejectCode]
    manifest["counts"]["rejected_by_code"] = dict.fromkeys(codes, 50)
    (target / "manifest.json").write_text(json.dumps(manifest))
    with (target / "rejected.jsonl").open("w") as file:
        for n in range(50 * len(codes)):
            reject = {"source": "s", "line": n, "code": codes[n % len(codes)], "message": "<" * 900, "row": "<" * 3000}
            file.write(json.dumps(reject) + "\n")
    return target


def test_a_page_of_a_million_rows_is_at_most_a_megabyte(built, model_dir, tmp_path, monkeypatch):
    """Of 2,000 inputs with long names, with 3,000 columns that nobody reads and 50 rejects of every code."""
    dataset = PackedDataset(str(enlarge(built, tmp_path / "data", 1_000_000, 2000)))
    assert len(dataset.rows) >= 1_000_000
    began = time.process_time()
    data = collect(dataset, load_vocabulary(str(model_dir)))
    html = page(data)
    assert time.process_time() - began < 30
    assert data["media"]["bins"] == 64 < data["media"]["of"] and len(data["browser"]) == 8
    assert {e["code"] for e in data["rejects"]["examples"]} == {str(code) for code in RejectCode}
    assert len(html.encode()) <= 1_000_000
    monkeypatch.setattr("omniprep.report.bins.TEXT_BYTES", 4000)
    monkeypatch.setattr("omniprep.report.bins.PICTURE_BYTES", 2000)
    for found in browse(dataset, [ChosenBin(n) for n in range(8)], None):
        assert found["more"] > 0 and len(found["rows"]) == 1 and found["rows"][0]["cut"] > 0


def rows_table(counts: list[tuple[int, int, int]], bins: list[int | None]) -> pa.Table:
    columns = dict(zip(("images", "audios", "videos"), zip(*counts, strict=True), strict=True))
    return pa.table({"bin": pa.array(bins, pa.int64()), **{name: pa.array(values) for name, values in columns.items()}})


def test_every_kind_of_row_is_among_the_bins_that_are_shown():
    """One row of each kind among 10,000 of text, in 1,000 bins; a rejected row counts for nothing."""
    counts, bins = [(0, 0, 0)] * 10_000, [n // 10 for n in range(10_000)]
    rare = {17: (1, 0, 0), 4321: (0, 1, 0), 7777: (0, 0, 1), 9012: (0, 1, 1), 9500: (2, 0, 0)}
    for number, held in rare.items():
        counts[number] = held
    bins[9500] = None
    chosen = choose_bins(rows_table(counts, bins), 1000, 8, {"tools": 5005, "other": 9999})
    assert chosen == choose_bins(rows_table(counts, bins), 1000, 8, {"tools": 5005, "other": 9999})
    assert len(chosen) == 8 and [b.number for b in chosen] == sorted(b.number for b in chosen)
    shown = {row for entry in chosen for row in entry.first}
    assert {17, 4321, 7777, 9012, 5005, 9999} <= shown
    assert all(counts[row] != (2, 0, 0) for row in shown)
    mixed = [(1, 1, 0), (0, 1, 1), *[(0, 0, 0)] * 98]  # no modality alone
    entries = choose_bins(rows_table(mixed, list(range(100))), 100, 4)
    assert {0, 1} <= {row for entry in entries for row in entry.first}
    few = choose_bins(rows_table(counts, bins), 1000, 2)
    assert len(few) == 2 and choose_bins(rows_table(counts, bins), 1000, 0) == []


def test_a_row_that_a_bin_was_chosen_for_is_shown_before_others(built, model_dir, monkeypatch):
    dataset = PackedDataset(str(built))
    monkeypatch.setattr("omniprep.report.bins.ROWS_A_BIN", 1)
    last = int(dataset[0]["row_ids"][-1])
    (found,) = browse(dataset, [ChosenBin(0, (last,))], load_vocabulary(str(model_dir)))
    assert [row["line"] for row in found["rows"]] == [dataset.rows["line"][last].as_py()]


def test_options_that_were_given_are_told_from_defaults(built):
    given = {"model", "bin_length", "needed_flags", "use_audio_in_video", "silent_video"}
    assert set(collect(PackedDataset(str(built)), None, shown=0)["changed"]) == given


def test_histograms_hold_every_value():
    rng = np.random.default_rng(0)
    for values in (rng.integers(1, 9000, 1000), np.array([5, 5, 5]), np.array([1, 2, 9]), rng.random(100)):
        assert sum(histogram(values)["counts"]) == len(values)
    lengths = np.array([1, 1, 2, 3, 64, 65, 8192])
    series = length_histogram(lengths, np.zeros(7, np.int8))["series"]
    assert sum(series["text"]) == 7
    assert histogram(np.array([]))["counts"] == []


def test_balance_of_equal_bins_is_one():
    assert {entry["balanced"] for entry in balance(np.ones(128))} == {1.0}


def test_spectrogram_of_silence_is_a_picture():
    image = spectrogram_picture(np.zeros((128, 300), np.uint16))
    assert image.size == (300, 96)


def test_rows_are_told_by_what_they_hold(built, model_dir):
    data = collect(PackedDataset(str(built)), load_vocabulary(str(model_dir)))
    kinds = {row["line"]: row["kinds"] for found in data["browser"] for row in found["rows"]}
    assert kinds[1] == ["text alone"] and kinds[7] == kinds[8] == ["image"] and kinds[9] == ["audio"]
    assert kinds[10] == ["video"]
    assert kinds[11] == ["audio", "video", "video with sound", "several media"]
    assert kinds[12] == ["tools", "text alone"]


def test_preference_rows_show_both_answers_and_their_verdicts(omniprep, model_dir, tmp_path):
    folder = build_preferences(omniprep, model_dir, tmp_path)
    dataset = PackedDataset(str(folder))
    data = collect(dataset, load_vocabulary(str(model_dir)))
    assert data["totals"]["preference"] == {"pairs": 2, "desirable": 1, "undesirable": 1, "ordinary": 3}
    shown = [row for found in data["browser"] for row in found["rows"]]
    verdicts = sorted((row["line"], row.get("verdict", ""), "pair" in row) for row in shown)
    assert verdicts == [
        *((line, "", False) for line in (1, 2, 3)), (4, "preferred", True), (4, "rejected", True), (5, "preferred", True),
        (5, "rejected", True), (6, "desirable", False), (7, "undesirable", False),
    ]  # fmt: skip
    kinds = {(row["line"], row.get("verdict", "")): row["kinds"] for row in shown}
    assert kinds[4, "preferred"] == kinds[4, "rejected"] == ["image", "preference pair"]
    assert kinds[6, "desirable"] == ["preference verdict", "text alone"] and kinds[1, ""] == ["text alone"]
    texts = {
        row["verdict"]: "".join("".join(p.get("t", "")) for p in row["parts"]) for row in shown if row["line"] == 4
    }
    assert "The better one." in texts["preferred"] and "The worse one." in texts["rejected"]
    first = [row for entry in choose_bins(dataset.rows, len(dataset), 8) for row in entry.first]
    verdicts = set(dataset.rows["verdict"].take(first).to_pylist())
    assert 2 in verdicts and verdicts & {0, 1}, "no pair, or no verdict, is among the rows that bins were chosen for"


def test_names_in_plots_are_shown_and_not_obeyed(built):
    data = collect(PackedDataset(str(built)), None, shown=0)
    data["sources"][0]["source"] = f"lake/{HIDDEN}.jsonl"
    drawn = draw_all(data)["sources"]
    assert "\\u202e" in drawn and "\\x1b" in drawn
    assert not [character for character in HIDDEN if not character.isprintable() and character in drawn]


def test_changes_since_the_build_and_removed_rows_are_shown(built, omniprep, tmp_path):
    folder = shutil.copytree(built, tmp_path / "data")
    source = PackedDataset(str(folder)).rows["source"][0].as_py()
    done = omniprep("remove", folder, "--row", f"{source}:1", "--row", f"{source}:2")
    assert done.code == 0, done.err
    data = collect(PackedDataset(str(folder)), None, shown=0)
    assert [change["command"] for change in data["generations"]] == ["build", "remove"]
    assert data["generations"][1]["rows"]["packed"] == 2 == data["totals"]["rows"]["removed"]
    (fact,) = data["sources"]
    assert (fact["rows"], fact["rejected"], fact["removed"]) == (14, 2, 2)
    assert "delta" in data["stored"]["pixel_values"]
