"""`--pixel-codec source`: files in place of pixels give the pixels of raw, are stored once, and never pass for others."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_families import FAMILIES

from omniprep import PackedDataset, io
from omniprep.errors import DamagedDataError, OmniprepError, OtherPixelsError
from omniprep.media import recipe as recipes
from omniprep.media.recipe import PixelRecipe, make_pixels
from omniprep.media.source import Source
from omniprep.shards import files
from omniprep.shards.codecs import codec_names, source, with_codec
from omniprep.shards.codecs.picture import picture_shapes
from omniprep.shards.files import FilePlaces, MediaFile, StoredItem, patches_digest
from omniprep.shards.schema import Column

VISION = tuple(name for name in FAMILIES if name != "qwen2_audio")
LOSSLESS = ("delta", "webp", *(["jxl"] if find_spec("pillow_jxl") else []))  # jxl: omniprep[jxl]
PARAMS = {"mean": [0.5] * 3, "std": [0.5] * 3, "patch_size": 14, "temporal_patch_size": 2}


def write_rows(folder: Path, rows: list[dict], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(tag: str, answer: str = "It is.") -> list[dict]:
    return [{"role": "user", "content": f"{tag}What is it?"}, {"role": "assistant", "content": answer}]


def save_picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    """A photograph-like picture: smooth, with noise; JPEG or PNG by the name."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).astype(int) + rng.integers(-6, 7, (size[1], size[0], 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def build(omniprep, inputs: Path, model: Path, out: Path, *options: object) -> PackedDataset:
    common = ("--model", model, "--workers", 0, "--quiet", "--out", out)
    done = omniprep("build", inputs, *common, *options)
    assert done.code == 0, done.err
    return PackedDataset(out)


