"""Codes that no other test meets, each with a real row (docs/rejects.md says what every code means)."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig
from omniprep.errors import Reject

MEDIA = Path(__file__).parent / "golden" / "media"


def chat(content: str = "Hi", **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}], **columns}


def huge_png() -> bytes:
    """A header that promises 40000 x 40000 pixels."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0")) + part(b"IEND", b"")


APPLY = {"chat_template_kwargs": "apply"}
ROWS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bad_row": ({"color": "red"}, {}),
    "bad_option": (chat(images=["rgb.jpg"], chat_template_kwargs={"max_pixels": "many"}), APPLY),
    "row_exceeds_bin": (chat("word " * 900), {"bin_length": 256, "max_length": 4096}),
    "unsupported_modality": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "smell", "smell": "rose"}]},
                {"role": "assistant", "content": "A."},
            ]
        },
        {},
    ),
    "image_too_large": (chat(images=["huge.png"]), {}),
    "no_audio_track": (chat(videos=["h264_25.mp4"]), {"use_audio_in_video": True}),
    "bad_video_option": (chat(videos=["h264_25.mp4"], chat_template_kwargs={"nframes": 5000}), APPLY),
    "too_many_items": (chat(images=["rgb.jpg", "rgb.jpg"]), {"limit_mm_per_row": ("image=1",)}),
}


@pytest.mark.parametrize("code", ROWS)
def test_code(code: str, model_dir: Path, tmp_path: Path) -> None:
    row, options = ROWS[code]
    for name in ("rgb.jpg", "h264_25.mp4"):
        (tmp_path / name).write_bytes((MEDIA / name).read_bytes())
    (tmp_path / "huge.png").write_bytes(huge_png())
    config = BuildConfig(model=str(model_dir), **{"bin_length": 8192, **options})
    with pytest.raises(Reject) as caught:
        encode_row(json.loads(json.dumps(row)), family_of(config), config, str(tmp_path))
    assert caught.value.code == code, str(caught.value)


def test_decode_mismatch(model_dir: Path, tmp_path: Path) -> None:
    """A file that changes between planning and encoding."""
    from omniprep.compiler.encode.rows import MediaCache, encode_planned
    from omniprep.compiler.plan.rows import PlannedRow, plan_rows
    from omniprep.media.fetch import MediaRoots

    (tmp_path / "a.jpg").write_bytes((MEDIA / "rgb.jpg").read_bytes())
    config = BuildConfig(model=str(model_dir), bin_length=8192)
    ctx = family_of(config)
    planned = plan_rows([chat(images=["a.jpg"])], ctx, config, MediaRoots(str(tmp_path)))[0]
    assert isinstance(planned, PlannedRow)
    (tmp_path / "a.jpg").write_bytes((MEDIA / "medium.jpg").read_bytes())
    with pytest.raises(Reject, match=r"decode_mismatch: image 1 of 1.*width"):
        encode_planned(planned, ctx, config, MediaCache(0))


def test_video_too_long(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is a day; here a tenth of a second, so that the file can be small."""
    monkeypatch.setattr("omniprep.media.video.MAX_SECONDS", 0.1)
    (tmp_path / "a.mp4").write_bytes((MEDIA / "h264_25.mp4").read_bytes())
    config = BuildConfig(model=str(model_dir), bin_length=8192)
    with pytest.raises(Reject, match="video_too_long"):
        encode_row(chat(videos=["a.mp4"]), family_of(config), config, str(tmp_path))


def test_limits_of_a_row_are_those_of_a_build(model_dir: Path, tmp_path: Path) -> None:
    """With --chat-template-kwargs apply a row's limits do what the option does for all rows; else they are ignored."""
    for name in ("medium.jpg", "minute.mp4"):
        (tmp_path / name).write_bytes((MEDIA / name).read_bytes())
    ignoring = BuildConfig(model=str(model_dir), bin_length=32768)
    config = BuildConfig(model=str(model_dir), bin_length=32768, chat_template_kwargs="apply")
    for media, option, value in (
        ({"images": ["medium.jpg"]}, "max_pixels", 50_176),
        ({"videos": ["minute.mp4"]}, "fps", 0.5),
    ):
        row = chat(**media)
        by_row = encode_row({**row, "chat_template_kwargs": {option: value}}, family_of(config), config, str(tmp_path))
        for_all = BuildConfig(model=str(model_dir), bin_length=32768, **{option: value})
        expected = encode_row(row, family_of(for_all), for_all, str(tmp_path))
        default = encode_row(row, family_of(config), config, str(tmp_path))
        assert by_row["input_ids"].tolist() == expected["input_ids"].tolist() != default["input_ids"].tolist()
        ignored = {**row, "chat_template_kwargs": {option: value}}
        same = encode_row(ignored, family_of(ignoring), ignoring, str(tmp_path))
        assert same["input_ids"].tolist() == default["input_ids"].tolist()
        key = "pixel_values" if "images" in media else "pixel_values_videos"
        assert (by_row[key] == expected[key]).all()
    tight = BuildConfig(model=str(model_dir), bin_length=32768, max_pixels=3136, chat_template_kwargs="apply")
    free = encode_row(
        {**chat(images=["medium.jpg"]), "chat_template_kwargs": {"max_pixels": 50_176}},
        family_of(tight),
        tight,
        str(tmp_path),
    )
    assert int((free["input_ids"] == 151655).sum()) > family_of(tight).maxima["image"]
