"""Pixels stored by a codec come back as they were, whatever their shape; the same bytes each time; damage is told."""

import contextlib
import hashlib
import importlib
import io
import os
import pkgutil
import re
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omniprep.errors import DamagedDataError, OmniprepError, UsageError
from omniprep.families.qwen.vision import image_patches, video_patches
from omniprep.shards import codecs
from omniprep.shards.codecs import CODECS, codec_of, delta, with_codec
from omniprep.shards.codecs.picture import PictureShape
from omniprep.shards.reader import decode
from omniprep.shards.schema import Bin, Column, arrow_schema, read_layout
from omniprep.shards.writer import serialize_bin

STORED = tuple(name for name in CODECS if name not in ("raw", "source"))  # test_source_codec.py has that one
FORMAT_PAGE = Path(__file__).resolve().parent.parent / "docs" / "format.md"
PINNED_RESIDUALS = "cdede9574432bfcc614fd9f9f00467c95cdb4bb16900baedcfd92ebcbc8743e5"
PARAMS = {"mean": [0.5] * 3, "std": [0.5] * 3, "patch_size": 14, "temporal_patch_size": 2}


def column(values: int, codec: str, **params: int) -> Column:
    raw = Column(
        name="pixels", modality="image", kind="flat", dtype="uint8", shape=(values,), sizes="prod(grid)",
        load="patches", params=PARAMS | params,
    )  # fmt: skip
    try:
        return with_codec([raw], codec)[0]
    except UsageError as error:
        pytest.skip(str(error))


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y + x, 2 * y, x * y // 50], axis=-1).astype(np.uint8)


def there_and_back(form: Column, parts: list[np.ndarray], grids: list[np.ndarray]) -> int:
    data = codec_of(form).encode_items(form, parts, grids)
    assert np.array_equal(data, codec_of(form).encode_items(form, parts, grids))
    out = np.zeros((sum(map(len, parts)), form.unit), np.uint8)
    codec_of(form).decode_items(form, data, np.array(grids), out)
    assert np.array_equal(out, np.concatenate(parts))
    return data.size


@pytest.mark.parametrize("codec", STORED)
def test_images_and_videos(codec: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    images = [image_patches(noise), image_patches(smooth(280, 420))]
    size = there_and_back(column(588, codec), images, [np.array([1, 4, 6]), np.array([1, 20, 30])])
    assert size < 1.2 * noise.size + 0.5 * images[1].size
    frames = np.stack([smooth(56, 84), noise, noise, smooth(56, 84)])
    there_and_back(column(1176, codec), [video_patches(frames)], [np.array([2, 4, 6])])


@pytest.mark.parametrize("codec", STORED)
def test_shapes_that_make_no_picture_are_stored_as_they_are(codec: str) -> None:
    rng = np.random.default_rng(1)
    odd = rng.integers(0, 256, (15, 588), np.uint8)
    long = rng.integers(0, 256, (2 * 1200, 588), np.uint8)  # 28 x 16,800 pixels, wider than WebP can be
    there_and_back(column(588, codec), [odd, long], [np.array([1, 3, 5]), np.array([1, 2, 1200])])
    there_and_back(column(1176, codec), [rng.integers(0, 256, (2 * 1200, 1176), np.uint8)], [np.array([1, 2, 1200])])


@pytest.mark.parametrize("without_numba", [False, True])
@given(
    side=st.sampled_from([4, 8, 9, 14, 16, 27]), merge=st.sampled_from([1, 2, 3]), frames=st.sampled_from([1, 2]),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)), seed=st.integers(0, 1 << 16),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_delta_of_any_picture(without_numba, side, merge, frames, blocks, seed) -> None:
    """All byte values, any size of patch and block, stills and pairs of frames; with and without the compiled part."""
    steps, rows, columns = blocks
    grid = np.array([steps, rows * merge, columns * merge])
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (int(grid.prod()), 3 * frames * side * side), np.uint8)
    if seed % 2:  # smooth, as photographs are: long runs of equal residuals
        patches //= 64
    form = column(patches.shape[1], "delta", patch_size=side, merge_size=merge)
    with arithmetic(without_numba):
        there_and_back(form, [patches], [grid])


