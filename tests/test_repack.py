"""A repacked dataset is the one that a fresh build would have written, and nothing is decoded for it."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SAMPLES

from omniprep import io as memory
from omniprep.compiler.output import lease
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
    return build(omniprep, model_dir, folder, "--bin-length", 512, "--seed", 7, "--shard-size", 1_000_000)


def test_repacked_is_freshly_built_byte_for_byte(omniprep, wide, narrow, tmp_path):
    options = ("--bin-length", 512, "--seed", 7, "--shard-size", 1_000_000)
    out = repack(omniprep, tmp_path / "again", wide, *options)
    assert len(shards(out)) > 1 and shards(out) == shards(narrow)
    for name in ("index.parquet", "rows.parquet"):
        assert (out / name).read_bytes() == (narrow / name).read_bytes(), name
    mine, fresh = (json.loads((folder / "manifest.json").read_text()) for folder in (out, narrow))
    assert mine["counts"]["rejected_by_code"] == {"row_too_long": 2}
    for key in set(fresh) - {"seconds", "video_readers"}:  # of all rows of the sources, too long ones too
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


@pytest.mark.parametrize("codec", ["delta", "webp"])
def test_another_codec_and_back(omniprep, model_dir, wide, tmp_path, codec):
    fresh = build(omniprep, model_dir, tmp_path / "fresh", "--bin-length", 2048, "--pixel-codec", codec)
    raw = repack(omniprep, tmp_path / "raw", wide, "--bin-length", 2048, "--pixel-codec", "raw")
    coded = repack(omniprep, tmp_path / "coded", raw, "--bin-length", 2048, "--pixel-codec", codec)
    assert shards(coded) == shards(fresh)
    assert sum(map(len, shards(coded).values())) < sum(map(len, shards(raw).values())) / 2
    back = repack(omniprep, tmp_path / "back", coded, "--bin-length", 2048, "--pixel-codec", "raw")
    assert shards(back) == shards(raw)
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


def chats(path: Path, answers: list[str]) -> Path:
    """Chats without media; rows of the same length where the answers are."""
    talk = [[{"role": "user", "content": "question"}, {"role": "assistant", "content": a}] for a in answers]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talk))
    return path


@pytest.fixture(scope="module")
def pair(omniprep, model_dir, tmp_path_factory) -> Path:
    """A dataset of two inputs whose rows have the same lengths."""
    folder = tmp_path_factory.mktemp("pair")
    inputs = [chats(folder / f"{name}.jsonl", [word] * 30) for name, word in (("a", "red"), ("b", "blue"))]
    done = omniprep("build", *inputs, "--model", model_dir, "--bin-length", 128, "--out", folder / "ab", "--workers", 0)
    assert done.code == 0, done.err
    return folder / "ab"


def kept(out: Path) -> dict[str, int]:
    """Every file of a folder with the time of its last change."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--source", "b.jsonl"), "--source: ['a.jsonl'] → ['b.jsonl']"),
        ((), "--source: ['a.jsonl'] → []"),
        (("--source", "a.jsonl", "--kind", "text"), "--kind: [] → ['text']"),
        (("--source", "a.jsonl", "--pixel-codec", "webp"), "--pixel-codec: delta → webp"),
        (("--source", "a.jsonl", "--seed", 5), "--seed: 0 → 5"),
        (("--source", "a.jsonl", "--shard-size", 1000), "--shard-size"),
        (("--source", "a.jsonl", "--bin-length", 256), "--bin-length: 64 → 256"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_another_repack_into_the_same_folder_is_refused(omniprep, pair, tmp_path, options, named, whole):
    first = ("--bin-length", 64) if "--bin-length" not in options else ()
    out = repack(omniprep, tmp_path / "x", pair, "--bin-length", 64, "--source", "a.jsonl")
    if not whole:
        (out / "manifest.json").unlink()
    before = kept(out)
    done = omniprep("repack", pair, "--out", out, "--quiet", *first, *options)
    assert done.code == 1 and named in done.err and len(done.err.strip().splitlines()) == 1, done.err
    assert kept(out) == before
    again = omniprep("repack", pair, "--out", out, "--quiet", *first, *options, "--overwrite")
    assert again.code == 0 and omniprep("verify", out, "--quiet").code == 0, again.err
    fresh = repack(omniprep, tmp_path / "fresh", pair, *first, *options)
    assert shards(out) == shards(fresh)


def test_a_source_that_changed_is_another_repack(omniprep, pair, model_dir, tmp_path):
    source = shutil.copytree(pair, tmp_path / "source")
    out = repack(omniprep, tmp_path / "x", source, "--bin-length", 64)
    (out / "manifest.json").unlink()
    shutil.rmtree(source)
    other = chats(tmp_path / "c.jsonl", ["green"] * 60)
    built = omniprep("build", other, "--model", model_dir, "--bin-length", 128, "--out", source, "--workers", 0)
    assert built.code == 0, built.err
    done = omniprep("repack", source, "--out", out, "--bin-length", 64, "--quiet")
    assert done.code == 1 and f"input {source} was changed" in done.err, done.err


def test_a_build_and_a_repack_do_not_go_on_with_each_other(omniprep, pair, model_dir, tmp_path):
    out = repack(omniprep, tmp_path / "x", pair, "--bin-length", 128)
    before = kept(out)
    inputs = [pair.parent / "a.jsonl", pair.parent / "b.jsonl"]
    built = omniprep("build", *inputs, "--model", model_dir, "--bin-length", 128, "--out", out, "--workers", 0)
    assert built.code == 1 and "it was made by omniprep repack" in built.err, built.err
    packed = omniprep("repack", out, "--bin-length", 64, "--out", pair)
    assert packed.code == 1 and "it was made by omniprep build" in packed.err, packed.err
    assert kept(out) == before


@pytest.mark.parametrize("way", ["relative", "link", "inside", "around", "file", "dots"])
def test_no_repack_writes_over_or_into_its_source(omniprep, pair, tmp_path, monkeypatch, way):
    """Also where the source is a repack itself, whose files --overwrite would call its own."""
    x = repack(omniprep, tmp_path / "deep" / "x", pair, "--bin-length", 64)
    (tmp_path / "link").symlink_to(x)
    monkeypatch.chdir(tmp_path)
    source, out = {
        "relative": (x, "deep/x"),
        "link": ("link", x),
        "inside": (x, x / "y"),
        "around": (x, x.parent),
        "file": (x, f"file://{x}"),
        "dots": ("deep/x", "deep/../deep/./x/"),
    }[way]
    before = kept(x)
    for options in ((), ("--overwrite",)):
        done = omniprep("repack", source, "--bin-length", 32, "--out", out, *options)
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.err
    assert kept(x) == before and kept(tmp_path / "deep") == {f"x/{name}": time for name, time in before.items()}


def test_a_store_under_two_spellings_is_one_place(omniprep, pair):
    for path in pair.rglob("*"):
        if path.is_file():
            memory.write_atomic(f"memory://repack/{path.relative_to(pair)}", path.read_bytes())
    for out in ("memory://repack", "memory://repack/", "memory:///repack", "memory://repack//deeper", "memory://"):
        done = omniprep("repack", "memory://repack", "--bin-length", 64, "--out", out, "--overwrite")
        assert done.code == 2 and ("--out" in done.err), (out, done.err)
    assert omniprep("verify", "memory://repack").code == 0


def test_overwrite_removes_only_files_of_a_build(omniprep, pair, tmp_path):
    out = repack(omniprep, tmp_path / "x", pair, "--bin-length", 64)
    mine = [out / "notes.txt", out / "shards" / "notes.arrow", out / "plan" / "mine.json"]
    for path in mine:
        path.write_text("mine")
    repack(omniprep, out, pair, "--bin-length", 32, "--overwrite")
    assert all(path.read_text() == "mine" for path in mine)
    assert omniprep("verify", out, "--quiet").code == 0
    for name in ("shards", "plan", "index.parquet"):
        folder = tmp_path / f"other {name}"
        (folder / "shards").mkdir(parents=True)
        (folder / "shards" / "00000.arrow").write_text("not ours")
        done = omniprep("repack", pair, "--bin-length", 32, "--out", folder, "--overwrite")
        assert done.code == 1 and "holds no omniprep build" in done.err
        assert (folder / "shards" / "00000.arrow").read_text() == "not ours"


def test_a_second_repack_waits_for_no_one(omniprep, pair, tmp_path):
    with lease.hold(str(tmp_path / "x")):
        done = omniprep("repack", pair, "--bin-length", 64, "--out", tmp_path / "x")
    assert done.code == 1 and "another build is at work there" in done.err


def test_faults_of_the_disk_are_one_line(omniprep, pair, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    done = omniprep("repack", pair, "--bin-length", 64, "--out", tmp_path / "file" / "x")
    assert done.code == 1 and "a folder is needed" in done.err and len(done.err.strip().splitlines()) == 1
    source = shutil.copytree(pair, tmp_path / "source")
    (source / "shards" / "00000.arrow").unlink()
    done = omniprep("repack", source, "--bin-length", 64, "--out", tmp_path / "x", "--quiet")
    assert done.code == 1 and "00000.arrow" in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "x" / "lease.json").exists()


def test_damage_of_a_source_is_not_copied(omniprep, pair, tmp_path):
    source = shutil.copytree(pair, tmp_path / "source")
    shard = source / "shards" / "00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = omniprep("repack", source, "--bin-length", 64, "--out", tmp_path / "x", "--quiet")
    assert done.code == 1 and "is damaged" in done.err and not (tmp_path / "x" / "manifest.json").exists()


def test_rows_that_the_shards_of_a_source_do_not_hold(omniprep, pair, tmp_path):
    """rows.parquet of one repack over the shards of another, as earlier versions could leave it."""
    a = repack(omniprep, tmp_path / "a", pair, "--bin-length", 64, "--seed", 1)
    b = repack(omniprep, tmp_path / "b", pair, "--bin-length", 64, "--seed", 2)
    mixed = shutil.copytree(a, tmp_path / "mixed")
    shutil.copy(b / "rows.parquet", mixed / "rows.parquet")
    done = omniprep("repack", mixed, "--bin-length", 128, "--out", tmp_path / "x", "--quiet")
    assert done.code == 1 and "does not hold row" in done.err, done.err
    checked = omniprep("verify", mixed, "--quiet")
    assert checked.code == 1 and "other rows than rows.parquet says" in checked.out


def test_rows_with_other_media_are_noticed_by_verify(omniprep, wide, tmp_path):
    mixed = shutil.copytree(wide, tmp_path / "mixed")
    table = pq.read_table(mixed / "rows.parquet")
    images = table["images"].to_pylist()
    number = next(n for n, count in enumerate(images) if count)
    images[number] += 1
    changed = table.set_column(table.column_names.index("images"), "images", pa.array(images, pa.int32()))
    pq.write_table(changed, mixed / "rows.parquet")
    checked = omniprep("verify", mixed, "--quiet")
    assert checked.code == 1 and "other rows than rows.parquet says" in checked.out


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


def test_a_sample_writes_through_no_link(omniprep, wide, tmp_path):
    outside, out = tmp_path / "outside", tmp_path / "s"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    out.mkdir()
    (out / "rows.jsonl").symlink_to(outside / "mine")
    assert omniprep("sample", wide, "--out", out, "--rows", 2).code == 0
    assert (outside / "mine").read_text() == "mine" and len((out / "rows.jsonl").read_text().splitlines()) == 2
    (linked := tmp_path / "t").mkdir()
    (linked / "media").symlink_to(outside)
    done = omniprep("sample", wide, "--out", linked, "--rows", 50)
    assert done.code == 1 and f"{linked / 'media'}: a symbolic link" in done.err
    assert [path.name for path in outside.iterdir()] == ["mine"]


def test_columns_that_nobody_reads_are_named_again(omniprep, model_dir, tmp_path):
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    for name, count in (("a", 3), ("b", 2)):
        rows = [{**row, "image_paths": ["x.png"]}] * count + [row]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    options = ("--model", model_dir, "--bin-length", 64, "--workers", 0, "--quiet")
    done = omniprep("build", tmp_path / "a.jsonl", tmp_path / "b.jsonl", *options, "--out", tmp_path / "data")
    assert done.code == 0, done.err

    def unread(folder: Path) -> dict[str, dict[str, object]]:
        return json.loads((folder / "manifest.json").read_text())["counts"]["unread_columns"]

    expected = {"image_paths": {"rows": 5, "option": "images=image_paths"}}
    assert unread(tmp_path / "data") == expected
    assert unread(repack(omniprep, tmp_path / "all", tmp_path / "data", "--bin-length", 32)) == expected
    part = repack(omniprep, tmp_path / "part", tmp_path / "data", "--bin-length", 32, "--source", "b.jsonl")
    assert unread(part) == {"image_paths": {"rows": 2, "option": "images=image_paths"}}


def test_rejects_of_a_source_are_not_read_through_a_link(omniprep, pair, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(pair, source)
    (source / "rejected.jsonl").rename(tmp_path / "elsewhere.jsonl")
    (source / "rejected.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    done = omniprep("repack", source, "--bin-length", 128, "--out", tmp_path / "out", "--quiet")
    assert done.code == 1 and "rejected.jsonl: a symbolic link" in done.err and not (tmp_path / "out").exists()
