"""A family of every kind of field through build, load, repack, verify, inspect and report; loaders that nobody has."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import toy
from PIL import Image

from omniprep import PackedDataset, collate
from omniprep.compiler.costs import QWEN_BYTES, stored_bytes
from omniprep.families.kinds import Decoded, MediaMeta
from omniprep.registry import REGISTRY, resolve_family
from omniprep.shards.affine import byte_floats

PLUGIN = Path(__file__).with_name("every_field.py")
IMAGES = [(70, 30), (128, 40), (50, 70), (64, 64)]
IMAGE_ID = 256 + 3  # behind the bytes and the special tokens of toy.write_tokenizer
SOUNDS = [4000, 61_000]
FIXED = {"input_ids", "labels", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
         "use_cache"}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields") / "model"
    toy.write_tokenizer(folder, ("<|img|>", "<|aud|>"))
    (folder / "config.json").write_text(json.dumps({"architectures": ["EveryField"]}))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Chats with none to two images and none or one sound, in all combinations, each of another text."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(IMAGES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    for number, samples in enumerate(SOUNDS):
        sound = rng.integers(-9999, 9999, samples).astype(np.int16)
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
    lines = []
    for number in range(12):
        images, sounds = number % 3, number // 3 % 2
        content = "<image>" * images + "<audio>" * sounds + "?" * (number + 1)
        row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": f"{number}."}]}
        row |= {"images": [f"{(number + i) % 4}.png" for i in range(images)]} if images else {}
        row |= {"audios": [f"{number % 2}.wav"]} if sounds else {}
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def build(omniprep, checkpoint, rows):
    def call(out: Path, *more: object, plugin: Path = PLUGIN):
        options = ["--model", checkpoint, "--plugin", plugin, "--bin-length", 192, "--workers", 0, "--out", out]
        return omniprep("build", rows, *options, *more)

    return call


@pytest.fixture(scope="module", params=["delta", "raw"])
def packed(build, tmp_path_factory, request):
    out = tmp_path_factory.mktemp("packed") / request.param
    result = build(out, "--pixel-codec", request.param)
    assert result.code == 0 and "report.html was not written" not in result.out + result.err, result.err
    return out


def mapped(checkpoint, rows, line):
    """What the plug-in's mappers give for a row, straight from its media: by field a list of an array an item."""
    ctx = resolve_family(str(checkpoint), plugins=(str(PLUGIN),))
    row = json.loads(rows.read_text().splitlines()[line - 1])
    items = {}
    for name in row.get("images", []):
        image = Image.open(rows.parent / name).convert("RGB")
        decoded = Decoded(MediaMeta(kind="image", width=image.width, height=image.height), image=image)
        for key, array in ctx.map_item("image", decoded).items():
            items.setdefault(key, []).append(array)
    for name in row.get("audios", []):
        sound = soundfile.read(rows.parent / name, dtype="float32")[0]
        for key, array in ctx.map_item(
            "audio", Decoded(MediaMeta(kind="audio", samples=len(sound)), waveform=sound)
        ).items():
            items.setdefault(key, []).append(array)
    return items


def padded(items, value=0):
    largest = [max(sizes) for sizes in zip(*(item.shape for item in items), strict=True)]
    return np.stack([
        np.pad(item, [(0, most - size) for most, size in zip(largest, item.shape, strict=True)],
               constant_values=value) for item in items
    ])  # fmt: skip


def arguments(items):
    """The forward arguments of a row or of rows laid end to end, from what the mappers gave."""
    clip = sys.modules[REGISTRY.families["every_field"].cls.__module__].CLIP
    table = byte_floats(clip)

    def floats(pixels, axis):
        return np.moveaxis(table[np.arange(3), np.moveaxis(pixels, axis, -1)], -1, axis)

    result = {}
    if "pixel_values" in items:
        result["pixel_values"] = padded([floats(item, 1) for item in items["pixel_values"]])
        result["whole"] = padded([floats(item[0], 2) for item in items["whole"]])[None]
        result["whole_mask"] = padded([np.ones(item.shape[1:3], np.int64) for item in items["whole"]])[None]
        result["flags"] = padded([item[0] for item in items["flags"]])[None]
        result["image_sizes"] = np.concatenate(items["image_sizes"])
        result["listed"] = items["listed"]
        result["halves"] = np.concatenate(items["halves"]).astype(np.float32) / 2
    if "frames" in items:
        result["frames"] = padded(items["frames"])
        result["frames_mask"] = padded([np.ones(len(item), np.int64) for item in items["frames"]])
        result["windows"] = np.concatenate(items["windows"])
    return result


def equal(given, wanted):
    if isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(equal, given, wanted))
    return given.numpy().dtype == wanted.dtype and np.array_equal(given.numpy(), wanted)