def assert_equal(one: PackedDataset, other: PackedDataset) -> None:
    assert len(one) == len(other) > 0
    for number in range(len(one)):
        a, b = one[number], other[number]
        assert a.keys() == b.keys()
        for name, value in a.items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, b[name]), (number, name)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Rows with every way in which pixels come: JPEG, PNG, transparency, EXIF, videos, frames, sound in video."""
    folder = tmp_path_factory.mktemp("media")
    shutil.copytree(SAMPLES / "media", folder / "media")
    save_picture(folder / "media/wide.jpg", (333, 97), 1)
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (60, 90, 4), np.uint8), "RGBA").save(
        folder / "media/a.png"
    )
    turned = Image.fromarray(np.random.default_rng(3).integers(0, 256, (80, 50, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "media/turned.jpg", exif=exif)
    frames = [f"media/frame_{number}.png" for number in range(3)]
    rows = [
        {"messages": chat("<image>"), "images": ["media/wide.jpg"]},
        {"messages": chat("<image><image>"), "images": ["media/a.png", "media/wide.jpg"]},
        {"messages": chat("<image>"), "images": ["media/turned.jpg"]},
        {"messages": chat("<image>"), "images": ["media/photo_flower.jpg"]},
        {"messages": chat("<video>"), "videos": ["media/balls_silent.mp4"]},
        {"messages": chat("<video>"), "videos": [frames]},
        {"messages": chat("", "Nothing.")},
    ]
    write_rows(folder, rows)
    return folder


@pytest.mark.parametrize("family", VISION)
def test_every_codec_of_every_family_gives_what_raw_gives(omniprep, media, tmp_path, family, model_dir) -> None:
    """Images, transparency, EXIF, videos and lists of frames, of each family that has pixels."""
    if family == "qwen2_5_omni":
        model = model_dir
    else:
        pytest.importorskip("dashscope", reason="the Qwen vocabulary comes with dashscope (omniprep[demo])")
        from omniprep.testing.init_model import init_model

        model = init_model(tmp_path / "model", family)
    options = ("--bin-length", 2048, "--max-pixels", 50176, "--video-max-pixels", 25088)
    raw = build(omniprep, media / "rows.jsonl", model, tmp_path / "raw", *options, "--pixel-codec", "raw")
    kept = build(omniprep, media / "rows.jsonl", model, tmp_path / "source", *options, "--pixel-codec", "source")
    assert set(codec_names(kept.layout.columns).values()) == {"source"}
    assert_equal(raw, kept)
    for codec in LOSSLESS:
        done = omniprep("repack", kept.uri, "--bin-length", 2048, "--pixel-codec", codec, "--out", tmp_path / codec)
        assert done.code == 0, done.err
        assert_equal(raw, PackedDataset(tmp_path / codec))


@pytest.mark.parametrize("model_type", ["gemma3", "glm4v"])
def test_the_hf_family_stores_crops_and_patches_by_delta(omniprep, media, tmp_path, model_type) -> None:
    """Pixels made by a processor in Python: compressed as its columns declare them, never left in files."""
    from omniprep.testing.init_model import init_model

    model = init_model(tmp_path / "model", model_type)
    rows = [{"messages": chat("<image>"), "images": [f"media/{name}"]} for name in ("wide.jpg", "photo_flower.jpg")]
    path = write_rows(media, rows, "hf.jsonl")
    raw = build(omniprep, path, model, tmp_path / "raw", "--bin-length", 8192, "--pixel-codec", "raw")
    kept = build(omniprep, path, model, tmp_path / "source", "--bin-length", 8192, "--pixel-codec", "source")
    assert set(kept.manifest["pixel_codecs"].values()) == {"delta"}
    assert_equal(raw, kept)
    for codec in LOSSLESS:
        done = omniprep("repack", kept.uri, "--bin-length", 8192, "--pixel-codec", codec, "--out", tmp_path / codec)
        assert done.code == 0, done.err
        assert_equal(raw, PackedDataset(tmp_path / codec))


@pytest.mark.parametrize(
    "options",
    [
        ("--use-audio-in-video", "--silent-video", "skip-audio"),
        ("--exif", "apply", "--alpha", "white"),
        ("--fps", 1, "--chat-template-kwargs", "apply"),
    ],
)
def test_options_that_change_pixels_go_with_the_files(omniprep, media, model_dir, tmp_path, options) -> None:
    limits = ("--bin-length", 2048, "--video-max-pixels", 25088)
    raw = build(omniprep, media / "rows.jsonl", model_dir, tmp_path / "r", *limits, *options, "--pixel-codec", "raw")
    kept = build(
        omniprep, media / "rows.jsonl", model_dir, tmp_path / "s", *limits, *options, "--pixel-codec", "source"
    )
    assert_equal(raw, kept)


@pytest.fixture(scope="module")
def shared(omniprep, model_dir, tmp_path_factory) -> PackedDataset:
    """40 rows about one photograph and 5 about others, in many bins of one shard."""
    folder = tmp_path_factory.mktemp("shared")
    save_picture(folder / "often.jpg", (320, 240), 0)
    rows = [{"messages": chat("<image>", f"Answer {n}."), "images": ["often.jpg"]} for n in range(40)]
    for number in range(5):
        save_picture(folder / f"{number}.jpg", (320, 240), number + 1)
        rows.insert(number * 7, {"messages": chat("<image>"), "images": [f"{number}.jpg"]})
    path = write_rows(folder, rows)
    return build(omniprep, path, model_dir, folder / "out", "--bin-length", 512, "--pixel-codec", "source")


def test_a_file_is_stored_once_however_many_rows_use_it(shared) -> None:
    folder = Path(shared.uri)
    sizes = [path.stat().st_size for path in folder.parent.glob("*.jpg")]
    assert len(shared) > 10
    content = (folder / "shards/00000.arrow").read_bytes()
    for path in folder.parent.glob("*.jpg"):
        assert content.count(path.read_bytes()) == 1
    tokens = int(shared.index["tokens"].sum()) * 20
    # Beside files and tokens: Arrow's metadata, a table of some 400 bytes an item, and paddings.
    assert len(content) < sum(sizes) + tokens + 3000 * len(shared) + 4096


def test_a_bin_is_one_request_also_where_it_uses_files_of_others(shared, monkeypatch) -> None:
    store = f"memory://source-{Path(shared.uri).parent.name}"
    for path in Path(shared.uri).rglob("*"):
        if path.is_file() and path.suffix in (".json", ".parquet", ".arrow"):
            io.write_atomic(f"{store}/{path.relative_to(shared.uri)}", path.read_bytes())
    far = PackedDataset(store)
    assert far.layout == shared.layout
    reads: list[tuple[int, int]] = []
    read_range = io.read_range
    monkeypatch.setattr(
        io, "read_range", lambda uri, start, end: reads.append((start, end)) or read_range(uri, start, end)
    )
    assert (far.index["before"] > 0).sum() > 5
    for number in range(len(far)):
        item, near = far[number], shared[number]
        assert np.array_equal(item["pixel_values"], near["pixel_values"])
    assert len(reads) == len(far)


def test_files_of_earlier_bins_are_reached_while_little_is_read_for_nothing() -> None:
    first, second = MediaFile(bytes(1000), "a"), MediaFile(bytes(8 << 20), "b")
    places = FilePlaces({"a": 5000, "b": 100_000})
    start = 100_000 + (8 << 20) + files.SPARE_BYTES
    assert places.reused([first, second], start) == {"b": start - 100_000, "a": start - 5000}
    assert places.reused([first], start) == {}  # 10 MiB for 1,000 bytes
    assert places.reused([first], 5000 + files.SPARE_BYTES) == {"a": files.SPARE_BYTES}
    assert places.reused([second], start + (6 << 20)) == {"b": start + (6 << 20) - 100_000}  # as many as it needs
    assert places.reused([second], start + (7 << 20)) == {}


@contextlib.contextmanager
def another_decoder() -> Iterator[None]:
    """A machine whose library resizes a little differently."""
    with pytest.MonkeyPatch.context() as patch:
        real = recipes.make_pixels
        patch.setattr(source, "make_pixels", lambda *args: real(*args) ^ np.uint8(1))
        patch.setattr(source, "decoders", lambda: "Pillow 99.0")
        yield


def test_other_pixels_are_an_error_that_names_both_versions(shared) -> None:
    with another_decoder():
        with pytest.raises(OtherPixelsError) as told:
            PackedDataset(shared.uri)[0]
        text = str(told.value)
        built_with = shared.layout.columns[[c.name for c in shared.layout.columns].index("pixel_values")].params
        assert (
            built_with["codec_library"] in text and "Pillow 99.0" in text and "Pillow " in built_with["codec_library"]
        )
        assert "omniprep repack --pixel-codec delta" in text and "bin 0" in text and "image 1" in text
        PackedDataset(shared.uri, check_pixels="never")[0]


def test_pixels_are_compared_at_the_first_reading_always_or_never(shared) -> None:
    first, always = PackedDataset(shared.uri), PackedDataset(shared.uri, check_pixels="always")
    first[0], always[0]
    with another_decoder():
        first[0]
        with pytest.raises(OtherPixelsError):
            always[0]
        with pytest.raises(OtherPixelsError):
            first[1]
    with pytest.raises(OmniprepError, match="check_pixels"):
        PackedDataset(shared.uri, check_pixels="sometimes")


@pytest.mark.parametrize("command", ["verify", "repack", "inspect", "sample", "report", "train"])
def test_commands_compare_pixels_and_can_be_told_not_to(omniprep, shared, tmp_path, command, model_dir) -> None:
    options: dict[str, tuple] = {
        "verify": (),
        "repack": ("--bin-length", 512, "--pixel-codec", "raw", "--out", tmp_path / "raw", "--overwrite"),
        "inspect": (),
        "sample": ("--out", tmp_path / "some"),
        "report": ("--out", tmp_path / "report.html"),
        "train": ("--model", model_dir, "--out", tmp_path / "run", "--max-steps", 1, "--device", "cpu",
                  "--num-workers", 0, "--overwrite"),
    }  # fmt: skip
    with another_decoder():
        told = omniprep(command, shared.uri, *options[command])
        assert told.code == 1 and "Pillow 99.0" in told.out + told.err, (told.out, told.err)
        silent = omniprep(command, shared.uri, *options[command], "--check-pixels", "never")
        assert silent.code == 0, silent.err


def test_a_file_that_cannot_be_decoded_here_is_told_with_both_versions(shared, monkeypatch) -> None:
    from omniprep.errors import Reject, RejectCode

    def refuse(*_: object) -> None:
        raise Reject(RejectCode.BAD_MEDIA, "no decoder for AVIF")

    monkeypatch.setattr(source, "make_pixels", refuse)
    with pytest.raises(OtherPixelsError, match="no decoder for AVIF.*Built with .*this machine has"):
        PackedDataset(shared.uri, check_pixels="never")[0]


def test_only_frames_that_are_taken_are_read(omniprep, media, model_dir, tmp_path, monkeypatch) -> None:
    path = write_rows(media, [{"messages": chat("<video>"), "videos": ["media/balls_silent.mp4"]}], "video.jsonl")
    options = ("--bin-length", 2048, "--video-max-pixels", 25088, "--fps-max-frames", 4, "--pixel-codec", "source")
    ds = build(omniprep, path, model_dir, tmp_path / "v", *options)
    stored = ds.load(0, "files")["files"]["pixel_values_videos"][0]
    assert len(stored.recipe.frames) == 4 and stored.recipe.video.frames > 4
    asked = []
    real = recipes._video_frames
    monkeypatch.setattr(
        recipes,
        "_video_frames",
        lambda file, video, indices, *rest: asked.append(tuple(indices)) or real(file, video, indices, *rest),
    )
    ds[0]
    assert asked == [stored.recipe.frames]


def test_loading_needs_no_transformers_and_no_ray(shared, fresh_python) -> None:
    code = (
        "import sys; from omniprep.data import PackedDataset, stack; "
        f"stack([PackedDataset({shared.uri!r})[0]]); "
        "print([m for m in ('transformers', 'ray', 'omniprep.families') if m in sys.modules])"
    )
    assert fresh_python(code).strip() == "[]"


def test_a_dataloader_of_processes_decodes(shared) -> None:
    from torch.utils.data import DataLoader

    from omniprep.data import stack

    loaded = list(DataLoader(shared, batch_size=1, num_workers=2, collate_fn=stack))
    for number, batch in enumerate(loaded):
        assert np.array_equal(batch["pixel_values"].numpy(), shared[number]["pixel_values"])


def test_repack_moves_files_and_refuses_what_has_none(omniprep, shared, model_dir, tmp_path) -> None:
    wide = omniprep("repack", shared.uri, "--bin-length", 1024, "--out", tmp_path / "wide")
    assert wide.code == 0, wide.err
    inputs = Path(shared.uri).parent / "rows.jsonl"
    fresh = build(omniprep, inputs, model_dir, tmp_path / "fresh", "--bin-length", 1024, "--pixel-codec", "source")
    for path in (tmp_path / "wide/shards").iterdir():
        assert path.read_bytes() == (tmp_path / "fresh/shards" / path.name).read_bytes()
    assert PackedDataset(tmp_path / "wide").manifest["pixel_codecs"] == fresh.manifest["pixel_codecs"]
    part = omniprep("repack", shared.uri, "--bin-length", 512, "--pixel-codec", "delta", "--out", tmp_path / "delta")
    assert part.code == 0, part.err
    back = omniprep(
        "repack", tmp_path / "delta", "--bin-length", 512, "--pixel-codec", "source", "--out", tmp_path / "x"
    )
    assert back.code == 2 and "build it again from its inputs with --pixel-codec source" in back.err


FALLBACK = """
from omniprep.families.qwen.qwen2_5_omni import Qwen25Omni
from omniprep.registry import REGISTRY, Departure