@contextlib.contextmanager
def arithmetic(without_numba: bool) -> Iterator[None]:
    """The compiled kernels from the first picture on, or numpy alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "KERNELS_AFTER", 0)
        patch.setattr(delta._COMPILED, "is_ready", lambda pictures: True)
        if without_numba:
            patch.setitem(sys.modules, "omniprep.shards.codecs.delta_kernels", None)
            patch.delattr("omniprep.shards.codecs.delta_kernels", raising=False)
        yield


def crops(shape: tuple[int, ...], picture: str, codec: str, sizes: str = "count") -> Column:
    """A column of whole pictures, as families of crops and tiles declare it."""
    params = {"picture": picture}
    raw = Column(
        name="pixels", modality="image", kind="flat", dtype="uint8", shape=shape, sizes=sizes, load="array",
        params=params,
    )  # fmt: skip
    try:
        return with_codec([raw], codec)[0]
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("codec", STORED)
@pytest.mark.parametrize("without_numba", [False, True])
@given(
    sides=st.tuples(st.integers(1, 70), st.integers(1, 70)), picture=st.sampled_from(["chw", "hwc"]),
    frames=st.sampled_from([(), (1,), (3,)]), counts=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    seed=st.integers(0, 1 << 16),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_crops_of_any_size(codec, without_numba, sides, picture, frames, counts, seed) -> None:
    """Columns whose units are whole pictures, planes or pixels, of any size: as the column declares them."""
    shape = (*frames, 3, *sides) if picture == "chw" else (*frames, *sides, 3)
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 256, (count, *shape), np.uint8) // (1 + seed % 2 * 60) for count in counts]
    form = crops(shape, picture, codec)
    with arithmetic(without_numba):
        data = codec_of(form).encode_items(form, parts, [np.array(count) for count in counts])
        out = np.zeros((sum(counts), *shape), np.uint8)
        codec_of(form).decode_items(form, data, np.array(counts), out)
    assert np.array_equal(out, np.concatenate(parts))


def test_a_crop_lies_as_its_column_says() -> None:
    """The same picture as planes and as pixels has the same bytes: the layout is declared, and not guessed."""
    pixels = smooth(32, 48)
    stored = [
        codec_of(form).encode_items(form, [unit[None]], [np.array(1)])
        for form, unit in (
            (crops((3, 32, 48), "chw", "delta"), pixels.transpose(2, 0, 1)),
            (crops((32, 48, 3), "hwc", "delta"), pixels),
        )
    ]
    assert np.array_equal(*stored)


@pytest.mark.parametrize(
    ("shape", "picture"), [((384, 384, 3), "chw"), ((3, 384, 384), "hwc"), ((588,), "chw"), ((3, 8, 8), "cwh")]
)
def test_a_picture_that_does_not_fit_its_shape_is_refused(shape, picture) -> None:
    with pytest.raises(OmniprepError, match="picture"):
        crops(shape, picture, "delta")


def test_uint8_without_declared_pictures_is_stored_raw() -> None:
    plain = Column(name="mask", modality="image", kind="flat", dtype="uint8", shape=(3, 8, 8), sizes="count")
    assert with_codec([plain], "delta") == (plain,)
    with pytest.raises(OmniprepError, match="needs uint8 whose pictures are declared"):
        replace(plain, params={"codec": "delta"})


def test_pictures_are_decoded_by_several_threads_at_once() -> None:
    form = column(588, "delta")
    patches = image_patches(smooth(280, 420))
    data = codec_of(form).encode_items(form, [patches], [np.array([1, 20, 30])])

    def decoded(_: int) -> bool:
        out = np.zeros_like(patches)
        codec_of(form).decode_items(form, data, np.array([[1, 20, 30]]), out)
        return np.array_equal(out, patches)

    with arithmetic(without_numba=False), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(decoded, range(64)))


def test_four_lines_of_numpy_read_delta() -> None:
    """The recipe of docs/format.md, word for word."""
    recipe = re.search(r"```python\n(# delta\n.*?)```", FORMAT_PAGE.read_text(), re.DOTALL)
    assert recipe, "docs/format.md shows how to undo delta"
    pixels = np.stack([smooth(56, 84), smooth(56, 84)[::-1]])
    form = column(1176, "delta")
    data = codec_of(form).encode_items(form, [video_patches(pixels)], [np.array([1, 4, 6])])
    length, tall, width = np.frombuffer(data[4:16].tobytes(), np.uint32).tolist()
    names = {
        "np": np,
        "pa": pa,
        "blob": data[16 : 16 + length].tobytes(),
        "frames": 2,
        "height": tall // 2,
        "width": width,
    }
    exec(recipe.group(1), names)
    assert np.array_equal(names["pixels"], pixels)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_delta_is_refused_or_another_picture(data) -> None:
    """Cut, spliced and flipped bytes give DamagedDataError or pixels, and never touch what lies beyond the patches."""
    form, grid = column(588, "delta"), np.array([1, 4, 6])
    stored = codec_of(form).encode_items(form, [image_patches(smooth(56, 84))], [grid]).copy()
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "cut", "grow", "length"]))
        at = data.draw(st.integers(0, max(len(stored) - 1, 0)))
        if kind == "flip" and len(stored):
            stored[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            stored = stored[:at].copy()
        elif kind == "grow":
            stored = np.concatenate([stored[:at], np.zeros(data.draw(st.integers(1, 64)), np.uint8), stored[at:]])
        elif len(stored) >= 8:
            stored[4:8] = np.frombuffer(np.uint32(data.draw(st.integers(0, 2**32 - 1))).tobytes(), np.uint8)
    memory = np.full(24 * 588 + 128, 7, np.uint8)
    with contextlib.suppress(DamagedDataError):
        codec_of(form).decode_items(form, stored, grid[None], memory[64:-64].reshape(24, 588))
    assert (memory[:64] == 7).all() and (memory[-64:] == 7).all()


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("merge", [1, 2, 3])
@pytest.mark.parametrize("side", [2, 7, 8, 12, 14, 15, 16, 24, 32])
def test_compiled_and_numpy_make_the_same_patches_and_residuals(side: int, merge: int, frames: int) -> None:
    """Whatever the layout of the pixels: rows with their colors apart, which the compiled function takes, or not."""
    from omniprep.shards.codecs import delta_kernels

    assert delta_kernels.__name__ in sys.modules  # or numpy would do it
    random = np.random.default_rng(0)
    for rows, columns in ((1, 1), (3, 2), (2, 9)):
        shape = PictureShape(frames, rows * merge * side, columns * merge * side, side, side, merge)
        apart = random.integers(0, 256, (frames, shape.height, 3, shape.width), np.uint8)
        layouts = [np.moveaxis(apart, 2, 3), np.ascontiguousarray(np.moveaxis(apart, 2, 3))]
        patches = [np.full(shape.size + 64, 7, np.uint8) for _ in layouts]
        for target, pixels in zip(patches, layouts, strict=True):
            shape.fill_patches(target[32:-32], pixels)
            assert np.array_equal(shape.pixels(target[32:-32]), pixels)
            assert (target[:32] == 7).all() and (target[-32:] == 7).all()
        assert np.array_equal(*patches)
        if side < 8:  # narrower than what the compiled functions copy
            continue
        residuals = np.full(shape.size + 64, 7, np.uint8)
        delta_kernels.residuals_of_patches(patches[0][32:-32].copy(), *shape.cut, residuals[32:-32])
        assert np.array_equal(residuals[32:-32], delta.residuals_of_pixels(layouts[0]).reshape(-1))
        assert (residuals[:32] == 7).all() and (residuals[-32:] == 7).all()


def test_delta_bytes_are_pinned() -> None:
    """What zstd makes may change with its version; the residuals may not, or old datasets become other pictures."""
    residuals = delta.residuals_of_pixels(smooth(28, 28)[None])
    assert hashlib.sha256(residuals.tobytes()).hexdigest() == PINNED_RESIDUALS


def test_delta_codes_the_bytes_that_match_nothing() -> None:
    """The parameters that make zstd skip ahead would leave literals as they are: 8 bits for noise of 3.6."""
    noise = np.random.default_rng(0).normal(0, 3, (280, 420, 3)).round().astype(np.int64)
    pixels = np.cumsum(np.cumsum(noise, axis=0), axis=1).astype(np.uint8)  # whose residuals are noise again
    patches = image_patches(pixels)
    size = there_and_back(column(588, "delta"), [patches], [np.array([1, 20, 30])])
    assert size < 0.6 * patches.nbytes


@pytest.mark.parametrize("options", [{}, {"checksum_flag": 1}, {"compression_level": 19}, {"window_log": 12}])
def test_delta_is_read_whatever_zstd_wrote_it_with(options: dict[str, int]) -> None:
    """Datasets of earlier parameters, and of other programs, stay readable."""
    zstd = delta.zstd_module()
    known = {getattr(zstd.CompressionParameter, name): value for name, value in options.items()}
    pixels = smooth(280, 420)
    residuals = delta.residuals_of_pixels(pixels[None]).tobytes()
    form, grid = column(588, "delta"), np.array([1, 20, 30])
    blob = np.frombuffer(zstd.compress(residuals, options=known), np.uint8)
    head = np.array([1, len(blob), 280, 420], np.uint32).view(np.uint8)
    out = np.zeros((600, 588), np.uint8)
    codec_of(form).decode_items(form, np.concatenate([head, blob]), grid[None], out)
    assert np.array_equal(out, image_patches(pixels))


def test_every_codec_of_the_folder_can_be_chosen() -> None:
    modules = [info.name for info in pkgutil.iter_modules(codecs.__path__)]
    named = [name for name in modules if hasattr(importlib.import_module(f"omniprep.shards.codecs.{name}"), "Codec")]
    assert sorted(named) == sorted({*STORED, "source"})
    for name in named:
        assert importlib.import_module(f"omniprep.shards.codecs.{name}").Codec.name == name


def test_a_codec_of_a_newer_version_is_named() -> None:
    form = replace(column(588, "delta"), params=PARAMS | {"codec": "gamma"})
    with pytest.raises(DamagedDataError, match="pixel codec 'gamma' is not known"):
        codec_of(form).decode_items(form, np.zeros(4, np.uint8), np.array([[1, 4, 6]]), np.zeros((24, 588), np.uint8))


def test_a_picture_of_another_size_is_damage() -> None:
    form = column(588, "webp")
    data = codec_of(form).encode_items(form, [image_patches(smooth(56, 84))], [np.array([1, 4, 6])])
    with pytest.raises(DamagedDataError, match="84x56 pixels where the grid has"):
        codec_of(form).decode_items(form, data, np.array([[1, 4, 4]]), np.zeros((16, 588), np.uint8))


def test_a_bin_is_read_as_raw_is() -> None:
    grid = Column(name="grid", modality="image", kind="items", shape=(3,))
    patches = image_patches(smooth(56, 84))
    results = []
    for codec in ("raw", "webp"):
        schema = arrow_schema((grid, column(588, codec)), family="toy", modalities=("image",))
        item = Bin(
            input_ids=np.arange(5, dtype=np.int32), labels=np.arange(5, dtype=np.int32), position_ids=None,
            cu_seqlens=np.array([0, 5], np.int32), row_ids=np.zeros(1, np.int32),
            row_items=np.full((1, 1), 2, np.int32),
            media={"grid": [np.array([1, 4, 6])] * 2, "pixels": [patches, patches[::-1]]},
        )  # fmt: skip
        results.append((decode(serialize_bin(item, schema), schema, read_layout(schema)), schema))
    (raw, _), (coded, schema) = results
    assert np.array_equal(raw["pixels"], coded["pixels"]) and raw["pixels"].shape == coded["pixels"].shape
    params = read_layout(schema).columns[1].params
    assert params["codec"] == "webp" and params["codec_library"].startswith("libwebp ")
    assert with_codec(read_layout(schema).columns, "raw")[1].params == PARAMS


def test_damage_is_told(tmp_path: Path) -> None:
    form = column(588, "webp")
    data = codec_of(form).encode_items(form, [image_patches(smooth(56, 84))], [np.array([1, 4, 6])]).copy()
    data[30:60] ^= 255
    with pytest.raises(DamagedDataError, match="pixels"):
        codec_of(form).decode_items(form, data, np.array([[1, 4, 6]]), np.zeros((24, 588), np.uint8))
    with pytest.raises(DamagedDataError, match="pixels"):
        codec_of(form).decode_items(form, data[:3], np.array([[1, 4, 6]]), np.zeros((24, 588), np.uint8))


def test_unknown_codec() -> None:
    with pytest.raises(UsageError, match="known: delta, source, raw, webp, jxl"):
        with_codec([], "gif")


def replaced(data: np.ndarray, blob: bytes) -> np.ndarray:
    """The column's bytes with another picture in place of its only one."""
    head = bytearray(data[:16].tobytes())
    head[4:8] = struct.pack("<I", len(blob))
    return np.frombuffer(bytes(head) + blob, np.uint8)


