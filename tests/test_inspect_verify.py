"""`inspect` shows what is stored, and `verify` finds every kind of damage and names where it is."""

import io
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import xxhash
from conftest import SAMPLES
from PIL import Image
from rich.console import Console
from synthetic import make_dataset

from omniprep.data.dataset import PackedDataset
from omniprep.errors import DamagedDataError
from omniprep.inspect.describe import Piece, find_row, packed_rows, pieces_of, rows_of_bin
from omniprep.inspect.media import media_of
from omniprep.inspect.pictures import half_blocks
from omniprep.inspect.terminal import text_of
from omniprep.inspect.vocabulary import load_vocabulary
from omniprep.shards.codecs.picture import PictureShape
from omniprep.verify.files import check_rows, check_shards

N_ROWS = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir):
    """A synthetic dataset with the parts of a real one that the writer's tests do without."""
    folder = tmp_path_factory.mktemp("data") / "out"
    make_dataset(folder, N_ROWS, bin_length=256, bins_per_shard=4)
    rows = pq.read_table(folder / "rows.parquet")
    rejected = rows.filter(pc.is_null(rows["bin"])).to_pylist()
    index = pq.read_table(folder / "index.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    tokens = pc.sum(index["tokens"]).as_py()
    manifest |= {
        "counts": {
            "rows": {"read": N_ROWS, "packed": N_ROWS - len(rejected), "rejected": len(rejected)},
            "tokens": tokens,
            "bins": index.num_rows,
        },
        "fill": tokens / (256 * index.num_rows),
        "model": str(model_dir),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [json.dumps({key: row[key] for key in ("source", "line", "code")}) for row in rejected]
    (folder / "rejected.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def findings(folder):
    ds = PackedDataset(folder, verify="never")
    return [*check_shards(ds), *check_rows(ds)]


def rewrite_rows(folder, change):
    """Change rows.parquet; `change` gets the list of its rows."""
    path = folder / "rows.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_a_whole_dataset_has_no_finding(whole, omniprep):
    assert findings(whole) == []
    result = omniprep("verify", whole)
    assert result.code == 0 and f"{N_ROWS} rows read" in result.out


def test_each_flipped_byte_is_found_and_its_shard_named(copy, omniprep):
    shard = copy / "shards" / "00001.arrow"
    data = shard.read_bytes()
    for at in (0, len(data) // 3, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        found = findings(copy)
        assert len(found) == 1 and "00001.arrow" in found[0], (at, found)
    result = omniprep("verify", copy)
    assert result.code == 1 and "00001.arrow" in result.out and "damaged" in result.err


def test_the_damaged_bin_is_named(copy):
    ds = PackedDataset(copy, verify="never")
    bin_number = 5
    offset, length = (int(ds.index[key][bin_number]) for key in ("offset", "length"))
    path = copy / "shards" / f"{ds.index['shard'][bin_number]:05d}.arrow"
    data = bytearray(path.read_bytes())
    data[offset + length // 2] ^= 0x40
    path.write_bytes(data)
    assert [f"{path.parent.name}/{path.name}: bin 5 is damaged (its checksum differs)"] == findings(copy)


def test_cut_and_missing_shards(copy):
    first, second = copy / "shards" / "00000.arrow", copy / "shards" / "00001.arrow"
    first.write_bytes(first.read_bytes()[:-100])
    second.unlink()
    found = findings(copy)
    assert any("00000.arrow" in f and "bytes, written as" in f for f in found)
    assert any("00001.arrow: the file is missing" in f for f in found)


def test_swapped_shards(copy, omniprep):
    """Two shards under each other's name: both are whole files of this dataset, and neither is the one it should be."""
    first, second = copy / "shards" / "00000.arrow", copy / "shards" / "00001.arrow"
    data = first.read_bytes(), second.read_bytes()
    first.write_bytes(data[1])
    second.write_bytes(data[0])
    found = findings(copy)
    assert any("00000.arrow" in f for f in found) and any("00001.arrow" in f for f in found), found
    assert not any("00002.arrow" in f for f in found)
    assert omniprep("verify", copy).code == 1
    with pytest.raises(DamagedDataError, match=r"00000\.arrow"):
        PackedDataset(copy, verify="always")[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.pop(), "59 rows read"),
        (lambda rows: rows.append(dict(rows[0])), "is there 2 times"),
        (lambda rows: rows[12].update(code=None), "neither packed nor rejected"),
        (lambda rows: rows[0].update(start=rows[0]["start"] + 1), "do not follow each other"),
        (lambda rows: rows[0].update(bin=None, start=None, length=None, code="bad_json"), "rows packed"),
        (lambda rows: rows[0].update(bin=9999), "outside"),
    ],
)
def test_lost_and_misplaced_rows(copy, change, said):
    rewrite_rows(copy, change)
    assert any(said in finding for finding in findings(copy))


def exchange_bins(rows):
    """Two rows of one length that lie in different bins."""
    packed = [row for row in rows if row["bin"] is not None]
    first, other = next((a, b) for a in packed for b in packed if a["length"] == b["length"] and a["bin"] != b["bin"])
    for key in ("bin", "start"):
        first[key], other[key] = other[key], first[key]


def reverse_a_bin(rows):
    """The rows of a bin in another order, end to end as before."""
    inside = [row for row in rows if row["bin"] == 0]
    assert len({row["length"] for row in inside}) > 1
    start = 0
    for row in sorted(inside, key=lambda row: -row["start"]):
        row["start"] = start
        start += row["length"]


@pytest.mark.parametrize("change", [exchange_bins, reverse_a_bin])
def test_rows_of_another_build_over_the_shards(copy, change):
    """Tables that agree with each other, but not with what the bins hold."""
    rewrite_rows(copy, change)
    found = findings(copy)
    assert found and all("other rows than rows.parquet says" in finding for finding in found), found


def test_rows_of_an_input_that_the_manifest_does_not_name(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    sources = set(pq.read_table(copy / "rows.parquet")["source"].to_pylist())
    manifest["inputs"] = [{"source": source} for source in sources]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert findings(copy) == []
    rewrite_rows(copy, lambda rows: rows[0].update(source="elsewhere.jsonl"))
    assert any("elsewhere.jsonl, which the manifest does not name" in finding for finding in findings(copy))


def test_a_table_that_cannot_be_read_is_a_finding(copy, omniprep):
    (copy / "rows.parquet").write_bytes(b"PAR1")
    result = omniprep("verify", copy, "--quiet")
    assert result.code == 1 and "rows.parquet: cannot be read" in result.out and "Traceback" not in result.err


class Counted(np.ndarray):
    """Counts the elements that numpy's functions go through."""

    elements = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(value) for value in inputs]
        Counted.elements += sum(value.size for value in plain)
        return getattr(ufunc, method)(*plain, **options)

    def __array_function__(self, function, types, args, kwargs):
        plain = [[np.asarray(v) for v in a] if isinstance(a, tuple | list) else np.asarray(a) for a in args]
        Counted.elements += sum(np.size(value) for value in plain)
        return function(*plain, **kwargs)

    def __getitem__(self, key):
        found = np.asarray(self)[key]
        Counted.elements += np.size(found)
        return found.view(Counted) if isinstance(found, np.ndarray) else found


def test_the_work_of_verify_follows_shards_bins_and_bytes(tmp_path, monkeypatch):
    """Twice the shards of twice the bins: twice the work, counted in elements looked at and bytes hashed."""
    hashed = 0
    real = xxhash.xxh3_64_intdigest

    def counting(data):
        nonlocal hashed
        hashed += len(data)
        return real(data)

    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", counting)
    work = []
    for rows in (200, 400):
        folder = tmp_path / str(rows)
        make_dataset(folder, rows, bin_length=64, bins_per_shard=2)
        ds = PackedDataset(folder, verify="never")
        bins, shards = len(ds), len(ds.manifest["shards"])
        assert shards > 20
        ds.index = {name: values.view(Counted) for name, values in ds.index.items()}
        Counted.elements = hashed = 0
        assert list(check_shards(ds)) == []
        assert hashed == int(np.asarray(ds.index["length"]).sum()), "each bin is hashed once"
        work.append(Counted.elements / (bins + shards))
    assert work[0] > 0 and work[1] < 1.1 * work[0], work


def test_bins_that_overlap_are_told_and_hashed_once(copy):
    index = pq.read_table(copy / "index.parquet").to_pydict()
    index["offset"][1], index["length"][1] = index["offset"][0], index["length"][0] + 8
    schema = pq.read_schema(copy / "index.parquet")
    pq.write_table(pa.table(index, schema=schema), copy / "index.parquet")
    found = findings(copy)
    assert any("where another bin lies" in finding for finding in found), found
    index["length"][1] = 1 << 60
    pq.write_table(pa.table(index, schema=schema), copy / "index.parquet")
    assert findings(copy)


def test_lost_rejects(copy):
    path = copy / "rejected.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert findings(copy) == [f"rejected.jsonl: {len(lines) - 1} lines, rows.parquet has {len(lines)} rejected rows"]


def test_rebuild_is_the_inverse_of_the_image_processor(model_dir):
    from transformers import AutoImageProcessor

    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    processor = AutoImageProcessor.from_pretrained(model_dir, do_normalize=False, do_rescale=False)
    result = processor(Image.fromarray(pixels), return_tensors="pt", do_resize=False)
    patches = result["pixel_values"].numpy().astype(np.uint8)
    # The processor repeats a still along time, as for a video of two equal frames.
    frames = PictureShape(2, 56, 84, 14, 14, merge=2).pixels(patches)
    assert np.array_equal(frames[0], pixels) and np.array_equal(frames[1], pixels)
    stored = patches.reshape(len(patches), 3, 2, 196)[:, :, 0].reshape(len(patches), 588)
    still = PictureShape(1, 56, 84, 14, 14, merge=2)
    assert np.array_equal(still.pixels(stored), pixels[None])
    again = np.empty_like(stored)
    still.fill_patches(again, pixels[None])
    assert np.array_equal(again, stored)


@pytest.mark.parametrize("value", ["", "1"])
def test_no_color_marks_trained_text_with_signs(monkeypatch, value):
    monkeypatch.setenv("NO_COLOR", value)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="truecolor", width=80)
    pieces = [Piece("say ", 1, False, False), Piece("yes", 1, True, False)]
    console.print(text_of(pieces, colored=not console.no_color))
    text = stream.getvalue()
    assert ("{+yes+}" in text) == bool(value) and bool(re.search(r"\x1b\[(1;)?(3|9)\dm", text)) != bool(value)


def test_half_blocks_keep_the_shape():
    text = half_blocks(np.zeros((200, 400, 3), np.uint8), columns=40, lines=12)
    lines = text.plain.splitlines()
    assert len(lines) == 10 and {len(line) for line in lines} == {40}


def test_describe_tells_each_row_as_stored(whole, model_dir):
    ds = PackedDataset(whole)
    vocabulary = load_vocabulary(str(model_dir))
    for number in range(len(ds)):
        item = ds[number]
        rows = rows_of_bin(ds, number)
        assert [row.tokens for row in rows] == np.diff(item["cu_seqlens"]).tolist()
        assert sum(row.trained for row in rows) == int((item["labels"] != -100).sum())
        for row, items in zip(rows, item["row_items"].tolist(), strict=True):
            assert sum(piece.tokens for piece in pieces_of(row.arrays, vocabulary)) == row.tokens
            media = media_of(row.arrays)
            assert [sum(item.modality == name for item in media) for name in ds.layout.modalities] == items
            assert sum(item.has_pixels for item in media) == items[0] + items[2]


def test_inspect_shows_a_row_by_its_place(whole, omniprep, tmp_path):
    ds = PackedDataset(whole)
    assert find_row(ds, "a.jsonl:1") == 0
    sheet = tmp_path / "sheet.png"
    result = omniprep("inspect", whole, "--row", "a.jsonl:1", "--image", sheet, "--json")
    assert result.code == 0, result.err
    shown = json.loads(result.out)
    assert [(row["source"], row["line"]) for row in shown["rows"]] == [("a.jsonl", 1)]
    assert Image.open(sheet).width > 20
    text = omniprep("inspect", whole, "--bin", -1)
    assert text.code == 0 and f"bin {len(ds) - 1}:" in text.out and "{+" in text.out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--row", "a.jsonl:7"], 1, "was rejected: bad_json"),
        (["--row", "c.jsonl:1"], 1, "no sources fit"),
        (["--row", "a.jsonl:999"], 1, "no row 999"),
        (["--row", "a.jsonl"], 1, "SOURCE:LINE"),
        (["--bin", "999"], 2, "bins"),
        (["--bin", "0", "--row", "a.jsonl:1"], 2, "exclude"),
        (["--model", "no/such"], 1, "tokenizer"),
        (["--rejected", "bad-jsn"], 2, "did you mean 'bad_json'?"),
        (["--rejected", "bad_json", "--bin", "0"], 2, "excludes"),
    ],
)
def test_inspect_says_what_is_wrong(whole, omniprep, args, code, said):
    result = omniprep("inspect", whole, *args)
    assert result.code == code and said in result.err and "Traceback" not in result.err


