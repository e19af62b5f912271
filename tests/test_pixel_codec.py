"""Pixels stored by a codec come back as they were, whatever their shape; the same bytes each time; damage is told."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omniprep.errors import DamagedDataError, UsageError
from omniprep.families.qwen_vision import image_patches, video_patches
from omniprep.shards.codec import decode_pixels, encode_pixels, with_codec
from omniprep.shards.reader import decode
from omniprep.shards.schema import Bin, Column, arrow_schema, read_layout
from omniprep.shards.writer import serialize_bin

PARAMS = {"mean": [0.5] * 3, "std": [0.5] * 3, "patch_size": 14, "temporal_patch_size": 2}


def column(values: int, codec: str) -> Column:
    raw = Column(
        name="pixels", modality="image", kind="flat", dtype="uint8", shape=(values,), sizes="prod(grid)",
        load="patches", params=PARAMS,
    )  # fmt: skip
    try:
        return with_codec([raw], codec)[0]
    except UsageError as error:
        pytest.skip(str(error))


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y + x, 2 * y, x * y // 50], axis=-1).astype(np.uint8)


def there_and_back(form: Column, parts: list[np.ndarray], grids: list[np.ndarray]) -> int:
    data = encode_pixels(form, parts, grids)
    assert np.array_equal(data, encode_pixels(form, parts, grids))
    out = np.zeros((sum(map(len, parts)), form.unit), np.uint8)
    decode_pixels(form, data, np.array(grids), out)
    assert np.array_equal(out, np.concatenate(parts))
    return data.size


@pytest.mark.parametrize("codec", ["webp", "jxl"])
def test_images_and_videos(codec: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    images = [image_patches(noise), image_patches(smooth(280, 420))]
    size = there_and_back(column(588, codec), images, [np.array([1, 4, 6]), np.array([1, 20, 30])])
    assert size < 1.2 * noise.size + 0.5 * images[1].size
    frames = np.stack([smooth(56, 84), noise, noise, smooth(56, 84)])
    there_and_back(column(1176, codec), [video_patches(frames)], [np.array([2, 4, 6])])


@pytest.mark.parametrize("codec", ["webp", "jxl"])
def test_shapes_that_make_no_picture_are_stored_as_they_are(codec: str) -> None:
    rng = np.random.default_rng(1)
    odd = rng.integers(0, 256, (15, 588), np.uint8)
    long = rng.integers(0, 256, (2 * 1200, 588), np.uint8)  # 28 x 16,800 pixels, wider than WebP can be
    there_and_back(column(588, codec), [odd, long], [np.array([1, 3, 5]), np.array([1, 2, 1200])])
    there_and_back(column(1176, codec), [rng.integers(0, 256, (2 * 1200, 1176), np.uint8)], [np.array([1, 2, 1200])])


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
    data = encode_pixels(form, [image_patches(smooth(56, 84))], [np.array([1, 4, 6])]).copy()
    data[30:60] ^= 255
    with pytest.raises(DamagedDataError, match="pixels"):
        decode_pixels(form, data, np.array([[1, 4, 6]]), np.zeros((24, 588), np.uint8))
    with pytest.raises(DamagedDataError, match="pixels"):
        decode_pixels(form, data[:3], np.array([[1, 4, 6]]), np.zeros((24, 588), np.uint8))


def test_unknown_codec() -> None:
    with pytest.raises(UsageError, match="known: raw, webp, jxl"):
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
    good = encode_pixels(form, [image_patches(smooth(56, 84))], [grid[0]])
    with pytest.raises(DamagedDataError, match="pixels"):
        decode_pixels(form, replaced(good, other_pictures()[name]), grid, np.zeros((24, 588), np.uint8))
    assert not ran.exists()


@pytest.mark.parametrize("codec", ["webp", "jxl"])
def test_sizes_are_held_against_the_grid(codec: str) -> None:
    form = column(588, codec)
    good = encode_pixels(form, [image_patches(smooth(56, 84))], [np.array([1, 4, 6])])
    out = np.zeros((24, 588), np.uint8)
    decode_pixels(form, good, np.array([[1, 4, 6]]), out)
    with pytest.raises(DamagedDataError, match="where the grid has"):
        decode_pixels(form, good, np.array([[1, 6, 4]]), out)  # as many patches in another shape
    other = encode_pixels(form, [image_patches(smooth(84, 56))], [np.array([1, 6, 4])])
    with pytest.raises(DamagedDataError, match="header says"):
        decode_pixels(form, replaced(good, other[16:].tobytes()), np.array([[1, 4, 6]]), out)


@pytest.mark.parametrize("codec", ["webp", "jxl"])
@settings(max_examples=150, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), min_size=1, max_size=5),
    cut=st.integers(0, 60),
)
def test_damaged_blobs_are_damage_or_pixels(codec: str, flips: list[tuple[int, int]], cut: int) -> None:
    form, grid = column(588, codec), np.array([1, 4, 6])
    data = encode_pixels(form, [image_patches(smooth(56, 84))], [grid]).copy()
    for at, bit in flips:
        data[at % len(data)] ^= 1 << bit
    try:
        decode_pixels(form, data[: len(data) - cut if cut < 30 else None], grid[None], np.zeros((24, 588), np.uint8))
    except DamagedDataError as error:
        assert "pixels" in str(error)