def check_tokens(batch):
    """token_type_ids marks the images' tokens; the other field counts within each row."""
    ids, borders = batch["input_ids"][0], batch["cu_seq_lens_q"].tolist()
    assert torch.equal(batch["token_type_ids"][0] == 1, ids == IMAGE_ID)
    assert batch["token_type_ids"].shape == batch["input_ids"].shape and batch["token_type_ids"].dtype == torch.int64
    counted = torch.cat([torch.arange(end - start) for start, end in pairwise(borders)])
    assert torch.equal(batch["position_in_row"][0], counted.float())


def test_rows_equal_what_the_mapper_gave(packed, checkpoint, rows):
    ds = PackedDataset(packed)
    for line in range(1, 13):
        row = ds.row(str(rows), line)
        items = mapped(checkpoint, rows, line)
        wanted = arguments(items)
        if "first_width" in items:  # of the row, not of each of its images
            wanted["first_width"] = items["first_width"][0]
        assert set(row) - FIXED == set(wanted) | {"token_type_ids", "position_in_row"}
        for name, value in wanted.items():
            assert equal(row[name], value), (line, name)
        check_tokens(row)


def test_bins_are_their_rows_laid_end_to_end(packed, checkpoint, rows):
    ds = PackedDataset(packed)
    lines = ds.rows["line"].to_pylist()
    assert any((ds[number]["row_items"].sum(0) == 0).all() for number in range(len(ds))) or len(ds) > 1
    for batch in ([ds[0]], [ds[number] for number in range(len(ds))]):
        together = collate(batch)
        items, first = {}, []
        for item in batch:
            for row_id in item["row_ids"].tolist():
                one = mapped(checkpoint, rows, lines[row_id])
                first += [one["first_width"][0]] if "first_width" in one else []
                for name, arrays in one.items():
                    items.setdefault(name, []).extend(arrays)
        wanted = arguments(items) | ({"first_width": np.concatenate(first)} if first else {})
        for name, value in wanted.items():
            assert equal(together[name], value), name
        check_tokens(together)