def other_pictures() -> dict[str, bytes]:
    made = {}
    for kind in ("PNG", "TIFF", "BMP", "JPEG", "EPS", "TGA"):
        file = io.BytesIO()
        Image.new("RGB", (84, 56)).save(file, kind)
        made[kind] = file.getvalue()
    return made | {
        "eps in a webp's place": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 84 56\n%%EndComments\nshowpage\n%%EOF\n",
        "nothing": b"",
        "zeros": bytes(100),
        "huge VP8X": b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\xff\xff\xff\0" + bytes(40),
        "huge VP8L": b"RIFF\x40\0\0\0WEBPVP8L\x20\0\0\0\x2f\xff\xff\xff\x0f" + bytes(40),
        "huge jxl": b"\xff\x0a" + b"\xff" * 30,
    }


@pytest.mark.parametrize("codec", ["webp", "jxl"])
@pytest.mark.parametrize("name", [*other_pictures()])
def test_a_blob_of_another_format_or_size_is_damage(
    codec: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset of a stranger: its pictures are read as what the column says, of the size that the grid has; Pillow
    alone would start Ghostscript for the EPS.
    """
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    form, grid = column(588, codec), np.array([[1, 4, 6]])
    good = codec_of(form).encode_items(form, [image_patches(smooth(56, 84))], [grid[0]])
    with pytest.raises(DamagedDataError, match="pixels"):
        codec_of(form).decode_items(form, replaced(good, other_pictures()[name]), grid, np.zeros((24, 588), np.uint8))
    assert not ran.exists()


@pytest.mark.parametrize("codec", ["webp", "jxl"])
def test_sizes_are_held_against_the_grid(codec: str) -> None:
    form = column(588, codec)
    good = codec_of(form).encode_items(form, [image_patches(smooth(56, 84))], [np.array([1, 4, 6])])
    out = np.zeros((24, 588), np.uint8)
    codec_of(form).decode_items(form, good, np.array([[1, 4, 6]]), out)
    with pytest.raises(DamagedDataError, match="where the grid has"):
        codec_of(form).decode_items(form, good, np.array([[1, 6, 4]]), out)  # as many patches in another shape
    other = codec_of(form).encode_items(form, [image_patches(smooth(84, 56))], [np.array([1, 6, 4])])
    with pytest.raises(DamagedDataError, match="header says"):
        codec_of(form).decode_items(form, replaced(good, other[16:].tobytes()), np.array([[1, 4, 6]]), out)


@pytest.mark.parametrize("codec", ["webp", "jxl"])
@settings(max_examples=150, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), min_size=1, max_size=5),
    cut=st.integers(0, 60),
)
def test_damaged_blobs_are_damage_or_pixels(codec: str, flips: list[tuple[int, int]], cut: int) -> None:
    form, grid = column(588, codec), np.array([1, 4, 6])
    data = codec_of(form).encode_items(form, [image_patches(smooth(56, 84))], [grid]).copy()
    for at, bit in flips:
        data[at % len(data)] ^= 1 << bit
    try:
        codec_of(form).decode_items(
            form, data[: len(data) - cut if cut < 30 else None], grid[None], np.zeros((24, 588), np.uint8)
        )
    except DamagedDataError as error:
        assert "pixels" in str(error)
