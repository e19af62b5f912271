"""A repacked dataset is the one that a fresh build would have written, and nothing is decoded for it."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import SAMPLES

from omniprep.data.dataset import PackedDataset

INPUTS = ("text.jsonl", "images.jsonl", "audio.jsonl", "video.jsonl", "omni.json")


def build(omniprep, model_dir, out: Path, *options: object, names=INPUTS) -> Path:
    inputs = [SAMPLES / name for name in names]
    done = omniprep("build", *inputs, "--model", model_dir, "--out", out, "--workers", 0, "--quiet", *options)
    assert done.code == 0, done.err
    return out


def repack(omniprep, out: Path, *args: object) -> Path:
    done = omniprep("repack", *args, "--out", out, "--quiet")
    assert done.code == 0, done.err
    return out


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.fixture(scope="module")
def wide(omniprep, model_dir, tmp_path_factory) -> Path:
    return build(omniprep, model_dir, tmp_path_factory.mktemp("wide") / "data", "--bin-length", 2048)


@pytest.fixture(scope="module")
def narrow(omniprep, model_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("narrow") / "data"
    return build(omniprep, model_dir, folder, "--bin-length", 512, "--seed", 7, "--shard-size", 3_000_000)


def test_repacked_is_freshly_built_byte_for_byte(omniprep, wide, narrow, tmp_path):
    options = ("--bin-length", 512, "--seed", 7, "--shard-size", 3_000_000)
    out = repack(omniprep, tmp_path / "again", wide, *options)
    assert len(shards(out)) > 1 and shards(out) == shards(narrow)
    for name in ("index.parquet", "rows.parquet"):
        assert (out / name).read_bytes() == (narrow / name).read_bytes(), name
    mine, fresh = (json.loads((folder / "manifest.json").read_text()) for folder in (out, narrow))
    assert mine["counts"]["rejected_by_code"] == {"row_too_long": 2}
    for key in set(fresh) - {"seconds"}:
        assert mine[key] == fresh[key], key
    assert omniprep("verify", out, "--quiet").code == 0


def test_repack_there_and_back_and_again_goes_on(omniprep, wide, tmp_path):
    there = repack(omniprep, tmp_path / "there", wide, "--bin-length", 4096, "--seed", 3)
    back = repack(omniprep, tmp_path / "back", there, "--bin-length", 2048, "--seed", 0)
    assert shards(back) == shards(wide)
    kept = (back / "shards" / "00000.arrow").stat().st_mtime_ns
    (back / "manifest.json").unlink()
    repack(omniprep, back, there, "--bin-length", 2048, "--seed", 0)
    assert (back / "manifest.json").exists() and (back / "shards" / "00000.arrow").stat().st_mtime_ns == kept


def test_another_codec_and_back(omniprep, model_dir, wide, tmp_path):
    fresh = build(omniprep, model_dir, tmp_path / "fresh", "--bin-length", 2048, "--pixel-codec", "webp")
    coded = repack(omniprep, tmp_path / "coded", wide, "--bin-length", 2048, "--pixel-codec", "webp")
    assert shards(coded) == shards(fresh)
    assert sum(map(len, shards(coded).values())) < sum(map(len, shards(wide).values())) / 2
    back = repack(omniprep, tmp_path / "back", coded, "--bin-length", 2048, "--pixel-codec", "raw")
    assert shards(back) == shards(wide)
    assert omniprep("verify", fresh, "--quiet").code == 0


def test_merge_of_parts_is_the_whole(omniprep, model_dir, wide, tmp_path):
    one = build(omniprep, model_dir, tmp_path / "one", "--bin-length", 1024, names=INPUTS[:2])
    two = build(omniprep, model_dir, tmp_path / "two", "--bin-length", 2048, "--seed", 9, names=INPUTS[2:])
    out = repack(omniprep, tmp_path / "both", one, two, "--bin-length", 2048)
    assert shards(out) == shards(wide)
    twice = omniprep("repack", one, one, "--bin-length", 512, "--out", tmp_path / "x")
    assert twice.code == 1 and "two of the datasets" in twice.err


def test_a_source_of_a_dataset_is_a_fresh_build_of_that_input(omniprep, model_dir, wide, tmp_path):
    fresh = build(omniprep, model_dir, tmp_path / "fresh", "--bin-length", 1024, names=("images.jsonl",))
    out = repack(omniprep, tmp_path / "part", wide, "--bin-length", 1024, "--source", "images.jsonl")
    assert shards(out) == shards(fresh)
    for name in ("index.parquet", "rows.parquet"):
        assert (out / name).read_bytes() == (fresh / name).read_bytes(), name


def test_choice_of_sources_and_kinds(omniprep, wide, tmp_path):
    out = repack(
        omniprep, tmp_path / "images", wide, "--bin-length", 1024, "--source", "images.jsonl", "--kind", "image"
    )
    before, after = PackedDataset(wide), PackedDataset(out)
    table = after.rows.to_pylist()
    assert table and all(row["source"].endswith("images.jsonl") and row["images"] for row in table)
    row = table[0]
    old, new = before.row(row["source"], row["line"]), after.row(row["source"], row["line"])
    assert set(old) == set(new)
    for name, value in old.items():
        assert torch.equal(value, new[name]) if isinstance(value, torch.Tensor) else value == new[name], name
    wrong = omniprep("repack", wide, "--bin-length", 64, "--out", tmp_path / "y", "--source", "nothing.jsonl")
    assert wrong.code == 2 and "no such input" in wrong.err


def test_mistakes_are_one_line(omniprep, wide, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for options in ((), ("--overwrite",)):
        done = omniprep("repack", wide, "--bin-length", 512, "--out", tmp_path / "full", *options)
        assert done.code == 1 and len(done.err.strip().splitlines()) == 1
    assert (tmp_path / "full" / "mine.txt").exists()
    assert omniprep("repack", wide, "--bin-length", 512, "--out", wide).code == 2


def test_stats(omniprep, wide):
    table = omniprep("stats", wide)
    assert table.code == 0 and "fill" in table.out
    found = json.loads(omniprep("stats", wide, "--json").out)
    assert found["totals"]["rows"]["packed"] == pq.read_table(wide / "rows.parquet")["bin"].drop_null().length()


def test_sample_writes_rows_and_media(omniprep, wide, tmp_path):
    done = omniprep("sample", wide, "--out", tmp_path / "s", "--rows", 100)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "s" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == PackedDataset(wide).manifest["counts"]["rows"]["packed"]
    files = [tmp_path / "s" / name for row in rows for media in row["media"] for name in media["files"]]
    assert files and all(file.stat().st_size > 50 for file in files) and len(set(files)) == len(files)
    assert {m["modality"] for row in rows for m in row["media"]} == {"image", "audio", "video"}
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    spoken = next(row for row in rows if row["media"] and row["media"][0]["modality"] == "audio")
    assert "[<|AUDIO|> x " in spoken["messages"][-2]["content"]
    one = omniprep("sample", wide, "--out", tmp_path / "t", "--row", "images.jsonl:2")
    assert one.code == 0 and len((tmp_path / "t" / "rows.jsonl").read_text().splitlines()) == 1