def test_repacked_is_built_anew(packed, build, omniprep, tmp_path):
    codec = packed.name
    assert build(tmp_path / "new", "--pixel-codec", codec, "--bin-length", 256, "--seed", 3).code == 0
    result = omniprep("repack", packed, "--out", tmp_path / "again", "--bin-length", 256, "--seed", 3)
    assert result.code == 0, result.err
    for name in ("shards/00000.arrow", "index.parquet", "rows.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / name).read_bytes(), name


def test_bytes_are_estimated_by_what_a_token_of_the_family_takes(packed):
    ds = PackedDataset(packed)
    names = ["length", "patches", "audio_frames", "images", "audios", "videos"]
    facts = {name: ds.rows[name].to_numpy() for name in names}
    price, real = ds.record.unit_bytes, int(ds.index["length"].sum())
    assert price["image"][0] > price["image"][1] > 0 and price["video"][0] == QWEN_BYTES["video"][0]
    if packed.name == "raw":
        assert 0.5 < stored_bytes(facts, "raw", price).sum() / real < 2
        assert stored_bytes(facts, "raw").sum() < real / 3  # by the prices of Qwen's patches


def test_verify_inspect_report_and_sample(packed, omniprep, rows, tmp_path):
    deep = omniprep("verify", packed, "--deep", "--sample", 12, "--plugin", PLUGIN)
    assert deep.code == 0, deep.out + deep.err
    shown = omniprep("inspect", packed, "--row", f"{rows}:3", "--json")
    assert shown.code == 0, shown.err
    (row,) = json.loads(shown.out)["rows"]
    first = row["media"][0]["facts"]
    assert (first["width"], first["height"]) == (8, 6) and first["image_sizes"] == [70, 50]
    sampled = omniprep("sample", packed, "--rows", 12, "--out", tmp_path / "sample")
    assert sampled.code == 0, sampled.err
    pictures = sorted(path.name for path in (tmp_path / "sample" / "media").iterdir())
    assert any("image" in name for name in pictures) and any("audio" in name for name in pictures)
    assert "data:image" in (packed / "report.html").read_text()


def test_fields_of_tokens_are_cut_with_the_row(build, tmp_path, rows):
    out = tmp_path / "cut"
    assert build(out, "--max-length", 40, "--truncation", "left").code == 0
    ds = PackedDataset(out)
    whole = [ds.stored_row(number) for number in range(12) if ds.rows["bin"][number].as_py() is not None]
    assert any(len(row["input_ids"]) == 40 for row in whole)
    for row in whole:
        assert row["position_in_row"].tolist() == list(range(len(row["input_ids"])))


def changed(folder, old, new):
    text = PLUGIN.read_text()
    assert old in text
    (folder / "changed.py").write_text(text.replace(old, new))
    return folder / "changed.py"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"image_sizes": np.array([pixels.shape[:2]]', '"image_sizes": 1 << 40 | np.array([pixels.shape[:2]]',
         "field 'image_sizes' has values of int64 that int32 cannot hold"),
        ("pixels[None],", "pixels[None] / 255,", "field 'whole' has values of float64 that uint8 cannot hold"),
        ("pixels[None],", "pixels,", "field 'whole' is of shape"),
        ("sample.ids == ctx.placeholder_id", "2 - sample.ids[1:] == ctx.placeholder_id",
         "give 'token_type_ids' of shape"),
        ('"position_in_row": np', '"position": np', "the token fields give 'position', which `fields` does not declare"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(build, tmp_path, old, new, message):
    result = build(tmp_path / "out", plugin=changed(tmp_path, old, new))
    assert result.code in (1, 2) and message in result.err and "Traceback" not in result.err, result.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('load="halved"', 'load="quartered"', "'quartered', which is not registered; known: array, patches, affine"),
        ('"picture": "chw"', '"picture": "hwc"', "picture 'hwc' does not fit flat uint8"),
        ('join="list"', 'join="heap"', "join 'heap' is none of concat, batch, pad, list"),
        ('{"by": 2}', '{"by": 2, "mask": "x"}', "its join pads no axis"),
        ('"mask": "whole_mask"', '"mask": "attention_mask"', "is one of a batch's own"),
        ('"mask": "whole_mask"', '"mask": "flags"', "its mask has the name of another column"),
        ('"std": [0.27, 0.26, 0.28]', '"std": [0.27, 0.26]', "mean and std are one number a channel"),
    ],
)  # fmt: skip
def test_declarations_that_cannot_be_are_one_line(build, tmp_path, old, new, message):
    result = build(tmp_path / "out", plugin=changed(tmp_path, old, new))
    assert result.code in (1, 2) and message in result.err and "Traceback" not in result.err, result.err


def test_a_loader_that_nothing_registers_is_one_line(packed, fresh_python):
    code = (
        "from omniprep import PackedDataset, collate\nfrom omniprep.errors import OmniprepError\n"
        f"ds = PackedDataset({str(packed)!r})\n"
        "try: collate([ds[n] for n in range(len(ds))])\nexcept OmniprepError as error: print(error)\n"
        "import sys; print([name for name in sys.modules if 'plugin' in name])"
    )
    message, modules = fresh_python(code).strip().splitlines()
    assert "'halves' is loaded by 'halved', which nothing in this process registers" in message
    assert "give --plugin FILE.py, or import the module" in message and modules == "[]"


def test_a_dataset_cannot_name_the_code_that_loads_it(packed, fresh_python, tmp_path):
    """The function that a dataset states is for the message; it is not imported, and one that is there is not called."""
    code = (
        "from dataclasses import replace\nfrom omniprep import PackedDataset, collate\n"
        "from omniprep.errors import OmniprepError\nimport sys\n"
        f"ds = PackedDataset({str(packed)!r})\n"
        "for load, loader in (('halved', 'antigravity:geohash'), ('system', 'os:system'), ('os.system', '')):\n"
        "    bins = [dict(ds[n]) for n in range(len(ds))]\n"
        "    for item in bins:\n"
        "        columns = tuple(replace(c, load=load, params=c.params | {'loader': loader}) if c.name == 'halves' "
        "else c for c in item['columns'])\n"
        "        item |= {'columns': columns, 'layout': replace(item['layout'], columns=columns)}\n"
        "    try: collate(bins)\n    except OmniprepError as error: print('nothing in this process' in str(error))\n"
        "print('antigravity' in sys.modules)"
    )
    assert fresh_python(code).split() == ["True", "True", "True", "False"]


def test_another_version_of_a_loader_is_refused(packed, checkpoint, rows):
    resolve_family(str(checkpoint), plugins=(str(PLUGIN),))
    ds = PackedDataset(packed)
    plugin = sys.modules[REGISTRY.families["every_field"].cls.__module__]
    with REGISTRY.loading("test"):
        REGISTRY.register_loader("halved", version="3", override=True)(plugin.halved)
    try:
        with pytest.raises(
            ValueError, match="was built for version '2' of its loader 'halved', registered is version '3'"
        ):
            collate([ds[number] for number in range(len(ds))])
    finally:
        with REGISTRY.loading(f"--plugin {PLUGIN}"):
            REGISTRY.register_loader("halved", version="2", override=True)(plugin.halved)
