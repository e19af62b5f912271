"""HEIC and HEIF pictures are what Pillow makes of them with pillow-heif, as in the reference; AVIF what Pillow does."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from omniprep.errors import OmniprepError, Reject
from omniprep.media import image as image_module
from omniprep.media.image import decode_image, heif_is_read, probe_image
from omniprep.media.source import Source

pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (omniprep[heic])")
ORIENTATION = 0x0112


def picture(mode: str = "RGB", size: tuple[int, int] = (130, 86)) -> Image.Image:
    width, height = size
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    made = Image.fromarray(np.roll(ramp, 40, axis=1)).convert(mode)
    if "A" in mode:
        made.putalpha(Image.radial_gradient("L").resize(size))
    return made


def encoded(form: str, made: Image.Image, **options: Any) -> bytes:
    assert heif_is_read()
    file = io.BytesIO()
    made.save(file, form, quality=80, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_pixels_and_size_are_pillows(form: str, orientation: int | None, exif: str) -> None:
    """The size from the header too; a HEIC is turned by its own transformation and not once more by its EXIF data."""
    tags = Image.Exif()
    if orientation is not None:
        tags[ORIENTATION] = orientation
    data = encoded(form, picture(), exif=tags.tobytes())
    with Image.open(io.BytesIO(data)) as reference:
        assert reference.format == form
        wanted = ImageOps.exif_transpose(reference) if exif == "apply" else reference
        wanted = wanted.convert("RGB")
    source = Source(data=data)
    decoded = decode_image(source, exif=exif)
    assert probe_image(source, exif=exif) == decoded.size == wanted.size
    assert np.array_equal(np.asarray(decoded), np.asarray(wanted))
    if form == "HEIF" and orientation in (5, 6, 8):
        assert decoded.size == (86, 130)


@pytest.mark.parametrize("form", ["HEIF", "AVIF"])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes(form: str, mode: str) -> None:
    data = encoded(form, picture(mode))
    with Image.open(io.BytesIO(data)) as reference:
        wanted = np.asarray(reference.convert("RGB"))
    assert np.array_equal(np.asarray(decode_image(Source(data=data))), wanted)


@pytest.mark.parametrize("brand", [b"mif1", b"heix", b"heim"])
def test_other_brands_of_the_same_picture(brand: bytes) -> None:
    data = encoded("HEIF", picture())
    other = data[:8] + brand + data[12:]
    assert np.array_equal(np.asarray(decode_image(Source(data=other))), np.asarray(decode_image(Source(data=data))))


def test_damaged_ones_are_rejected() -> None:
    data = encoded("HEIF", picture())
    for length in (12, 24, 100, len(data) // 2, len(data) - 20):
        with pytest.raises(Reject) as caught:
            decode_image(Source(data=data[:length]))
        assert caught.value.code in ("bad_media", "decode_error") and "pip install" not in caught.value.message
    # What libheif conceals, the reference would train on too.
    damaged = data[:-200] + bytes(200)
    with Image.open(io.BytesIO(damaged)) as reference:
        wanted = np.asarray(reference.convert("RGB"))
    assert np.array_equal(np.asarray(decode_image(Source(data=damaged))), wanted)


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    with pytest.raises(Reject) as caught:
        probe_image(Source(data=encoded("HEIF", picture())))
    assert caught.value.code == "image_too_large"


def test_without_the_package_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("HEIF", picture())
    monkeypatch.setattr(image_module, "heif_is_read", lambda: False)
    for read in (probe_image, decode_image):
        with pytest.raises(Reject, match="pip install pillow-heif, or convert it to JPEG or PNG") as caught:
            read(Source(data=data))
        assert caught.value.code == "bad_media"


@pytest.mark.parametrize("codec", ["delta", "source"])
def test_a_build_has_the_pixels_of_the_picture(
    tmp_path: Path, omniprep: Any, model_dir: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """The same bins as of a PNG with the decoded pixels; files that are stored are decoded where they are read."""
    data = encoded("HEIF", picture(size=(140, 112)))
    (tmp_path / "a.heic").write_bytes(data)
    decode_image(Source(data=data)).save(tmp_path / "a.png")
    bins = []
    for name in ("a.heic", "a.png"):
        row = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "x"}]}
        (tmp_path / "in.jsonl").write_text(json.dumps({**row, "images": [name]}))
        options = ("--model", model_dir, "--bin-length", 512, "--workers", 0, "--pixel-codec", codec, "--quiet")
        out = tmp_path / f"{name}-packed"
        done = omniprep("build", tmp_path / "in.jsonl", *options, "--out", out)
        assert done.code == 0 and "rejected:" not in done.err, done
        from omniprep import PackedDataset

        bins.append(PackedDataset(str(out), check_pixels="always")[0])
        versions = json.loads((out / "manifest.json").read_text())["versions"]
        assert versions["pillow-heif"] == pillow_heif.__version__
    heic, png = bins
    assert np.array_equal(heic["input_ids"], png["input_ids"])
    assert np.array_equal(heic["pixel_values"], png["pixel_values"]) and len(heic["pixel_values"])
    if codec == "source":
        monkeypatch.setattr(image_module, "heif_is_read", lambda: False)
        with pytest.raises(OmniprepError, match="pip install pillow-heif"):
            PackedDataset(str(tmp_path / "a.heic-packed"))[0]