@pytest.fixture(scope="module")
def built(tmp_path_factory, model_dir, omniprep):
    """A real build of text, pictures and sound, from inputs that a test may change."""
    folder = tmp_path_factory.mktemp("built")
    inputs = shutil.copytree(SAMPLES, folder / "in", ignore=shutil.ignore_patterns("*.py", "*.md"))
    names = [inputs / name for name in ("text.jsonl", "images.jsonl", "audio.jsonl", "omni.json", "broken.jsonl")]
    result = omniprep(
        "build", *names, "--model", model_dir, "--bin-length", 2048, "--workers", 0, "--out", folder / "out", "--quiet"
    )
    assert result.code == 0, result.err
    return folder


def test_deep_finds_nothing_in_a_fresh_build(built, omniprep):
    result = omniprep("verify", built / "out", "--deep", "--sample", 100)
    assert result.code == 0, result.out
    assert "rows encoded again" in result.out


def test_deep_notices_changed_inputs(built, omniprep, tmp_path):
    copy = shutil.copytree(built, tmp_path / "copy")
    manifest = (copy / "out" / "manifest.json").read_text()
    table = pq.read_table(copy / "out" / "rows.parquet")
    sources = [source.replace(str(built), str(copy)) for source in table["source"].to_pylist()]
    pq.write_table(table.set_column(0, "source", pa.array(sources)), copy / "out" / "rows.parquet")
    (copy / "out" / "manifest.json").write_text(manifest.replace(str(built / "in"), str(copy / "in")))
    text = copy / "in" / "text.jsonl"
    text.write_text(text.read_text().replace("Paris.", "Lyon.", 1))
    (copy / "in" / "media" / "receipt.png").unlink()
    result = omniprep("verify", copy / "out", "--deep", "--sample", 100)
    assert result.code == 1 and "differs" not in result.out + result.err
    assert f"{text}: not read: its size or content is not what it was" in result.err and f"--input {text}" in result.err
    result = omniprep("verify", copy / "out", "--deep", "--sample", 100, "--input", copy / "in")
    assert result.code == 1
    assert "text.jsonl:1: differs from what it encodes to now: input_ids, labels" in result.out
    assert "images.jsonl:3: would be rejected now: media_not_found" in result.out
    assert result.out.count("\n") == 3, result.out


def test_inspect_of_a_real_row(built, omniprep):
    shown = json.loads(omniprep("inspect", built / "out", "--row", "images.jsonl:5", "--json").out)["rows"][0]
    trained = [piece["text"] for piece in shown["pieces"] if piece["trained"]]
    assert trained == ["The circle.<|im_end|>", "The square.<|im_end|>"]
    spans = [(piece["text"], piece["tokens"]) for piece in shown["pieces"] if piece["media"]]
    assert spans == [("<|IMAGE|>", 64), ("<|IMAGE|>", 64)]
    assert [(m["modality"], m["facts"]["width"]) for m in shown["media"]] == [("image", 224), ("image", 224)]


def test_stored_pixels_are_those_of_the_file(built):
    ds = PackedDataset(built / "out")
    stored = media_of(packed_rows(ds, find_row(ds, "images.jsonl:4"))[0].arrays)[0].frames()[0]
    original = np.asarray(Image.open(SAMPLES / "media" / "shapes_a.png").convert("RGB"))
    assert np.array_equal(stored, original), "224 x 224 needs no resizing, so it must survive as it is"