@REGISTRY.register_family("brighter")
class Brighter(Qwen25Omni):
    departures = (*Qwen25Omni.departures, Departure(what="pixel_values", reason="its images are brighter"))

    def image_pixels(self, item):
        return super().image_pixels(item) | 1
"""


def test_pixels_that_no_recipe_gives_are_stored_by_delta(omniprep, media, model_dir, tmp_path) -> None:
    """A family that computes its images in Python of its own: they fall back, its videos do not; both are said."""
    plugin = tmp_path / "brighter.py"
    plugin.write_text(FALLBACK)
    options = ("--family", "brighter", "--plugin", plugin, "--bin-length", 2048, "--video-max-pixels", 25088)
    raw = build(omniprep, media / "rows.jsonl", model_dir, tmp_path / "raw", *options, "--pixel-codec", "raw")
    inputs = (media / "rows.jsonl", "--model", model_dir, "--workers", 0)
    done = omniprep("build", *inputs, *options, "--pixel-codec", "source", "--out", tmp_path / "s", "--quiet")
    assert done.code == 0 and "pixel_values is stored by delta" in done.out, done.out
    ds = PackedDataset(tmp_path / "s")
    assert ds.manifest["pixel_codecs"] == {"pixel_values": "delta", "pixel_values_videos": "source"}
    assert_equal(raw, ds)


def test_plan_compares_codecs_by_the_files(omniprep, shared, model_dir) -> None:
    inputs = Path(shared.uri).parent / "rows.jsonl"
    done = omniprep(
        "plan", inputs, "--model", model_dir, "--bin-length", 512, "--workers", 0, "--quiet",
        "--pixel-codec", "source", "--compare", "pixel-codec=delta", "--compare", "pixel-codec=raw",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = shared.rows
    assert rows["file_bytes"].to_pylist()[1] == (Path(shared.uri).parent / "often.jpg").stat().st_size
    line = next(line for line in done.out.splitlines() if "shards" in line)
    sizes = [
        float(number) * {"KiB": 1, "MiB": 1024}[unit] for number, unit in re.findall(r"about ([\d.]+) (KiB|MiB)", line)
    ]
    assert len(sizes) == 3 and sizes[0] < sizes[1] < sizes[2]
    line = next(line for line in done.out.splitlines() if "one core loads" in line)
    speeds = [
        float(number) * {"k": 1, "M": 1000}[unit] for number, unit in re.findall(r"([\d.]+) ?([kM]) tokens/s", line)
    ]
    assert len(speeds) == 3 and speeds[0] < speeds[1] < speeds[2]


def test_a_dataset_of_before_is_read(shared, tmp_path) -> None:
    """index.parquet of earlier versions has no column of bytes in front of a bin."""
    copy = tmp_path / "old"
    shutil.copytree(shared.uri, copy)
    table = pq.read_table(copy / "index.parquet").drop_columns(["before"])
    pq.write_table(table, copy / "index.parquet", store_schema=False)
    index = PackedDataset(copy).index
    assert (index["before"] == 0).all() and index["before"].dtype == np.int64


# ---- the codec alone


def grid_column(values: int = 588) -> Column:
    raw = Column(
        name="pixels", modality="image", kind="flat", dtype="uint8", shape=(values,), sizes="prod(grid)",
        load="patches", params=PARAMS,
    )  # fmt: skip
    return with_codec([raw], "source", ["pixels"])[0]


def png(pixels: np.ndarray) -> bytes:
    import io as files_in_memory

    file = files_in_memory.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def made_item(
    form: Column, pictures: list[bytes], recipe: PixelRecipe, grid: np.ndarray
) -> tuple[StoredItem, np.ndarray]:
    pixels = make_pixels([Source(data=data) for data in pictures], recipe)
    patches = np.empty((int(grid.prod()), form.unit), np.uint8)
    count, shape = picture_shapes(form, len(patches), grid)
    for own, picture in zip(np.split(patches, count), np.split(pixels, count), strict=True):
        shape.fill_patches(own, picture)
    return StoredItem(tuple(MediaFile.of(data) for data in pictures), recipe, patches_digest(patches)), patches


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_items_come_back(data) -> None:
    """Images and lists of frames of any size, resized once or twice, some twice, some of earlier bins."""
    codec = source.Codec()
    frames = data.draw(st.sampled_from([1, 2]))
    form, items, expected, grids = grid_column(588 * frames), [], [], []
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    side = st.integers(1, 60)
    for _ in range(data.draw(st.integers(1, 4))):
        if items and data.draw(st.booleans()):
            which = data.draw(st.integers(0, len(items) - 1))
            items.append(items[which]), expected.append(expected[which]), grids.append(grids[which])
            continue
        size = (data.draw(side), data.draw(side))
        pictures = [png(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)) for _ in range(frames)]
        rows, columns, steps = (2 * data.draw(st.integers(1, 3)) for _ in range(3))
        grid = np.array([steps if frames == 2 else 1, rows, columns])
        seen = (columns * 14, rows * 14)
        first = data.draw(st.sampled_from([seen, (seen[0] + 5, seen[1] + 9)]))
        indices = tuple(data.draw(st.integers(0, 1)) for _ in range(2 * steps)) if frames == 2 else ()
        item, patches = made_item(form, pictures, PixelRecipe(size=first, seen=seen, frames=indices), grid)
        items.append(item), expected.append(patches), grids.append(grid)
    reused: dict[str, int] = {}
    before = b""
    for file in files.distinct([items]):
        if data.draw(st.booleans()):
            before += bytes(data.draw(st.integers(0, 9))) + file.data
    for file in files.distinct([items]):
        if (at := before.find(file.data)) >= 0:
            reused[file.key] = len(before) - at
    stored, starts = codec.encode(items, reused)
    assert not starts.keys() & reused.keys()
    for file in files.distinct([items]):
        if file.key in starts:
            assert stored[starts[file.key] :][: len(file.data)].tobytes() == file.data
    again = codec.stored_items(form, stored, np.frombuffer(before, np.uint8), check=True)
    assert [(item.recipe, item.digest) for item in again] == [(item.recipe, item.digest) for item in items]
    out = np.zeros((sum(map(len, expected)), form.unit), np.uint8)
    codec.decode(form, again, np.array(grids), out, check=True)
    assert np.array_equal(out, np.concatenate(expected))


def one_item() -> tuple[Column, np.ndarray, np.ndarray]:
    form, grid = grid_column(), np.array([1, 4, 6])
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    item, _ = made_item(form, [png(pixels)], PixelRecipe(size=(84, 56), seen=(84, 56)), grid)
    return form, source.Codec().encode([item], {})[0], grid


def read_back(form: Column, stored: np.ndarray, grid: np.ndarray, *, check: bool = True) -> np.ndarray:
    codec, out = source.Codec(), np.full(24 * 588 + 128, 7, np.uint8)
    try:
        items = codec.stored_items(form, stored, np.zeros(0, np.uint8), check=check)
        codec.decode(form, items, grid[None], out[64:-64].reshape(24, 588), check=check)
    finally:
        assert (out[:64] == 7).all() and (out[-64:] == 7).all()
    return out[64:-64]


@given(data=st.data(), check=st.booleans())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_are_refused_or_pixels(data, check) -> None:
    form, stored, grid = one_item()
    changed = stored.copy()
    for _ in range(data.draw(st.integers(1, 4))):
        kind, at = (
            data.draw(st.sampled_from(["flip", "cut", "grow"])),
            data.draw(st.integers(0, max(len(changed) - 1, 0))),
        )
        if kind == "flip" and len(changed):
            changed[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            changed = changed[:at].copy()
        else:
            changed = np.concatenate([changed[:at], np.zeros(data.draw(st.integers(1, 64)), np.uint8), changed[at:]])
    try:
        pixels = read_back(form, changed, grid, check=check)
    except DamagedDataError:
        return
    assert not check or np.array_equal(pixels, read_back(form, stored, grid))


def edited(stored: np.ndarray, change) -> np.ndarray:
    """The stored bytes with a changed table."""
    length = int(stored[:4].view(np.uint32)[0])
    table = json.loads(stored[4 : 4 + length].tobytes())
    change(table)
    text = json.dumps(table).encode()
    return np.frombuffer(np.uint32(len(text)).tobytes() + text + stored[4 + length :].tobytes(), np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["items"][0]["recipe"].update(size=[1 << 20, 1 << 20]),
        lambda t: t["items"][0]["recipe"].update(size=[84]),
        lambda t: t["items"][0]["recipe"].update(seen=[56, 84]),
        lambda t: t["items"][0]["recipe"].update(seen=[0, 56]),
        lambda t: t["items"][0]["recipe"].update(listed=[1 << 20, 1 << 20]),
        lambda t: t["items"][0]["recipe"].update(frames=[0, 0]),
        lambda t: t["items"][0]["recipe"].update(frames=[1]),
        lambda t: t["items"][0]["recipe"].update(frames=[-1]),
        lambda t: t["items"][0]["recipe"].update(alpha="blue"),
        lambda t: t["items"][0]["recipe"].update(
            video={"width": 1 << 40, "height": 2, "frames": 1, "fps": 1.0, "reader": "pyav"}
        ),
        lambda t: t["items"][0]["recipe"].update(
            frames=[0], video={"width": 84, "height": 56, "frames": 1, "fps": 1.0, "reader": "gstreamer"}
        ),
        lambda t: t["items"][0].update(files=[1]),
        lambda t: t["items"][0].update(files=[]),
        lambda t: t["items"].clear(),
        lambda t: t["items"].append(t["items"][0]),
        lambda t: t["files"][0].update(start=1 << 40),
        lambda t: t["files"][0].update(length=-1),
        lambda t: t["files"][0].update(back=1),
        lambda t: t["files"][0].update(back=-1),
        lambda t: t.pop("files"),
    ],
)
def test_tables_of_strangers_are_held_against_grid_and_bytes(change) -> None:
    form, stored, grid = one_item()
    with pytest.raises(DamagedDataError):
        read_back(form, edited(stored, change), grid)


def test_a_damaged_file_of_an_earlier_bin_is_damage() -> None:
    form, stored, _ = one_item()
    codec = source.Codec()
    (item,) = codec.stored_items(form, stored, np.zeros(0, np.uint8), check=True)
    table, _ = codec.encode([item], {item.files[0].key: len(item.files[0].data)})
    before = np.frombuffer(bytes(item.files[0].data), np.uint8).copy()
    assert codec.stored_items(form, table, before, check=True)[0].digest == item.digest
    before[len(before) // 2] ^= 1
    with pytest.raises(DamagedDataError, match="earlier bin"):
        codec.stored_items(form, table, before, check=True)


def test_golden_bytes() -> None:
    """The layout of docs/format.md: old datasets stay readable."""
    file = MediaFile.of(b"not a picture")
    recipe = PixelRecipe(size=(28, 56), seen=(28, 56), alpha="white")
    stored, starts = source.Codec().encode([StoredItem((file,), recipe, "ab")] * 2, {})
    item = '{"files":[0],"hash":"ab","recipe":{"size":[28,56],"seen":[28,56],"alpha":"white"}}'
    table = f'{{"files":[{{"key":"{file.key}","length":13,"start":0}}],"items":[{item},{item}]}}'.encode()
    assert stored.tobytes() == len(table).to_bytes(4, "little") + table + b"not a picture"
    assert starts == {file.key: 4 + len(table)}


def test_the_pages_recipe_finds_the_files(shared) -> None:
    """The lines of docs/format.md that take a file out of a shard."""
    recipe = re.search(r"```python\n(# source\n.*?)```", (ROOT / "docs/format.md").read_text(), re.DOTALL)
    assert recipe, "docs/format.md shows how to take files out"
    index = shared.index
    number = int(np.argmax(index["before"]))
    with pa.OSFile(str(Path(shared.uri) / "shards/00000.arrow")) as file:
        binary = pa.ipc.open_file(file).get_batch(number)["pixel_values"][0].as_py()
    shard = (Path(shared.uri) / "shards/00000.arrow").read_bytes()
    names = {"binary": binary, "shard": shard, "offset": int(index["offset"][number])}
    exec(recipe.group(1), names)
    pictures = {path.read_bytes() for path in Path(shared.uri).parent.glob("*.jpg")}
    assert names["files"] and set(names["files"]) <= pictures


def test_files_are_told_apart_from_pixels(shared) -> None:
    """`load(…, "files")` gives the items, whose columns have no arrays."""
    item = shared.load(0, "files")
    assert "pixel_values" not in item and len(item["files"]["pixel_values"]) == len(item["image_grid_thw"])
    assert all(replace(stored.recipe).size == stored.recipe.seen for stored in item["files"]["pixel_values"])
